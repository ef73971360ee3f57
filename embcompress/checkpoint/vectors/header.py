"""The first line of word2vec files, "V d": the number of vectors, and of numbers in each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embcompress.checkpoint.vectors.base import AGAIN, check_dimension
from embcompress.checkpoint.vectors.textlines import is_number
from embcompress.errors import InputError

HEADER_BYTES = 256
"""Longest first line that can be a header, in bytes."""

_HEADER = re.compile(rb"[ \t]*(\d+)[ \t]+(\d+)[ \t\r]*")
_DIGITS = 18
"""Most digits that are parsed: more than any file needs, and little work for a hostile one."""


@dataclass(frozen=True)
class Header:
    """The claims of the first line, not yet compared with the file.

    Attributes:
        count: number of vectors that follow.
        dimension: numbers per vector.
        length: bytes of the line with its line feed.
    """

    count: int
    dimension: int
    length: int


def has_header(head: bytes) -> bool:
    """Whether the first line is two integers and nothing else."""
    return _match(head) is not None


def has_text_behind_header(head: bytes) -> bool:
    """Whether the first number of the first vector is text, as far as ``head`` shows."""
    _, _, rest = head.partition(b"\n")
    _, _, behind_token = rest.partition(b" ")
    first = behind_token[:HEADER_BYTES].lstrip(b" ")  # the token may be a blank
    return is_number(re.split(rb"[ \t\r\n]", first, maxsplit=1)[0])


def parse_header(head: bytes, path: object) -> Header:
    """Parse the first line.

    Raises:
        InputError: it is not a header, or it claims impossible sizes.
    """
    match = _match(head)
    if match is None:
        raise InputError(
            f"{path}: line 1 is {_first_line(head)[:40].decode('utf-8', 'replace')!r}, "
            "expected the number of vectors and the numbers in each",
            remedy=f"check that it is a word2vec file, or {AGAIN}",
        )
    longest = max(match.groups(), key=len)
    if len(longest) > _DIGITS:
        raise InputError(
            f"{path}: line 1 claims a size of {len(longest)} digits, limit {_DIGITS}", remedy=AGAIN
        )
    count, dimension = map(int, match.groups())
    check_dimension(dimension, f"{path}: line 1")
    if count == 0:
        raise InputError(f"{path}: line 1 claims 0 vectors", remedy=AGAIN)
    return Header(count, dimension, match.end() + 1)


def header_line(shape: tuple[int, int]) -> bytes:
    """The first line of a file with vectors of ``shape`` (V, d)."""
    return b"%d %d\n" % shape


def _match(head: bytes) -> re.Match[bytes] | None:
    return _HEADER.fullmatch(_first_line(head))


def _first_line(head: bytes) -> bytes:
    return head[:HEADER_BYTES].partition(b"\n")[0]


def check_claim(found: int, header: Header, path: object, *, more: bool = False) -> None:
    """Refuse a file that does not hold the number of vectors that its header claims.

    Args:
        found: vectors in the file.
        header: its first line.
        path: the file, for the message.
        more: whether the file holds more than ``found``, and it is not known how many.

    Raises:
        InputError: with both numbers.
    """
    if more or found != header.count:
        right = f'make its first line "{found} {header.dimension}"'
        raise InputError(
            f"{path}: line 1 claims {header.count:,} vectors, the file holds "
            f"{'more' if more else format(found, ',')}",
            remedy="download it again" if more else f"download it again, or, if none is missing, {right}",
        )
