"""Opens a written output again and checks it, before it is published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.compression.digests import sealed
from embcompress.compression.outputs import BAD_DISK
from embcompress.compression.plan import OutputPlan
from embcompress.compression.residuals import measured_errors
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, TargetError
from embcompress.methods.decoding import decoded
from embcompress.methods.planning import TablePlan, Target
from embcompress.progress import Progress


def check_tables(stage: Path, plan: OutputPlan, progress: Progress) -> tuple[TableRecord, ...]:
    """Measure the error of each written table, and compute the SHA-256 of its parts.

    Args:
        stage: the written output, not published yet.
        plan: the plan that was carried out.
        progress: called as ``progress("verify", rows done, rows in all)``.

    Returns:
        One record per table, with both.

    Raises:
        TargetError: the type of the factors holds their values worse than predicted, or the error is
            above the one asked for.
        EmbcompressError: the error is above the predicted one for another reason.
    """
    with open_checkpoint(stage) as written, ThreadPoolExecutor(1) as executor:
        seals = [executor.submit(sealed, written, record) for record in plan.description.tables]
        measured = [*_measured(written, plan, progress)]
        return tuple(
            replace(
                seal.result(),
                relative_error=table.relative_error,
                weighted_error=table.weighted_error,
                metric_error=table.metric_error,
            )
            for seal, table in zip(seals, measured, strict=True)
        )


def _measured(written: Checkpoint, plan: OutputPlan, progress: Progress) -> Iterator[TableRecord]:
    """The planned record of each table, with measured errors in the place of the predicted ones."""
    for table_plan, record in zip(plan.tables, plan.description.tables, strict=True):
        rows, stats = table_plan.table.rows, table_plan.stats
        approximation = decoded(written, record, precise=stats.precise, finite=False)
        errors = measured_errors(
            rows,
            approximation,
            progress,
            precise=stats.precise,
            weights=stats.weights,
            metric=stats.metric,
        )
        _check_error(table_plan, errors.seen.relative, plan.request.target)
        yield replace(
            record,
            relative_error=errors.plain.relative,
            weighted_error=None if stats.weights is None else errors.weighted.relative,
            metric_error=None if stats.metric is None else errors.seen.relative,
        )


def _check_error(plan: TablePlan, error: float, target: Target) -> None:
    """Compare the measured error of a table with the predicted one, and with the one asked for.

    Args:
        plan: the plan of the table.
        error: relative Frobenius error, weighted if the rows have weights, in the metric if there is one.
        target: what the user asks for.

    Raises:
        TargetError, EmbcompressError: see :func:`check_tables`.
    """
    layout, name = plan.layout, plan.table.name
    # Four roundoffs are added for tables whose only error is rounding, and four of the smallest float32
    # numbers for tables whose values are near zero.
    allowed = (1 + layout.tolerance) * layout.predicted_error + 4 * layout.dtype.unit_roundoff
    # Products of r and d terms round as well, by about √n·u (Higham & Mary 2019, theorem 3.1). It matters
    # only where the factors have no more roundoff than the arithmetic.
    arithmetic = DTYPES["F64" if plan.stats.precise else "F32"].unit_roundoff
    if layout.dtype.unit_roundoff <= arithmetic:
        allowed += 4 * math.sqrt(plan.table.rows.shape[1]) * arithmetic
    allowed += 4 * DTYPES["F32"].smallest / plan.stats.typical if plan.stats.typical else 0
    if error > allowed:
        message = (
            f"{name}: the written parts have error {error:.4g}, predicted was {layout.predicted_error:.4g}; "
            "nothing was kept"
        )
        if layout.dtype.bits < 32:
            raise TargetError(
                message,
                remedy=f"some values are too small for {layout.dtype.torch}: use --split-scale even or "
                "--dtype float32",
            )
        raise EmbcompressError(message, remedy=BAD_DISK)
    if target.kind == "max_error" and error > target.value:
        raise TargetError(
            f"{name}: the written parts have error {error:.6g}, max_error is {target.value:g}",
            remedy="allow a little more, or store the factors in a wider --dtype",
        )


def check_whole(stage: Path, described: Description, target: Target) -> int:
    """Open the finished output once more.

    Returns:
        The bytes of its weight files.

    Raises:
        TargetError: they are more than ``max_size``.
        EmbcompressError: the record does not read back as it was written.
    """
    with open_checkpoint(stage) as written:
        if written.description != described:
            raise EmbcompressError(
                f"{stage.name}: its record does not read back as it was written; nothing was kept",
                remedy=BAD_DISK,
            )
        size = written.size
    if target.kind == "max_size":
        check_size(size, int(target.value))
    return size


def check_size(size: int, max_size: int) -> None:
    """Refuse an output that is larger than allowed.

    Raises:
        TargetError: with what to ask for instead.
    """
    if size > max_size:
        raise TargetError(
            f"the output would take {size:,} bytes, max_size is {max_size:,}",
            remedy=f"ask for {2 * max_size - size:,}",
        )
