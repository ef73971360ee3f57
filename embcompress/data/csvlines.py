"""Read the records of a CSV file one at a time, and report every error with its line.

The csv module does the parsing. It is fed lines read from a binary file up to a limit, so that a broken
byte can be reported with its line, and a file without line ends is refused before it fills the memory.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from embcompress.checkpoint.names import check_not_pointer
from embcompress.errors import InputError, printable

RECORD_LIMIT = 1 << 20
"""Most bytes of a record, over all its physical lines; no more than that is held in memory."""

FIELD_LIMIT = 131_072
"""Most characters of a field. This is the csv module's default, enforced even if a program has raised it."""

_BOM = b"\xef\xbb\xbf"
_AS_UTF8 = "save it as UTF-8"
_WITH_LF = "save it with LF or CRLF line ends"
_KINDS = (
    (b"\xff\xfe\0\0", "UTF-32-LE text", _AS_UTF8),  # before UTF-16, whose mark begins the same
    (b"\0\0\xfe\xff", "UTF-32-BE text", _AS_UTF8),
    (b"\xff\xfe", "UTF-16-LE text", _AS_UTF8),
    (b"\xfe\xff", "UTF-16-BE text", _AS_UTF8),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "export it as CSV in UTF-8"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
)
"""First bytes of files that are often mistaken for UTF-8 CSV, with their kind and the remedy."""
_UNMARKED = {"x0x0": "UTF-16-LE", "0x0x": "UTF-16-BE", "x000": "UTF-32-LE", "000x": "UTF-32-BE"}
"""Pattern of NULs in the first four bytes -> wide encoding, if these are ASCII characters."""

_QUOTED = re.compile(r'"(?:[^"]++|"")*+')
"""A quoted field without its closing quote; possessive, so that half of a doubled quote never closes it."""


class Lines:
    """The physical lines of a file, checked and decoded one at a time.

    Attributes:
        path: the file.
        number: the last line read, counted from 1; 0 before the first.
        begin: the line in which the current record begins.
        held: the lines of the current record.
        size: their bytes.
        ended: whether the end of the file has been reached.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.number = 0
        self.ended = False
        self._file = file
        self.start_record()

    def start_record(self) -> None:
        """Begin a new record with the next line."""
        self.begin = self.number + 1
        self.held: list[str] = []
        self.size = 0

    def error(self, message: str, remedy: str, line: int = 0) -> InputError:
        """An error in ``line``, or by default in the line in which the current record begins."""
        return InputError(f"{self.path}: line {line or self.begin}: {message}", remedy)

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        # One byte more than the limit shows that a record is too long, however much follows.
        raw = self._file.readline(RECORD_LIMIT + 1)
        if not raw:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.size += len(raw)
        if self.number == 1:
            _check_kind(raw, self.path)
            raw = raw.removeprefix(_BOM)
        if self.size > RECORD_LIMIT:
            only_cr = b"\r" in raw and b"\n" not in raw
            raise self.error(
                f"a record of more than {RECORD_LIMIT:,} bytes, the limit",
                f"it has CR but no LF, {_WITH_LF}" if only_cr else "shorten it, or close a quote left open",
            )
        if b"\0" in raw:
            raise self.error("holds a NUL, expected text", f"remove it, or {_AS_UTF8}", self.number)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            before = shown(raw[: error.start].decode()[-20:])
            raise self.error(
                f"byte 0x{raw[error.start]:02X} after {before} is not UTF-8",
                f"{_AS_UTF8}; from Windows: iconv -f WINDOWS-1252 -t UTF-8",
                self.number,
            ) from None
        self.held.append(text)
        return text


def records(lines: Lines, delimiter: str) -> Iterator[list[str]]:
    """The fields of each record; blank lines between records are skipped.

    Raises:
        InputError: a line is not UTF-8 text, a record is not CSV, or either is too long.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_record()
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise _fault(lines, delimiter, str(error)) from None
        if record is None:
            return
        if lines.size > FIELD_LIMIT and max(map(len, record), default=0) > FIELD_LIMIT:
            raise _fault(lines, delimiter, "a field is too long")
        if record:
            yield record


def shown(text: str) -> str:
    """``text`` in quotes for a message: escaped, and truncated if it is long."""
    return f"'{printable(text, 40)}'"


def _check_kind(first: bytes, path: Path) -> None:
    """Refuse a file whose first bytes show that it is something else."""
    check_not_pointer(first, path)
    for mark, what, remedy in _KINDS:
        if first.startswith(mark):
            raise InputError(f"{path}: is {what}, by its first bytes {mark.hex(' ').upper()}", remedy)
    wide = _UNMARKED.get("".join("x" if byte else "0" for byte in first[:4]))
    if wide is not None:
        raise InputError(f"{path}: seems to be {wide} text, by the NULs in its first bytes", _AS_UTF8)


def _fault(lines: Lines, delimiter: str, reason: str) -> InputError:
    """Find what is wrong with the current record, and in which line.

    The csv module says neither where a quoted field began nor how to fix it, so the record is parsed again
    here, field by field. ``reason`` is the csv module's own message, used if nothing is found.
    """
    text = "".join(lines.held)
    plain = re.compile(f"[^{re.escape(delimiter)}\r\n]*")
    at = 0
    while at < len(text):
        opened = lines.begin + text.count("\n", 0, at)
        quoted = text[at] == '"'
        match = (_QUOTED if quoted else plain).match(text, at)
        assert match is not None
        field, at = match[0], match.end()
        if quoted and at == len(text):
            where = "at the end of the file" if lines.ended else f"in line {lines.number}"
            return lines.error(
                f"the quote that opens here is still open {where}, limit {FIELD_LIMIT:,} characters",
                'close it, shorten the text, or write "" for a quote that belongs to it',
                opened,
            )
        if quoted:
            field, at = field[1:].replace('""', '"'), at + 1
        if len(field) > FIELD_LIMIT:
            return lines.error(
                f"a field of {len(field):,} characters, limit {FIELD_LIMIT:,}", "shorten it", opened
            )
        end = text[at : at + 1]
        here = lines.begin + text.count("\n", 0, at)
        if quoted and end not in ("", delimiter, "\r", "\n"):
            return lines.error(
                f"{shown(text[at : at + 20].rstrip())} after the closing quote of the field that opens in "
                f"line {opened}, expected {shown(delimiter)} or the line's end",
                'close it where its text ends, or write "" for a quote that belongs to it',
                here,
            )
        if end in ("\r", "\n") and text[at:].strip("\r\n"):
            return lines.error("a carriage return (CR) without a line feed (LF)", _WITH_LF, here)
        at += 1
    return lines.error(reason, "correct the record")
