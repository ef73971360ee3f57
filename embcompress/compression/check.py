"""What was written, opened again and measured before it is published."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.compression.digests import sealed
from embcompress.compression.residuals import measured_errors
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, TargetError
from embcompress.methods.decoding import decoded
from embcompress.methods.planning import TablePlan, Target
from embcompress.progress import Progress


def check_tables(
    stage: Path, plans: Sequence[TablePlan], predicted: Description, target: Target, progress: Progress
) -> tuple[TableRecord, ...]:
    """Open what was written, measure each table's error on it, and take digests of its parts.

    Returns:
        The records with both.

    Raises:
        TargetError: a narrow type holds the values worse than foretold, or than asked for.
        EmbcompressError: the error is not the one foretold, and the type is not why.
    """
    measured = []
    with open_checkpoint(stage) as written, ThreadPoolExecutor(1) as executor:
        seals = [executor.submit(sealed, written, record) for record in predicted.tables]
        for plan, record in zip(plans, predicted.tables, strict=True):
            stand_in = decoded(written, record, precise=plan.stats.precise)
            errors = measured_errors(
                plan.table.rows, stand_in, progress, precise=plan.stats.precise, weights=plan.stats.weights
            )
            error = errors.weighted.relative  # the one that was foretold
            layout = plan.layout
            # Four roundoffs more, for where rounding is all there is, also next to zero.
            allowed = (1 + layout.tolerance) * layout.predicted_error + 4 * layout.dtype.unit_roundoff
            allowed += 4 * DTYPES["F32"].smallest / plan.stats.typical if plan.stats.typical else 0
            if error > allowed:
                narrow = layout.dtype.bits < 32
                raise (TargetError if narrow else EmbcompressError)(
                    f"{record.name}: the written factors have error {error:.4g}, foretold were "
                    f"{layout.predicted_error:.4g}, so nothing was kept",
                    remedy="some values are too small for float16: --split-scale even or --dtype float32"
                    if narrow
                    else "run again, and look after the disk if it comes back",
                )
            if target.kind == "max_error" and error > target.value:
                raise TargetError(
                    f"{record.name}: the written factors have error {error:.6g}, max_error is "
                    f"{target.value:g}",
                    remedy="ask for a little less, or store the factors in a wider --dtype",
                )
            weighted = None if plan.stats.weights is None else error
            measured.append((errors.plain.relative, weighted))
        records = [seal.result() for seal in seals]
    return tuple(
        replace(record, relative_error=plain, weighted_error=weighted)
        for record, (plain, weighted) in zip(records, measured, strict=True)
    )


def check_whole(stage: Path, described: Description, max_size: int | None) -> int:
    """Open the finished output once more; its size in bytes."""
    with open_checkpoint(stage) as written:
        if written.description != described:
            raise EmbcompressError(f"{stage.name}: its description does not read back, so nothing was kept")
        size = written.size
    if max_size is not None and size > max_size:
        raise TargetError(
            f"the model would take {size:,} bytes, max_size is {max_size:,}",
            remedy=f"ask for {2 * max_size - size:,}",
        )
    return size
