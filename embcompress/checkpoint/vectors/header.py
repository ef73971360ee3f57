"""The first line of word2vec files, "V d": how many vectors of how many numbers follow."""

from __future__ import annotations

import re
from dataclasses import dataclass

from embcompress.checkpoint.vectors.base import AGAIN, check_dimension
from embcompress.checkpoint.vectors.textlines import is_number
from embcompress.errors import InputError

HEADER_BYTES = 256
"""Longest first line that is taken for a header."""

_HEADER = re.compile(rb"[ \t]*(\d+)[ \t]+(\d+)[ \t\r]*")
_DIGITS = 18
"""Most digits that are read: far beyond any file, and no work for a hostile one."""


@dataclass(frozen=True)
class Header:
    """What the first line claims; to be compared with the file.

    Attributes:
        count: vectors that follow.
        dimension: numbers in each.
        length: bytes of the line with its line feed.
    """

    count: int
    dimension: int
    length: int


def has_header(head: bytes) -> bool:
    """Whether the first line is two whole numbers and nothing else."""
    return _match(head) is not None


def has_text_behind_header(head: bytes) -> bool:
    """Whether the first vector's first number, as far as it is in ``head``, is written as text."""
    _, _, rest = head.partition(b"\n")
    _, _, behind_token = rest.partition(b" ")
    return is_number(re.split(rb"[ \t\r\n]", behind_token[:HEADER_BYTES], maxsplit=1)[0])


def parse_header(head: bytes, path: object) -> Header:
    """The claims of the first line.

    Raises:
        InputError: it is no header, or claims sizes that cannot be.
    """
    match = _match(head)
    if match is None:
        raise InputError(
            f"{path}: line 1 is {_first_line(head)[:40].decode('utf-8', 'replace')!r}, "
            "expected the number of vectors and the numbers in each",
            remedy=f"see that it is a word2vec file, or {AGAIN}",
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
    """The first line of a file of ``shape`` vectors and numbers."""
    return b"%d %d\n" % shape


def _match(head: bytes) -> re.Match[bytes] | None:
    return _HEADER.fullmatch(_first_line(head))


def _first_line(head: bytes) -> bytes:
    return head[:HEADER_BYTES].partition(b"\n")[0]


def check_claim(found: int, claimed: int, path: object, *, more: bool = False) -> None:
    """Refuse a file that holds another number of vectors than its header claims.

    Raises:
        InputError: with both numbers.
    """
    if more or found != claimed:
        raise InputError(
            f"{path}: line 1 claims {claimed:,} vectors, the file holds "
            f"{'more' if more else format(found, ',')}",
            remedy="download it again, or correct its first line",
        )
