"""Read the rows of chosen tokens from a stored matrix, for sources that keep tokens and rows apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.stream import STAGE
from embcompress.data.vectors.base import Choice, Matrix, check_finite
from embcompress.progress import Progress, Steps
from embcompress.rows import Rows


def gather(
    rows: Rows, tokens: Iterable[tuple[int, str]], choice: Choice, path: Path, progress: Progress
) -> Matrix:  # (kept × dimension)
    """The rows of the kept tokens, read block by block; blocks without any are skipped.

    Args:
        rows: the stored matrix.
        tokens: pairs of row number and token.
        choice: which tokens are kept.
        path: the file, for messages.
        progress: called with the bytes of the blocks.

    Raises:
        InputError: a kept row holds a number that is not finite.
    """
    places: list[int] = []
    for place, token in tokens:
        slot = choice.slot(token)
        if slot == len(places):
            places.append(place)
        elif slot is not None:
            places[slot] = place
    order = np.argsort(np.array(places, np.int64), kind="stable")
    ascending = np.array(places, np.int64)[order]
    matrix = np.empty((len(places), rows.shape[1]), np.float32)
    for some, block, inside in blocks_with(rows, ascending, progress):
        with np.errstate(over="ignore"):  # float64 too large for float32 is reported below
            matrix[order[some]] = block[inside]
        if not np.isfinite(matrix[order[some]]).all():
            wrong = next(i for i in range(some.start, some.stop) if not np.isfinite(matrix[order[i]]).all())
            check_finite(matrix[order[wrong]], f"{path}: row {ascending[wrong]:,}")
    return matrix


def blocks_with(
    rows: Rows, places: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[slice, NDArray[np.floating], NDArray[np.int64]]]:
    """Read the blocks of a matrix that hold some of its rows; others are skipped.

    Args:
        rows: the stored matrix.
        places: numbers of the rows, ascending; the same one may be there several times.
        progress: called with the bytes of all blocks.

    Yields:
        Which of ``places`` are in the block, its rows, and where in it these are.
    """
    steps = Steps(progress, STAGE, rows.nbytes)
    for start, stop in rows.spans():
        low, high = map(int, np.searchsorted(places, (start, stop)))
        if low < high:
            first, last = int(places[low]), int(places[high - 1])
            yield slice(low, high), rows.read(first, last + 1), places[low:high] - first
        steps(rows.dtype.nbytes((stop - start) * rows.shape[1]))
