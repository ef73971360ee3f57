"""The n-grams of words, by which fastText composes vectors, also of words that it has never seen.

Bojanowski et al. 2017, section 3.2; ``Dictionary::computeSubwords`` of fastText.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.vectors.fasttext.header import FastTextHeader, parse_header
from embcompress.errors import InputError

HEADER = "fasttext.header"
"""Tensor name of the model's header, and the byte after the input matrix."""

PRUNED = "fasttext.pruned"
"""Tensor name of the n-grams that a pruned model keeps: pairs of bucket and row."""

_BASIS, _PRIME, _MASK = 2166136261, 16777619, 0xFFFFFFFF
"""Constants of the 32-bit FNV-1a hash."""
_END_OF_SENTENCE = b"</s>"


class Subwords:
    """Finds the rows of the input matrix that belong to a word.

    The vector of a word is the mean of its own row, if it has one, and the rows of its n-grams.

    Args:
        header: the model's header.
        pruned: row by bucket of the n-grams that are kept; None if all are.
    """

    def __init__(self, header: FastTextHeader, pruned: Mapping[int, int] | None = None) -> None:
        self.words = header.words
        self._buckets, self._shortest, self._longest = header.buckets, header.shortest, header.longest
        self._pruned = pruned

    def rows(self, word: bytes) -> list[int]:
        """Rows of the n-grams of ``word``, as often as each occurs in it."""
        if word == _END_OF_SENTENCE or self._longest < 1 or self._buckets == 0:
            return []
        buckets = (number % self._buckets for number in self._hashes(b"<" + word + b">"))
        if self._pruned is None:
            return [self.words + bucket for bucket in buckets]
        return [self.words + self._pruned[bucket] for bucket in buckets if bucket in self._pruned]

    def _hashes(self, word: bytes) -> list[int]:
        """The hash of each n-gram; bytes are signed in it, and characters those of UTF-8."""
        begins = [place for place, byte in enumerate(word) if byte & 0xC0 != 0x80]
        signed = [byte if byte < 0x80 else byte | 0xFFFFFF00 for byte in word]
        ends = [*begins[1:], len(word)]
        found = []
        for first, begin in enumerate(begins):
            number, at = _BASIS, begin
            for length, end in enumerate(ends[first : first + self._longest], 1):
                while at < end:
                    number = (number ^ signed[at]) * _PRIME & _MASK
                    at += 1
                is_bracket = length == 1 and (begin == 0 or end == len(word))
                if length >= self._shortest and not is_bracket:
                    found.append(number)
        return found


def header_of(checkpoint: Checkpoint) -> FastTextHeader | None:
    """The header of a fastText model, dense or compressed; None if the checkpoint is something else.

    Raises:
        InputError: it is broken.
    """
    info = checkpoint.tensors.get(HEADER)
    if info is None:
        return None
    where = f"{checkpoint.path}: {HEADER}"
    if info.layout != "dense" or info.nbytes > 1024:
        raise InputError(f"{where} is no header of {info.nbytes:,} bytes", remedy="make the file again")
    return parse_header(b"".join(checkpoint.bytes_of(HEADER)), where)


def subwords_of(checkpoint: Checkpoint) -> Subwords | None:
    """The n-grams of a fastText model, dense or compressed; None if the checkpoint has none.

    Raises:
        InputError: its header is broken.
    """
    header = header_of(checkpoint)
    if header is None:
        return None
    if header.pruned is None:
        return Subwords(header)
    pairs = np.frombuffer(b"".join(checkpoint.bytes_of(PRUNED)), "<i4").reshape(-1, 2).tolist()
    return Subwords(header, {bucket: row for bucket, row in pairs if 0 <= row < header.pruned})
