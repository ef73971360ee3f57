"""Read the lines of a text file and the records of a CSV one at a time, and report every error with its line.

The csv module does the parsing. It is fed lines read from a binary file up to a limit, so that a broken
byte can be reported with its line, and a file without line ends is refused before it fills the memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sized
from pathlib import Path

from embcompress.checkpoint.names import check_not_pointer
from embcompress.choices import DEFAULT_QUOTING, ENCODING
from embcompress.errors import InputError, UsageError, printable

RECORD_LIMIT = 1 << 20
"""Most bytes of a record, over all its physical lines; no more than that is held in memory."""

FIELD_LIMIT = 131_072
"""Most characters of a field. This is the csv module's default, enforced even if a program has raised it."""

_AS_UTF8 = "save it as UTF-8"
_WITH_LF = "save it with LF or CRLF line ends"
_WIDE = (
    (b"\xff\xfe\0\0", "utf-32-le"),  # before UTF-16, whose mark begins the same
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
"""Byte order marks of encodings with units of several bytes."""
_KINDS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "export it as CSV in UTF-8"),
    (b"\x1f\x8b", "compressed with gzip twice", "unpack it with gunzip"),
)
"""First bytes of files that are often mistaken for text, with their kind and the remedy."""
_UNMARKED = {"x0x0": "utf-16-le", "0x0x": "utf-16-be", "x000": "utf-32-le", "000x": "utf-32-be"}
"""Pattern of NULs in the first four bytes -> wide encoding, if these are ASCII characters."""

_QUOTED = re.compile(r'"(?:[^"]++|"")*+')
"""A quoted field without its closing quote; possessive, so that half of a doubled quote never closes it."""


class Lines:
    """The physical lines of a file, checked and decoded one at a time.

    Args:
        file: the file.
        path: its name.
        encoding: of its characters; None for UTF-8 where the user cannot choose another.

    Attributes:
        path: the file.
        number: the last line read, counted from 1; 0 before the first.
        begin: the line in which the current record begins.
        held: the lines of the current record.
        size: their bytes.
        ended: whether the end of the file has been reached.
        offers_options: whether messages may name options that read the file in another way.
    """

    def __init__(self, file: io.BufferedReader, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self.number = 0
        self.ended = False
        self._file = file
        self.offers_options = encoding is not None
        self._codec = codecs.lookup(encoding or ENCODING).name.removesuffix("-sig")
        if self._codec in ("utf-16", "utf-32"):  # the mark says in which order the bytes are
            first = file.peek(4)[:4]
            found = next((codec for mark, codec in _WIDE if first.startswith(mark)), "")
            self._codec = found if found.startswith(self._codec) else f"{self._codec}-le"
        self._unit = {"utf-16": 2, "utf-32": 4}.get(self._codec[:6], 1)
        self._end = "\n".encode(self._codec) if self._unit > 1 else b"\n"
        self.start_record()

    def start_record(self) -> None:
        """Begin a new record with the next line."""
        self.begin = self.number + 1
        self.held: list[str] = []
        self.size = 0

    def error(self, message: str, remedy: str, line: int = 0) -> InputError:
        """An error in ``line``, or by default in the line in which the current record begins."""
        return InputError(f"{self.path}: line {line or self.begin}: {message}", remedy)

    def usage_error(self, message: str, remedy: str) -> UsageError:
        """An error in the current record that is one of the request."""
        return UsageError(f"{self.path}: line {self.begin}: {message}", remedy)

    def peek(self) -> str:
        """The beginning of the file, before anything is read; broken characters are left out."""
        return self._file.peek(256)[:256].decode(self._codec, "ignore").removeprefix("\ufeff")

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        raw = self._read()
        if not raw:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.size += len(raw)
        if self.number == 1:
            self._check_kind(raw)
        if self.size > RECORD_LIMIT:
            only_cr = b"\r" in raw and b"\n" not in raw
            raise self.error(
                f"a record of more than {RECORD_LIMIT:,} bytes, the limit",
                f"it has CR but no LF, {_WITH_LF}" if only_cr else "shorten it, or close a quote left open",
            )
        try:
            text = raw.decode(self._codec)
        except UnicodeDecodeError as error:
            raise self._not_text(raw, error) from None
        if self.number == 1:
            text = text.removeprefix("\ufeff")
        if "\0" in text:
            raise self.error("holds a NUL, expected text", f"remove it, or {_AS_UTF8}", self.number)
        self.held.append(text)
        return text

    def _read(self) -> bytes:
        """The next line. One byte beyond the limit shows that a record is too long, whatever follows."""
        raw = self._file.readline(RECORD_LIMIT + 1)
        while self._unit > 1 and raw and len(raw) <= RECORD_LIMIT:
            raw += self._file.read(-len(raw) % self._unit)
            if raw.endswith(self._end) or not (more := self._file.readline(RECORD_LIMIT + 1)):
                break
            raw += more
        return raw

    def _check_kind(self, first: bytes) -> None:
        """Refuse a file whose first bytes show that it is something else."""
        check_not_pointer(first, self.path)
        for mark, what, remedy in _KINDS:
            if first.startswith(mark):
                raise InputError(
                    f"{self.path}: is {what}, by its first bytes {mark.hex(' ').upper()}", remedy
                )
        if self._unit > 1:
            return
        for mark, codec in _WIDE:
            if first.startswith(mark):
                raise InputError(
                    f"{self.path}: is {codec.upper()} text, by its first bytes {mark.hex(' ').upper()}",
                    self._or_utf8(codec[:6]),
                )
        wide = _UNMARKED.get("".join("x" if byte else "0" for byte in first[:4]))
        if wide is not None:
            raise InputError(
                f"{self.path}: seems to be {wide.upper()} text, by the NULs in its first bytes",
                self._or_utf8(wide),
            )

    def _or_utf8(self, encoding: str) -> str:
        return f"pass --encoding {encoding}" if self.offers_options else _AS_UTF8

    def _not_text(self, raw: bytes, error: UnicodeDecodeError) -> InputError:
        """What to say of a line that cannot be decoded."""
        before = shown(raw[: error.start].decode(self._codec, "replace")[-20:])
        remedy = "give the encoding it is written in with --encoding"
        if self._codec == ENCODING:
            remedy = f"{_AS_UTF8}; from Windows: iconv -f WINDOWS-1252 -t UTF-8"
            if self.offers_options:
                remedy = f"pass --encoding {_narrow(raw)} if it comes from Windows or the web, or {_AS_UTF8}"
        return self.error(
            f"byte 0x{raw[error.start]:02X} after {before} is not {self._codec.upper()}", remedy, self.number
        )


def _narrow(raw: bytes) -> str:
    """An encoding with one byte a character that can read the line; any can be read as Latin-1."""
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def fields_in(record: Sized) -> str:
    """How many fields a record has, in words."""
    return "1 field" if len(record) == 1 else f"{len(record)} fields"


def records(lines: Lines, delimiter: str, quoting: str = DEFAULT_QUOTING) -> Iterator[list[str]]:
    """The fields of each record; blank lines between records are skipped.

    Raises:
        InputError: a line is not text, a record is not CSV, or either is too long.
    """
    plain = quoting == "none"
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    )
    fields = 0
    while True:
        lines.start_record()
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise _fault(lines, delimiter, str(error), fields, plain=plain) from None
        if record is None:
            return
        if lines.size > FIELD_LIMIT and max(map(len, record), default=0) > FIELD_LIMIT:
            raise _fault(lines, delimiter, "a field is too long", fields, plain=plain)
        if record:
            fields = fields or len(record)
            yield record


