"""Token ids of many texts without padding, and batches of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_BATCH = 2048
"""Texts encoded at a time."""

_POOL = 50
"""Batches sorted by length together: enough to leave little padding, few enough to stay random."""


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, stored one after another.

    Attributes:
        tokens: the ids of all texts (N).
        lengths: number of ids of each text (texts), at least 1.
    """

    tokens: Ids
    lengths: Ids

    @classmethod
    def of(cls, texts: Iterable[list[int]]) -> Encoded:
        """Join lists of ids."""
        rows = list(texts)
        tokens = np.fromiter((token for row in rows for token in row), np.int64)
        return cls(tokens, np.fromiter(map(len, rows), np.int64, len(rows)))

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def starts(self) -> Ids:
        """Index in ``tokens`` at which each text begins."""
        return np.cumsum(self.lengths) - self.lengths

    def padded(self, rows: Ids, padding: int) -> Ids:
        """The texts ``rows`` as a matrix (rows × the longest), filled up with ``padding``."""
        lengths = self.lengths[rows]
        columns = np.arange(lengths.max(initial=1))
        places = self.starts[rows][:, None] + columns
        inside = columns < lengths[:, None]
        return np.where(inside, self.tokens[np.minimum(places, len(self.tokens) - 1)], padding)


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists that are encoded at a time. They may be an iterator, and are not kept."""
    remaining = iter(texts)
    while batch := [*itertools.islice(remaining, _BATCH)]:
        yield batch


def shuffled_batches(lengths: Ids, size: int, rng: np.random.Generator) -> list[Ids]:
    """Indices for one epoch, in random batches of texts of similar length.

    Every index appears exactly once; only the last batch of the last pool may be smaller than ``size``.
    """
    order = rng.permutation(len(lengths))
    batches: list[Ids] = []
    for start in range(0, len(order), size * _POOL):
        pool = order[start : start + size * _POOL]
        batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], size)
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: Ids, size: int, most: int = 1 << 16) -> list[Ids]:
    """All indices in batches of texts of similar length; the result is always the same.

    Args:
        lengths: number of ids of each text.
        size: texts per batch; fewer if they are long.
        most: ids per batch, padding included; a single text may have more.
    """
    order = np.argsort(lengths, kind="stable")
    batches: list[Ids] = []
    start = 0
    while start < len(order):
        longest = np.maximum(lengths[order[start : start + size]], 1)
        fitting = int((longest * np.arange(1, len(longest) + 1) <= most).sum())
        batches.append(order[start : start + max(fitting, 1)])
        start += len(batches[-1])
    return batches


def _cut(rows: Ids, size: int) -> list[Ids]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
