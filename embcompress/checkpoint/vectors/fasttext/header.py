"""The first 92 bytes of a fastText model: arguments of its training, and sizes of its dictionary.

Layout: ``Args::save`` and ``Dictionary::save`` in https://github.com/facebookresearch/fastText (src/).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from embcompress.checkpoint.vectors.base import check_dimension
from embcompress.errors import InputError

MAGIC = (793712314).to_bytes(4, "little")
VERSIONS = (11, 12)
"""Versions of the format that are read. Files older than version 11 have no magic bytes."""

_LAYOUT = struct.Struct("<2i12id3i2q")
HEADER_BYTES = _LAYOUT.size

LONGEST_NGRAM = 64
"""Most characters of an n-gram (``-maxn``) that are read; 6 is the default."""

_SUPERVISED = 3
_AGAIN = "download it again, or save it again with fastText"


@dataclass(frozen=True)
class FastTextHeader:
    """What the header says that matters for reading.

    Attributes:
        dimension: numbers per vector, d.
        words: entries of the dictionary that are words.
        labels: entries that are labels, which follow the words.
        buckets: rows for n-grams, which follow those of the words in the input matrix.
        shortest: characters of the shortest n-gram of a word.
        longest: characters of the longest one; 0 if words have none.
        pruned: n-grams that are kept in a quantized model that drops the others; None if all are.
        is_supervised: whether the model predicts labels.
    """

    dimension: int
    words: int
    labels: int
    buckets: int
    shortest: int
    longest: int
    pruned: int | None
    is_supervised: bool

    @property
    def rows(self) -> int:
        """Rows of the input matrix."""
        return self.words + (self.buckets if self.pruned is None else self.pruned)


def parse_header(data: bytes, where: object) -> FastTextHeader:
    """Read the header and check it.

    Args:
        data: the first bytes of a model.
        where: name of the file, for messages.

    Raises:
        InputError: it is cut short, of another version, or claims impossible sizes.
    """
    if len(data) < HEADER_BYTES:
        raise InputError(
            f"{where}: is cut short after {len(data)} bytes, a fastText model begins with {HEADER_BYTES}",
            remedy=_AGAIN,
        )
    magic, version, *arguments, size, words, labels, _, pruned = _LAYOUT.unpack_from(data)
    dimension, buckets, shortest, longest = (arguments[place] for place in (0, 8, 9, 10))
    is_supervised = arguments[7] == _SUPERVISED
    if magic.to_bytes(4, "little", signed=True) != MAGIC or version not in VERSIONS:
        raise InputError(
            f"{where}: a fastText model of version {version}, "
            f"accepted are {' and '.join(map(str, VERSIONS))}",
            remedy="save it again with a current fastText",
        )
    check_dimension(dimension, str(where))
    if words < 1 or labels < 0 or size != words + labels or buckets < 0 or pruned < -1:
        raise InputError(
            f"{where}: claims {size:,} entries, {words:,} words, {labels:,} labels, {buckets:,} buckets and "
            f"{pruned:,} kept n-grams, which do not fit each other",
            remedy=_AGAIN,
        )
    if longest > LONGEST_NGRAM:
        raise InputError(
            f"{where}: n-grams of up to {longest:,} characters, limit {LONGEST_NGRAM}",
            remedy="train it with a smaller -maxn",
        )
    if version == VERSIONS[0] and is_supervised:
        longest = 0  # as fastText reads it
    kept = None if pruned < 0 else pruned
    return FastTextHeader(dimension, words, labels, buckets, shortest, longest, kept, is_supervised)
