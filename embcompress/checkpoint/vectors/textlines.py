"""Lines of a token and its numbers, the text that GloVe and word2vec share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from embcompress.checkpoint.vectors.base import AGAIN, Written
from embcompress.checkpoint.vectors.packing import Sink
from embcompress.checkpoint.vectors.streamed import Entries, Row
from embcompress.dtypes import DType
from embcompress.errors import InputError

TEXT_SUFFIXES = (".txt", ".vec")

NUMBER_BYTES = 13
"""Typical bytes of a number with the space before it: sign, point and 8 or 9 digits."""

_LONGEST = "S16"
"""dtype of a number as text: the longest float32, -1.1754944e-38, has 14 characters."""

_TWICE_ROUNDED = np.uint32(0x15AE43FD).view(np.float32)
"""The only float32, besides its negative, whose shortest text (7.038531e-26) reads back as another number in
readers that go through float64, as most do, and so round twice. Found by trying every float32."""

_FRACTION = re.compile(rb"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)


def filled(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number and contents of each line that is not blank, without white space at its end."""
    for number, line in enumerate(lines, 1):
        if stripped := line.rstrip():
            yield number, stripped


def line_entries(lines: Iterable[tuple[int, bytes]], dimension: int, path: Path) -> Entries:
    """The vectors in lines of text.

    Every line must have the right number of fields. Numbers are parsed only when needed; lines that are
    skipped cost no more than counting spaces.

    Args:
        lines: number and contents of each line that holds a vector, as :func:`filled` yields them.
        dimension: numbers per line.
        path: the file, for messages.
    """
    name = str(path)
    each = ((*split_line(line, dimension, f"{name}: line {number}"), number) for number, line in lines)
    return Entries(dimension, each, partial(parse_numbers, dimension), lambda n: f"{name}: line {n}")


def parse_numbers(dimension: int, text: bytes, where: str) -> Row:  # (dimension)
    """The numbers in ``text``, separated by white space; NaN and infinity are accepted.

    Raises:
        InputError: there are more or fewer than ``dimension``, one is not a number, or is too large for
            float32.
    """
    fields = text.split()
    if len(fields) != dimension:
        raise _ragged(len(fields), dimension, where)
    try:
        if b"_" in text:  # Python's float() accepts 1_000
            raise ValueError
        with np.errstate(over="ignore"):
            values = np.array(fields, np.float32)
    except ValueError:
        wrong = next(field for field in fields if not is_number(field))
        raise InputError(
            f"{where}: {wrong[:40].decode('utf-8', 'replace')!r} is not a number, "
            f"expected are a token and {dimension:,} numbers",
            remedy=f"remove the line, or {AGAIN}",
        ) from None
    if np.isinf(values).any():
        _check_range(fields, values, where)
    return values


def _check_range(fields: list[bytes], values: Row, where: str) -> None:
    """Refuse a number that is written as finite but would silently become infinite.

    Raises:
        InputError: with its position.
    """
    for place in map(int, np.flatnonzero(np.isinf(values))):
        if b"n" not in fields[place].lower():  # neither inf nor infinity
            raise InputError(
                f"{where}: number {place + 1} is {values[place]} in float32, a finite one is expected",
                remedy="remove the vector, or train it again",
            )


def is_number(field: bytes) -> bool:
    """Whether ``field`` is a number as text."""
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def split_line(line: bytes, dimension: int, where: str) -> tuple[bytes, bytes]:
    """Split a line into token and numbers; the token is what the numbers leave.

    It may hold spaces (". . ."), be nothing but a blank, or be empty where the line begins with the space
    that ends the token.

    Raises:
        InputError: there are more or fewer numbers.
    """
    if line.count(b" ") == dimension:
        token, _, numbers = line.partition(b" ")
        return token, numbers
    if line[:1].isspace() and (found := len(line.split())) <= dimension:
        if found < dimension:
            raise _ragged(found, dimension, where)
        numbers = line.lstrip()
        return line[: -len(numbers) - 1], numbers
    token, *fields = line.rsplit(None, dimension)
    if len(fields) < dimension:
        raise _ragged(len(fields), dimension, where)
    # A token may end in digits ("route 66"), but a fraction after it is one number too many.
    words = token.split()
    if len(words) > 1 and _FRACTION.fullmatch(words[-1]):
        raise _ragged(dimension + 1, dimension, where)
    return token, b" ".join(fields)


def write_lines(file: Sink, new: Written) -> None:
    """Write one line per vector, with the fewest digits that read back as the same float32."""
    for tokens, rows in new.entries():
        values = np.asarray(rows, np.float32)
        numbers = values.astype(_LONGEST)
        odd = np.abs(values) == _TWICE_ROUNDED
        if odd.any():
            numbers[odd] = [b"%.9g" % value for value in values[odd]]
        file.writelines(
            b"%b %b\n" % (token, b" ".join(row)) for token, row in zip(tokens, numbers.tolist(), strict=True)
        )


def text_size(shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:  # noqa: ARG001
    """Approximate bytes of such lines; see ``VectorFormat.size_of``."""
    return shape[0] * shape[1] * NUMBER_BYTES + token_bytes + shape[0]


def _ragged(found: int, dimension: int, where: str) -> InputError:
    return InputError(
        f"{where}: {found:,} numbers, expected {dimension:,} as in the first line",
        remedy=f"remove the line, or {AGAIN}",
    )
