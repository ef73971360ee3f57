"""The wanted fields of each record of a file of texts, whatever way it is written in."""

from __future__ import annotations

import contextlib
import csv
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from embcompress.data.csvlines import Lines, records, shown
from embcompress.data.text_format import FASTTEXT_PREFIX, TextFormat, looks_like
from embcompress.errors import InputError, UsageError

TEXT, LABEL = "--text-column", "--label-column"
"""Options that name the wanted columns."""

_USUAL_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""Delimiters tried on a header that does not match, and how each is given to ``--delimiter``."""

_FASTTEXT_LABEL = re.compile(rf"(?<!\S){FASTTEXT_PREFIX}(\S*)")
_SURROGATE = re.compile("[\ud800-\udfff]")

_NAMES = {"jsonl": "JSON Lines", "fasttext": "lines of fastText"}
"""What messages call a kind of file."""


def fields(
    lines: Lines,
    wanted: Mapping[str, str],
    text_format: TextFormat,
    *,
    usual: str,
) -> Iterator[tuple[str, ...]]:
    """The wanted fields of each record; ``lines.begin`` is the line in which the last one begins.

    Args:
        lines: of the file, none of them read.
        wanted: for each field the option that names its column, and the column.
        text_format: what is known of the file.
        usual: the kind of a file whose suffix and first line say nothing.

    Raises:
        UsageError: there is no such column, or the file is of another kind.
        InputError: the file is not of its kind, or a record is beyond a limit.
    """
    kind = text_format.kind_of(lines.path, lines.peek(), usual=usual)
    if kind == "jsonl":
        return _from_json(lines, wanted)
    if kind == "fasttext":
        return _from_fasttext(lines, wanted)
    if kind == "lines":
        return _from_lines(lines, wanted)
    return _from_csv(lines, wanted, text_format)


# ---- CSV


def _from_csv(lines: Lines, wanted: Mapping[str, str], text_format: TextFormat) -> Iterator[tuple[str, ...]]:
    delimiter = text_format.delimiter_of(lines.path)
    rows = records(lines, delimiter, text_format.quoting)
    if text_format.header is False:
        places = [_place(option, column) for option, column in wanted.items()]
        first = next(rows, [])
        if not first:
            return
        for option, column in wanted.items():
            if int(column) > len(first):
                raise lines.usage_error(
                    f"no column {column} in a row of {len(first)}",
                    f"give {option} a number up to {len(first)}",
                )
        header, expected = [], len(first)
        yield tuple(first[place] for place in places)
    else:
        header = _read_header(rows, lines, delimiter, wanted)
        places, expected = [header.index(column) for column in wanted.values()], len(header)
    for row in rows:
        _check_row(row, header, expected, lines, delimiter)
        yield tuple(row[place] for place in places)


def _place(option: str, column: str) -> int:
    """The index of a column that is given by its number."""
    if not (column.isascii() and column.isdigit() and int(column[:9]) > 0 and len(column) < 10):
        raise UsageError(
            f"--no-header: {option} {shown(column)} is not the number of a column",
            remedy=f"count the columns from 1, and give {option} a number",
        )
    return int(column) - 1


def _read_header(
    rows: Iterator[list[str]], lines: Lines, delimiter: str, wanted: Mapping[str, str]
) -> list[str]:
    """Read the header and check that every wanted column appears once."""
    broken = None
    try:
        header = next(rows, [])
    except InputError as error:
        # A quoted header is broken if it is split by the wrong delimiter, which is the better message.
        broken, header = error, []
    if not set(wanted.values()) <= set(header):
        for other, given in _USUAL_DELIMITERS.items():
            if set(wanted.values()) <= set(_split(lines.held, other)):
                raise lines.usage_error(
                    f"the columns are not delimited by {shown(delimiter)}, "
                    f"expected {' and '.join(map(shown, wanted.values()))}",
                    f"pass --delimiter {given}",
                )
        kind = looks_like(lines.held[0]) if lines.held else None
        if kind is not None:
            raise lines.usage_error(
                f"looks like {_NAMES[kind]}, and is read as CSV", f"pass --text-format {kind}"
            )
    if broken is not None:
        raise broken
    if not header:
        what = "holds blank lines only" if lines.number else "is empty"
        raise InputError(f"{lines.path}: {what}, expected a header", remedy="write it again")
    for option, column in wanted.items():
        if column not in header:
            raise _missing(column, option, header, lines, _or_no_header(header, wanted))
        if header.count(column) > 1:
            raise lines.error(
                f"column {shown(column)} appears {header.count(column)} times in the header, expected once",
                "rename or remove the others",
            )
    return header


def _split(record: list[str], delimiter: str) -> list[str]:
    with contextlib.suppress(csv.Error):
        return next(csv.reader(record, delimiter=delimiter), [])
    return []


def _or_no_header(row: Sequence[str], wanted: Mapping[str, str]) -> str:
    """The options that read a file whose first line is a row: texts are long, labels are short."""
    if len(row) < len(wanted):
        return "put a header above the rows"
    text = max(reversed(range(len(row))), key=lambda place: len(row[place]))
    others = [place for place in range(len(row)) if place != text]
    label = min(others, key=lambda place: (not row[place], len(row[place])), default=text)
    numbers = {TEXT: text + 1, LABEL: label + 1}
    options = " ".join(f"{option} {numbers[option]}" for option in wanted)
    return f"pass --no-header {options} if it is a row"


def _check_row(row: list[str], header: list[str], expected: int, lines: Lines, delimiter: str) -> None:
    """Refuse a row whose number of fields differs from that of the first record, and a repeated header."""
    if len(row) != expected:
        ends = f" up to line {lines.number}" if lines.number > lines.begin else ""
        remedy = "complete it or remove it"
        if ends:
            opens = f"look for a quote that opens in line {lines.begin} and closes too late"
            remedy = f"{opens}, or pass --quoting none"
        elif len(row) > expected:
            remedy = f"put a text that holds {shown(delimiter)} in quotes"
        where = "in the header" if header else "in the first row"
        raise lines.error(f"{len(row)} fields{ends}, expected {expected} as {where}", remedy)
    if row == header:
        raise lines.error("the header appears here again, expected a row", "remove it")


# ---- a record a line


def _in_turn(lines: Lines) -> Iterator[str]:
    """Each line as a record of its own, without its end."""
    lines.start_record()
    for line in lines:
        yield line.rstrip("\r\n")
        lines.start_record()


def _from_lines(lines: Lines, wanted: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    if LABEL in wanted:
        raise UsageError(f"{lines.path}: lines hold texts and no labels", remedy="pass another --text-format")
    for line in _in_turn(lines):
        yield (line,)


def _from_fasttext(lines: Lines, wanted: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Lines such as ``__label__good a text``."""
    for line in _in_turn(lines):
        labels = _FASTTEXT_LABEL.findall(line)
        if LABEL in wanted and line.strip() and len(labels) != 1:
            raise lines.error(
                f"{len(labels)} labels that begin with {FASTTEXT_PREFIX}, expected 1",
                "keep one or remove the line",
            )
        if line.strip():
            found = {TEXT: _FASTTEXT_LABEL.sub("", line).strip(), LABEL: labels[0] if labels else ""}
            yield tuple(found[option] for option in wanted)


