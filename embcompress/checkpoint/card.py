"""The model card of a directory, README.md: what was done to its tables, beside what its author wrote.

The section stands between two comments, so that a later run replaces it and leaves all else alone. The
YAML block at the top gets ``base_model`` and ``base_model_relation``, as model hubs read them.
"""

from __future__ import annotations

import re
from pathlib import Path

from embcompress.checkpoint.description import Description, TableRecord
from embcompress.checkpoint.dtypes import DTYPES

CARD = "README.md"

_LIMIT = 4 << 20
"""Longest card that is edited, in bytes; a longer one is no card, and is carried along as it is."""
_BEGIN, _END = "<!-- embcompress: begin -->", "<!-- embcompress: end -->"
_SECTION = re.compile(rf"\n*{_BEGIN}.*?{_END}\n*", re.DOTALL)
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def write_card(
    folder: Path, description: Description, *, made_from: Path | None = None, dense: bool = False
) -> None:
    """Bring the card in ``folder`` up to date; one that is too long to be one is left alone.

    Args:
        folder: of the model that was written.
        description: what was done.
        made_from: directory of the base model; None where the card names it already.
        dense: whether the tables are dense again.
    """
    path = folder / CARD
    raw = path.read_bytes() if path.is_file() and path.stat().st_size <= _LIMIT else None
    if raw is None and path.exists():
        return
    text = (raw or b"").decode("utf-8", "surrogateescape")
    newline = "\r\n" if "\r\n" in text else "\n"
    text = _edited(text.replace("\r\n", "\n"), description, made_from, dense=dense)
    path.write_bytes(text.replace("\n", newline).encode("utf-8", "surrogateescape"))


def _edited(text: str, description: Description, made_from: Path | None, *, dense: bool) -> str:
    """The card with its section, and the base model in its YAML block."""
    front = _FRONT.match(text)
    yaml, body = ((front[1] or ""), text[front.end() :]) if front else ("", text)
    body = _SECTION.sub("\n\n", body).strip("\n")
    if made_from is not None:
        hub, name = _hub_name(made_from), made_from.resolve().name
        # What the directory was trained from is nearer to the truth than a name that no hub knows.
        if hub or not re.search("^base_model:", yaml, re.MULTILINE):
            yaml = _with_entry(yaml, "base_model", _quoted(hub or name))
            yaml = _with_entry(yaml, "base_model_relation", "quantized")
        body = body or f"# {hub or name}, with a small embedding table"
    parts = [f"---\n{yaml}---"] if yaml else []
    return "\n\n".join([*parts, *([body] if body else []), _section(description, dense=dense)]) + "\n"


def _hub_name(path: Path) -> str | None:
    """The name on its hub of a model in a download cache, which is all that knows it.

    ``_name_or_path`` of a configuration does not: it is what the model was trained from, if anything.
    """
    found = [match for part in path.absolute().parts if (match := _CACHED.fullmatch(part))]
    return "/".join(found[-1].groups()) if found else None


def _with_entry(yaml: str, key: str, value: str) -> str:
    """A YAML block with one entry on its top level set; that of the same name goes, whatever it spans."""
    lines, kept, within = yaml.splitlines(), [], False
    for line in lines:
        within = line.startswith(f"{key}:") or (within and (line[:1] in " \t-" or not line))
        if not within:
            kept.append(line)
    return "".join(f"{line}\n" for line in [*kept, f"{key}: {value}"])


def _quoted(text: str) -> str:
    """A YAML scalar: plain where that is safe, else in quotes."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _section(description: Description, *, dense: bool) -> str:
    tables = description.tables
    done = "was compressed and made dense again" if dense else "is compressed"
    lines = [
        _BEGIN,
        "## The embedding table",
        "",
        f"The embedding table of this model {done}, by embcompress {description.version}. "
        "Every other tensor is byte for byte that of the base model."
        if not any(table.trained for table in tables)
        else f"The embedding table of this model {done}, by embcompress {description.version}, "
        "and weights were trained afterwards; the errors are those before.",
        "",
        "| table | rows × columns | method | bytes | removed | relative error |",
        "|---|---|---|---|---|---|",
        *map(_row, tables),
        "",
        "The relative error is the Frobenius norm of the difference over that of the table, measured on the "
        "bytes written.",
    ]
    if description.command is not None:
        lines += ["", "```sh", description.command, "```"]
    if not dense:
        lines += ["", _loading(description)]
    return "\n".join([*lines, _END])


def _row(table: TableRecord) -> str:
    rows, columns = table.shape
    before = DTYPES[table.dtype].nbytes(rows * columns)
    how = [table.method]
    if table.rank is not None:
        how.append(f"rank {table.rank}")
    how.append(f"{table.bits:.3g} bits")
    error = f"{table.relative_error:.4g}"
    if table.weighted_error is not None:
        error += f" ({table.weighted_error:.4g} with rows weighted by {_plain(table.weighting or '')})"
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
    """Text that cannot end a cell, a code span or the section."""
    return re.sub(r"[`|<>\n]", "_", text)


def _loading(description: Description) -> str:
    if description.swapped:
        return (
            "To load it, `pip install embcompress`, and call `embcompress.register()` before "
            "`from_pretrained`; `embcompress expand` makes a dense copy."
        )
    return "It loads as any model of its kind does, without embcompress."
