"""Vectors as lines of text, a token and its numbers: what GloVe and word2vec text have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from embcompress.data.vectors.base import (
    AGAIN,
    Choice,
    Kept,
    Matrix,
    check_finite,
    decode_token,
)
from embcompress.errors import InputError

TEXT_SUFFIXES = (".txt", ".vec")

_FRACTION = re.compile(rb"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)


def filled(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number and contents of each line that is not blank, white space at its end removed."""
    for number, line in enumerate(lines, 1):
        if stripped := line.rstrip():
            yield number, stripped


def read_lines(
    lines: Iterable[tuple[int, bytes]], dimension: int, choice: Choice, path: Path
) -> Matrix:  # (kept × dimension)
    """The vectors of the kept tokens.

    Every line must have the right number of fields; only the numbers of kept ones are parsed, the
    rest flows by at the speed of counting spaces.

    Args:
        lines: number and contents of each line that holds a vector, as :func:`filled` gives them.
        dimension: numbers a line.
        choice: which tokens are kept.
        path: the file, for messages.

    Raises:
        InputError: a line has another number of fields, or a number that is none.
    """
    kept = Kept(dimension)
    for number, line in lines:
        token, numbers = _split(line, dimension, number, path)
        slot = choice.slot(decode_token(token, f"{path}: line {number}"))
        if slot is not None:
            kept.put(slot, parse_numbers(numbers, dimension, f"{path}: line {number}"))
    return kept.matrix()


def parse_numbers(text: bytes, dimension: int, where: str) -> Matrix:  # (dimension)
    """The numbers in ``text``, parted by white space.

    Raises:
        InputError: there are more or fewer, or one is no number or not finite.
    """
    fields = text.split()
    if len(fields) != dimension:
        raise _ragged(len(fields), dimension, where)
    try:
        if b"_" in text:  # Python's float() takes 1_000
            raise ValueError
        with np.errstate(over="ignore"):
            values = np.array(fields, np.float32)
    except ValueError:
        wrong = next(field for field in fields if not is_number(field))
        raise InputError(
            f"{where}: {wrong[:40].decode('utf-8', 'replace')!r} is no number, "
            f"expected are a token and {dimension:,} numbers",
            remedy=f"remove the line, or {AGAIN}",
        ) from None
    check_finite(values, where)
    return values


def is_number(field: bytes) -> bool:
    """Whether ``field`` is written as a number."""
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field


def _split(line: bytes, dimension: int, number: int, path: Path) -> tuple[bytes, bytes]:
    """Token and numbers; the token is what is left of the numbers and may hold spaces (". . .")."""
    if line.count(b" ") == dimension:
        token, _, numbers = line.partition(b" ")
        return token, numbers
    token, *fields = line.rsplit(None, dimension)
    if len(fields) < dimension:
        raise _ragged(len(fields), dimension, f"{path}: line {number}")
    # A token may end in digits ("route 66"), but a fraction behind it is a number too many.
    words = token.split()
    if len(words) > 1 and _FRACTION.fullmatch(words[-1]):
        raise _ragged(dimension + 1, dimension, f"{path}: line {number}")
    return token, b" ".join(fields)


def _ragged(found: int, dimension: int, where: str) -> InputError:
    return InputError(
        f"{where}: {found:,} numbers, expected {dimension:,} as the first line has it",
        remedy=f"remove the line, or {AGAIN}",
    )
