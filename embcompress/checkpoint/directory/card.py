"""The model card of a directory, README.md: a section about the compression, next to the author's text.

The section sits between two comments, so that a later run replaces it and leaves the rest alone. The
YAML block at the top gets ``base_model`` and ``base_model_relation``, as model hubs read them.
"""

from __future__ import annotations

import re
from pathlib import Path

from embcompress.checkpoint.description import Description, TableRecord
from embcompress.dtypes import DTYPES
from embcompress.storage.regular import read_limited

CARD = "README.md"

_LIMIT = 4 << 20
"""Longest card that is edited, in bytes. A longer file is not a card and is copied unchanged."""
_BEGIN, _END = "<!-- embcompress: begin -->", "<!-- embcompress: end -->"
_SECTION = re.compile(rf"\n*{_BEGIN}.*?{_END}\n*", re.DOTALL)
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"# [^\n]*, with a small embedding table")
_FENCE = "```"
_BASE = ("base_model", "base_model_relation")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def write_card(
    folder: Path,
    description: Description,
    *,
    made_from: Path | None = None,
    dense: bool = False,
    graph: bool = False,
) -> None:
    """Update the card in ``folder``, or create it. A file too long to be a card is left alone.

    Args:
        folder: directory of the model that was written.
        description: record of the compression.
        made_from: directory of the base model; None if the card names it already.
        dense: whether the tables are dense again.
        graph: whether the weights come with their computation.
    """
    path = folder / CARD
    text = card_text(folder)
    if text is None and path.exists():
        return
    text = text or ""
    newline = "\r\n" if "\r\n" in text else "\n"
    text = _edited(text.replace("\r\n", "\n"), description, made_from, dense=dense, graph=graph)
    path.write_bytes(text.replace("\n", newline).encode("utf-8", "surrogateescape"))


