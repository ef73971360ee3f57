"""Vectors of words from the rows of a fastText model: the mean of a word's row and those of its n-grams."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.fasttext.subwords import Subwords
from embcompress.data.vectors.base import Choice, Matrix, check_finite
from embcompress.data.vectors.gathering import blocks_with
from embcompress.progress import Progress
from embcompress.rows import Rows

_FEW = 1 << 18
"""Rows of words and n-grams that one pass over a small table looks up; of a larger one, as many as it has."""


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
    members, lengths, start = array("q"), array("q"), 0
    for number, (own, word) in enumerate(found, 1):
        of_word = [*([] if own is None else [own]), *subwords.rows(word)]
        members.extend(of_word)
        lengths.append(len(of_word))
        if len(members) >= max(_FEW, rows.shape[0]) or number == len(found):
            with np.errstate(over="ignore"):  # what float32 cannot hold is reported with the vector
                matrix[start:number] = _means(rows, members, lengths, progress)
            members, lengths, start = array("q"), array("q"), number
    for slot in np.flatnonzero(~np.isfinite(matrix).all(axis=1))[:1]:
        check_finite(matrix[slot], f"{path}: the vector of {found[slot][1].decode('utf-8', 'replace')!r}")
    return matrix


def _means(
    rows: Rows, members: array[int], lengths: array[int], progress: Progress
) -> NDArray[np.float64]:  # (len(lengths) × d)
    """The mean of each group of rows; ``members`` are the rows of all groups, one group after another."""
    places = np.array(members)
    group = np.repeat(np.arange(len(lengths)), lengths)
    order = np.argsort(places, kind="stable")
    places, group = places[order], group[order]
    sums = np.zeros((len(lengths), rows.shape[1]))
    for some, block, inside in blocks_with(rows, places, progress):
        _add(sums, group[some], block, inside)
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
        order = np.argsort(group[part], kind="stable")
        ordered = group[part][order]
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
        with np.errstate(invalid="ignore"):  # the sum of infinities is reported with the vector
            sums[ordered[firsts]] += np.add.reduceat(
                block[places[part][order]], firsts, axis=0, dtype=np.float64
            )
