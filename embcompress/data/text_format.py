"""How a file of texts is written: what the user says of it, and what its name and its first line show."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from embcompress.choices import DEFAULT_QUOTING, ENCODING, QUOTINGS, TEXT_FORMATS
from embcompress.errors import UsageError, check_choice, printable

FASTTEXT_PREFIX = "__label__"
"""Begins every label in fastText's files."""

_BY_SUFFIX = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
}
_TAB_NAMES = ("tab", "\\t")
"""Names of the tab, which is hard to type in a shell."""
_PROBE = 'xn--bcher-kva \\u0041 +AGE- ~{az,09;"\t|\n'
"""Text that every encoding in use stores as ASCII, and that escaping ones change."""


def _is_text_encoding(name: str) -> bool:
    """Whether files in this encoding can be read line by line, and hold delimiters and quotes as such."""
    try:
        codec = codecs.lookup(name).name
        stored = _PROBE.encode(codec)
        plain = stored.removeprefix(codecs.BOM_UTF8) == _PROBE.encode() and stored.decode(codec) == _PROBE
        return plain or codec.startswith(("utf-16", "utf-32"))
    except (LookupError, ValueError):  # UnicodeError is a ValueError, and so is a NUL in the name
        return False


@dataclass(frozen=True)
class TextFormat:
    """How to read a file of texts; what is not given follows from the file.

    Attributes:
        kind: one of ``choices.TEXT_FORMATS``; None for the one that suffix and first line show.
        header: whether the first line of a CSV names the columns. If not, columns are numbers from 1. None
            for the way a classifier was trained, otherwise for a header.
        quoting: one of ``choices.QUOTINGS``: whether a CSV puts fields in quotes, or quotes are plain text.
        encoding: name of the character encoding, as Python calls it.
        delimiter: between the fields of a CSV: one character, or ``tab``; None for a tab in .tsv files and a
            comma in all others.

    Raises:
        UsageError: there is no such kind, quoting, encoding or delimiter.
    """

    kind: str | None = None
    header: bool | None = None
    quoting: str = DEFAULT_QUOTING
    encoding: str = ENCODING
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None:
            check_choice("text format", self.kind, TEXT_FORMATS)
        check_choice("quoting", self.quoting, QUOTINGS)
        if not _is_text_encoding(self.encoding):
            raise UsageError(
                f"encoding {printable(self.encoding, 40)!r} is not one of text files",
                remedy="give one such as utf-8, cp1252, latin-1, utf-16 or gb18030",
            )
        given = self.delimiter
        if given is not None and given not in _TAB_NAMES and (len(given) != 1 or given in '"\r\n\0'):
            raise UsageError(
                f"--delimiter {printable(given, 40)!r}: expected one character, and neither a quote nor a "
                "line's end",
                remedy="give one such as ',' or tab",
            )

    def delimiter_of(self, path: Path) -> str:
        """The delimiter of a CSV: the one that was given, or that of the suffix."""
        if self.delimiter is None:
            return "\t" if suffix_of(path) == ".tsv" else ","
        return "\t" if self.delimiter in _TAB_NAMES else self.delimiter

    def kind_of(self, path: Path, first: str, *, usual: str) -> str:
        """The kind of a file.

        Args:
            path: the file.
            first: how its text begins.
            usual: the kind of a file whose suffix and first line say nothing.
        """
        by_suffix = _BY_SUFFIX.get(suffix_of(path))
        if self.kind is not None or by_suffix is not None:
            return self.kind or by_suffix or usual
        return "fasttext" if first.startswith(FASTTEXT_PREFIX) else usual


USUAL_FORMAT = TextFormat()


def suffix_of(path: Path) -> str:
    """The suffix in small letters; the one before, if it is that of gzip."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def looks_like(first: str) -> str | None:
    """The kind that the first line of a file shows although it was read as another; None for no other."""
    first = first.strip()
    if first.startswith(FASTTEXT_PREFIX):
        return "fasttext"
    return "jsonl" if first.startswith("{") and first.endswith("}") else None