def card_text(folder: Path) -> str | None:
    """The card in ``folder``; None if there is none, or the file is too long to be a card."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > _LIMIT:
        return None
    return read_limited(path, _LIMIT).decode("utf-8", "surrogateescape")


def taken_apart(
    text: str,
    description: Description | None = None,
    made_from: Path | None = None,
    *,
    graph: bool = False,
) -> dict[str, object]:
    """Split a card into its section, its base model and the rest, each under a name.

    With a ``description``, the card is split as :func:`write_card` would leave it; ``...`` then stands for
    the entries that depend on the path of the base model.
    """
    text = text.replace("\r\n", "\n")
    free = description is not None and made_from is not None and _names_base(_split(text)[0], made_from)
    if description is not None:
        text = _edited(text, description, made_from, dense=False, graph=graph)
    yaml, body = _split(text)
    section = _SECTION.search(body)
    body = _SECTION.sub("\n\n", body).strip("\n")
    found: dict[str, object] = {f"embcompress/{CARD}": section[0].strip("\n") if section else ""}
    for key in _BASE:
        entry, yaml = _entry(yaml, key)
        found |= {f"{CARD} {key}": ... if free else entry} if entry else {}
    return {**found, CARD: f"{yaml}\n{'' if _HEADING.fullmatch(body) else body}"}


def _split(text: str) -> tuple[str, str]:
    """The YAML block of a card without its fences, and the text after it."""
    front = _FRONT.match(text)
    return ((front[1] or ""), text[front.end() :]) if front else ("", text)


def _names_base(yaml: str, made_from: Path) -> bool:
    """Whether the base model is written into a card.

    An existing ``base_model`` is kept unless the hub's name of ``made_from`` is known: the author's entry
    says more than the name of a local directory.
    """
    return _hub_name(made_from) is not None or not _entry(yaml, _BASE[0])[0]


def _edited(text: str, description: Description, made_from: Path | None, *, dense: bool, graph: bool) -> str:
    """The card with its section, and the base model in its YAML block."""
    yaml, body = _split(text)
    body = _SECTION.sub("\n\n", body).strip("\n")
    if made_from is not None:
        name = _hub_name(made_from) or made_from.resolve().name
        if _names_base(yaml, made_from):
            for key, value in zip(_BASE, (_quoted(name), "quantized"), strict=True):
                yaml = _entry(yaml, key)[1] + f"{key}: {value}\n"
        body = body or _heading(name)
    parts = [f"---\n{yaml}---"] if yaml else []
    return (
        "\n\n".join([*parts, *([body] if body else []), _section(description, dense=dense, graph=graph)])
        + "\n"
    )


def _hub_name(path: Path) -> str | None:
    """The name of a model on its hub, from the path of a download cache, which alone records it.

    ``_name_or_path`` in the configuration is no help: it names what the model was trained from, if anything.
    """
    found = [match for part in path.absolute().parts if (match := _CACHED.fullmatch(part))]
    return "/".join(found[-1].groups()) if found else None


def _entry(yaml: str, key: str) -> tuple[str, str]:
    """A top-level entry of a YAML block, with all its lines, and the block without it."""
    own: list[str] = []
    others: list[str] = []
    within = False
    for line in yaml.splitlines():
        within = line.startswith(f"{key}:") or (within and (line[:1] in " \t-" or not line))
        (own if within else others).append(f"{line}\n")
    return "".join(own), "".join(others)


def _heading(name: str) -> str:
    """The first line of a card that has no text of its own."""
    return f"# {_plain(name)}, with a small embedding table"


def _quoted(text: str) -> str:
    """A YAML scalar: plain where that is safe, else in quotes."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text):
        return text
    text = "".join(c if c.isprintable() else "_" for c in text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _section(description: Description, *, dense: bool, graph: bool) -> str:
    tables = description.tables
    done = "was compressed and made dense again" if dense else "is compressed"
    rest = ". Every other tensor is byte for byte that of the base model."
    if any(table.trained for table in tables):
        rest = ", and weights were trained afterwards; the errors are those before."
    lines = [
        _BEGIN,
        "## The embedding table",
        "",
        f"The embedding table of this model {done}, by embcompress {_plain(description.version)}{rest}",
        "",
        "| table | rows × columns | method | bytes | removed | relative error |",
        "|---|---|---|---|---|---|",
        *map(_row, tables),
        "",
        "The relative error is the Frobenius norm of the difference over that of the table, measured on the "
        "bytes written.",
    ]
    # A record that is read may hold anything: a line break or a fence would end the block.
    command = description.command
    if command is not None and command.isprintable() and _FENCE not in command:
        lines += ["", f"{_FENCE}sh", command, _FENCE]
    if not dense:
        lines += ["", _RUNS if graph else _loading(description)]
    return "\n".join([*lines, _END])


def _row(table: TableRecord) -> str:
    rows, columns = table.shape
    before = DTYPES[table.dtype].nbytes(rows * columns)
    how = [_plain(table.method)]
    if table.rank is not None:
        how.append(f"rank {table.rank}")
    how.append(f"{table.bits:.3g} bits")
    error = f"{table.relative_error:.4g}"
    if table.weighted_error is not None:
        error += f" ({table.weighted_error:.4g} with rows weighted by {_plain(table.weighting or '')})"
    if table.metric_error is not None:
        error += f" ({table.metric_error:.4g} in the metric of {_plain(table.metric or '')})"
    cells = (
        f"`{_plain(table.name)}`",
        f"{rows:,} × {columns:,} {DTYPES[table.dtype].torch}",
        ", ".join(how),
        f"{before:,} → {round(before * (1 - table.ratio)):,}",
        f"{table.ratio:.1%}",
        error,
    )
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text with the characters removed that could end a cell, a code span or the section."""
    return re.sub(r"[`|<>]", "_", "".join(c if c.isprintable() else "_" for c in text))


_RUNS = "It runs as any ONNX model does; `embcompress expand` makes a dense copy."


def _loading(description: Description) -> str:
    if description.quantizer is not None:
        return (
            "To load it, `pip install embcompress`, call `from_pretrained` with "
            "`ignore_mismatched_sizes=True`, and then `embcompress.load` on the model; `embcompress expand` "
            "makes a dense copy."
        )
    if description.swapped:
        return (
            "To load it, `pip install embcompress`, and call `embcompress.register()` before "
            "`from_pretrained` or `SentenceTransformer`; `embcompress expand` makes a dense copy."
        )
    return "It loads as any model of its kind does, without embcompress."