class _Number(str):
    """A number in JSON, as it is written."""

    __slots__ = ()


def _from_json(lines: Lines, wanted: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """JSON Lines: an object in each line; labels may be numbers."""
    first = True
    for line in _in_turn(lines):
        if not line.strip():
            continue
        record = _object(line, lines)
        for option, column in wanted.items():
            if column not in record:
                missing = _missing(column, option, [*record], lines, "remove the record")
                raise missing if first else InputError(missing.message, missing.remedy)
        yield tuple(_plain(record[column], column, lines) for column in wanted.values())
        first = False


def _object(line: str, lines: Lines) -> dict[str, Any]:
    try:
        found = json.loads(
            line,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_no_number,
            object_pairs_hook=_unrepeated,
        )
    except (ValueError, RecursionError) as error:
        why = getattr(error, "msg", None) or str(error).partition(":")[0]
        remedy = "write a whole object in each line, or pass another --text-format"
        raise lines.error(f"is not JSON ({why})", remedy) from None
    if not isinstance(found, dict):
        remedy = "write an object in each line"
        if isinstance(found, list) and lines.number == 1:
            remedy = "write each of its objects in a line of its own: jq -c '.[]' FILE"
        raise lines.error(f"is {_kind(found)}, expected a JSON object", remedy)
    return found


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _plain(value: object, column: str, lines: Lines) -> str:
    """A text, or a number or truth value as JSON writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise lines.error(
            f"{shown(column)} is {_kind(value)}, expected a text or a number",
            "correct it, or remove the record",
        )
    if _SURROGATE.search(value) or "\0" in value:
        raise lines.error(
            f"{shown(column)} holds half a character or a NUL", "correct it, or remove the record"
        )
    return str(value)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", bool: "a truth value", str: "a text", _Number: "a number"}
    return kinds.get(type(value), "null")


# ---- names


def _missing(column: str, option: str, header: Collection[str], lines: Lines, otherwise: str) -> UsageError:
    near = nearest(column, header)
    if near is not None and folded(near) == folded(column):
        remedy = (
            f"{shown(near)} differs by spaces or capitals only: name it with {option}, or correct the header"
        )
    elif near is not None:
        remedy = f"did you mean {shown(near)}? name it with {option}"
    else:
        remedy = f"name another with {option}, or {otherwise}"
    return lines.usage_error(f"no column {shown(column)} among {listed(header)}", remedy)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name; one that differs only by spaces and capitals comes first."""
    by_folded = {folded(other): other for other in names}
    close = difflib.get_close_matches(folded(name), by_folded, n=1)
    return by_folded[close[0]] if close else None


def folded(name: str) -> str:
    """A name in small letters with single blanks, to compare it."""
    return " ".join(name.split()).casefold()


def listed(names: Collection[str], limit: int = 5) -> str:
    """The first names for a message."""
    first = ", ".join(shown(name) for name, _ in zip(names, range(limit), strict=False))
    return f"{first}, …" if len(names) > limit else first