def shown(text: str) -> str:
    """``text`` in quotes for a message: escaped, and truncated if it is long."""
    return f"'{printable(text, 40)}'"


def _fault(lines: Lines, delimiter: str, reason: str, fields: int, *, plain: bool) -> InputError:
    """Find what is wrong with the current record, and in which line.

    The csv module says neither where a quoted field began nor how to fix it, so the record is parsed again
    here, field by field.

    Args:
        lines: hold the record.
        delimiter: between its fields.
        reason: the csv module's own message, used if nothing is found.
        fields: how many fields the first record had.
        plain: whether quotes are characters like any other.
    """
    text = "".join(lines.held)
    close = 'close it, shorten the text, or write "" for a quote that belongs to it'
    if lines.offers_options and fields and lines.held[0].count(delimiter) + 1 == fields:
        close = 'pass --quoting none if quotes are plain characters here, or write "" for each within a field'
    unquoted = re.compile(f"[^{re.escape(delimiter)}\r\n]*")
    at = 0
    while at < len(text):
        opened = lines.begin + text.count("\n", 0, at)
        quoted = text[at] == '"' and not plain
        match = (_QUOTED if quoted else unquoted).match(text, at)
        assert match is not None
        field, at = match[0], match.end()
        if quoted and at == len(text):
            where = "at the end of the file" if lines.ended else f"in line {lines.number}"
            return lines.error(
                f"the quote that opens here is still open {where}, limit {FIELD_LIMIT:,} characters",
                close,
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
                close,
                here,
            )
        if end in ("\r", "\n") and text[at:].strip("\r\n"):
            return lines.error("a carriage return (CR) without a line feed (LF)", _WITH_LF, here)
        at += 1
    return lines.error(reason, "correct the record")
