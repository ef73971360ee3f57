"""Read the rows of chosen tokens from a stored matrix, for sources that keep tokens and rows apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

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
    steps = Steps(progress, STAGE, rows.nbytes)
    for start, stop in rows.spans():
        low, high = np.searchsorted(ascending, (start, stop))
        if low < high:
            first, last = int(ascending[low]), int(ascending[high - 1])
            block = rows.read(first, last + 1)
            with np.errstate(over="ignore"):  # float64 too large for float32 is reported below
                matrix[order[low:high]] = block[ascending[low:high] - first]
            if not np.isfinite(matrix[order[low:high]]).all():
                wrong = next(i for i in range(low, high) if not np.isfinite(matrix[order[i]]).all())
                check_finite(matrix[order[wrong]], f"{path}: row {ascending[wrong]:,}")
        steps(rows.dtype.nbytes((stop - start) * rows.shape[1]))
    return matrix
