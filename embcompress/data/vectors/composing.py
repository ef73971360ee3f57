"""Vectors of words from the rows of a fastText model: the mean of a word's row and those of its n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.fasttext.subwords import Subwords
from embcompress.checkpoint.vectors.stream import STAGE
from embcompress.data.vectors.base import Choice, Matrix, check_finite
from embcompress.progress import Progress, Steps
from embcompress.rows import Rows

_AT_A_TIME = 1 << 22
"""Rows of words and n-grams that one pass over the table looks up, which bounds the memory for them."""


def compose(
    rows: Rows,
    tokens: Iterable[tuple[int, bytes]],
    subwords: Subwords,
    choice: Choice,
    path: Path,
    progress: Progress,
) -> Matrix:  # (kept × d)
    """The vectors of the kept tokens, as fastText computes them.

    A wanted token that the model does not know is composed of its n-grams alone. If it has none, it gets the
    vector of the first token that equals it in lower case.

    Args:
        rows: the model's input matrix.
        tokens: pairs of row number and word.
        subwords: finds the rows of n-grams.
        choice: which tokens are kept.
        path: the file, for messages.
        progress: called with the bytes of the blocks that are read.

    Raises:
        InputError: a vector holds a number that is not finite.
    """
    found: list[tuple[int | None, bytes]] = []
    for row, token in tokens:
        slot = choice.slot(token.decode("utf-8", "replace"))
        if slot is not None:
            found[slot : slot + 1] = [(row, token)]
    for wanted in choice.unknown:
        word = wanted.encode("utf-8", "replace")
        if subwords.rows(word):
            slot = choice.assign(wanted)
            found[slot : slot + 1] = [(None, word)]
    matrix = np.zeros((len(found), rows.shape[1]), np.float32)
    members: list[int] = []
    lengths: list[int] = []
    start = 0
    for number, (own, word) in enumerate(found, 1):
        of_word = [*([] if own is None else [own]), *subwords.rows(word)]
        members += of_word
        lengths.append(len(of_word))
        if len(members) >= _AT_A_TIME or number == len(found):
            with np.errstate(over="ignore"):  # what float32 cannot hold is reported with the vector
                matrix[start:number] = _means(rows, members, lengths, progress)
            members, lengths, start = [], [], number
    for slot in np.flatnonzero(~np.isfinite(matrix).all(axis=1))[:1]:
        check_finite(matrix[slot], f"{path}: the vector of {found[slot][1].decode('utf-8', 'replace')!r}")
    return matrix


def _means(
    rows: Rows, members: Sequence[int], lengths: Sequence[int], progress: Progress
) -> NDArray[np.float64]:  # (len(lengths) × d)
    """The mean of each group of rows; ``members`` are the rows of all groups, one group after another."""
    places = np.array(members, np.int64)
    group = np.repeat(np.arange(len(lengths)), lengths)
    order = np.argsort(places, kind="stable")
    places, group = places[order], group[order]
    sums = np.zeros((len(lengths), rows.shape[1]))
    steps = Steps(progress, STAGE, rows.nbytes)
    for start, stop in rows.spans():
        low, high = np.searchsorted(places, (start, stop))
        if low < high:
            first, last = int(places[low]), int(places[high - 1])
            block = rows.read(first, last + 1)
            _add(sums, group[low:high], block, places[low:high] - first)
        steps(rows.dtype.nbytes((stop - start) * rows.shape[1]))
    return sums / np.maximum(1, lengths)[:, None]


def _add(
    sums: NDArray[np.float64],
    group: NDArray[np.int64],
    block: NDArray[np.floating],
    places: NDArray[np.int64],
) -> None:
    """Add rows of ``block`` to the sums of their groups, as many at a time as the block has."""
    for start in range(0, len(places), len(block)):
        part = slice(start, start + len(block))
        with np.errstate(invalid="ignore"):  # the sum of infinities is reported with the vector
            np.add.at(sums, group[part], block[places[part]])
