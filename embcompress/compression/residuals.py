"""The error of a compressed table, measured block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from embcompress.dtypes import Floats
from embcompress.errors import EmbcompressError
from embcompress.linalg.metric import Metric
from embcompress.linalg.residual import Residuals, residual
from embcompress.methods.stats import Weights
from embcompress.progress import Progress
from embcompress.rows import Rows, wide


def measured_error(table: Rows, stand_in: Rows, progress: Progress, *, precise: bool = False) -> float:
    """Relative Frobenius error of ``stand_in`` against ``table``; see :func:`measured_errors`."""
    return measured_errors(table, stand_in, progress, precise=precise).plain.relative


Look = Callable[[int, Floats, Floats], None]
"""Called with the number of the first row of a block, its rows, and its decoded rows."""


def measured_errors(
    table: Rows,
    stand_in: Rows,
    progress: Progress,
    *,
    precise: bool = False,
    weights: Weights | None = None,
    metric: Metric | None = None,
    look: Look | None = None,
) -> Residuals:
    """The distance of ``stand_in`` from ``table``: with all rows alike, with weighted rows, in a metric.

    Args:
        table: what was compressed (V×d).
        stand_in: what it decodes to (V×d).
        progress: called as ``progress(stage, done, total)``.
        precise: compare in float64.
        weights: of each row (V), None for all alike.
        metric: over the columns, None for all alike.
        look: called with each block of both before they are compared.

    Raises:
        EmbcompressError: a decoded value is not finite.
    """
    original = wide(table) if precise else table

    def pairs() -> Iterator[tuple[Floats, Floats]]:
        for start, stop in table.spans():
            rows, differences = original.read(start, stop), stand_in.read(start, stop)
            if look is not None:
                look(start, rows, differences)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
                np.subtract(differences, rows, out=differences)
            yield rows, differences
            progress("verify", stop, table.shape[0])

    found = residual(pairs(), weights, metric)
    if not np.isfinite(found.plain.relative):
        raise EmbcompressError(f"a table of shape {list(table.shape)} decodes to NaN or infinity")
    return found
