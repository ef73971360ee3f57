"""Errors of compressed tables, measured again long after they were recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.rows import rows_of
from embcompress.compression.residuals import measured_errors
from embcompress.dtypes import DTYPES, Floats
from embcompress.errors import EmbcompressError
from embcompress.methods.decoding import decoded
from embcompress.methods.planning import PRECISE_BELOW
from embcompress.methods.stats import Weights
from embcompress.progress import Progress
from embcompress.reports.verification import Difference
from embcompress.rows import count_nonfinite, filled_up
from embcompress.verification.records import has_one_table

_TOLERANCE = 1e-5
"""Share of itself by which an error may be another: sums run in another order on other machines."""

_ROUNDING = 2.0**-22
"""The same of the table's norm, where rounding is all there is: four roundoffs of float32."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one table.

    Attributes:
        plain: relative error with all rows alike; None where it was not measured.
        weighted: with the rows weighted.
        differences: from what its record says.
    """

    plain: float | None = None
    weighted: float | None = None
    differences: tuple[Difference, ...] = ()


def measured_alone(written: Checkpoint, record: TableRecord, progress: Progress) -> Measured:
    """Decode a table without its original: all of it must be finite."""
    if not has_one_table(record):
        return Measured()
    try:
        rows = decoded(written, record)
        for start, stop in rows.spans():
            with _quiet():
                bad = np.flatnonzero(~np.isfinite(rows.read(start, stop)).all(axis=1))
            if bad.size:
                return _wrong(record, f"row {start + int(bad[0]):,} decodes to NaN or infinity")
            progress("verify", stop, rows.shape[0])
    except EmbcompressError:
        pass  # what is no table of that shape is told where its parts are looked at
    return Measured()


def measured_again(
    original: Checkpoint,
    written: Checkpoint,
    record: TableRecord,
    weights: Weights | None,
    progress: Progress,
) -> Measured:
    """Compare the errors of a table with those of its record, and its rows of zeros with the original's.

    What was trained afterwards has no error that was recorded, and is not measured.

    Args:
        original: holds the dense table.
        written: holds the parts.
        record: of the table.
        weights: of each row (V); None where they are not known.
        progress: called as ``progress(stage, done, total)``.
    """
    if record.trained:
        return Measured()
    precise = record.relative_error < PRECISE_BELOW
    dense, zeros = rows_of(original, record.name), _Zeros()
    if record.nonfinite:
        count, dense = count_nonfinite(dense), filled_up(dense)
        if count != record.nonfinite:
            return _wrong(
                record,
                f"{count:,} numbers of the original are not finite",
                f"{record.nonfinite:,} by its record",
            )
    try:
        stand_in = decoded(written, record, precise=precise)
    except EmbcompressError:
        return Measured()  # see above
    try:
        with _quiet():
            errors = measured_errors(
                dense, stand_in, progress, precise=precise, weights=weights, look=zeros.look
            )
    except EmbcompressError as error:
        return _wrong(record, error.message)
    # Next to zero all numbers are multiples of the smallest one, which may be all that a table has.
    typical = math.sqrt(errors.plain.table / math.prod(dense.shape))
    slack = _ROUNDING + (4 * DTYPES["F32"].smallest / typical if typical else 0)
    plain, weighted = errors.plain.relative, errors.weighted.relative if weights is not None else None
    found = [
        Difference(record.name, f"{what} {measured:.6g}", f"{recorded:.6g} by its record")
        for what, measured, recorded in (
            ("relative error", plain, record.relative_error),
            ("weighted error", weighted, record.weighted_error),
        )
        if measured is not None
        and recorded is not None
        and abs(measured - recorded) > _TOLERANCE * recorded + slack
    ]
    if zeros.count:
        found.append(
            Difference(record.name, f"row {zeros.first:,} is not zero ({zeros.count:,} such rows)", "zero")
        )
    return Measured(plain, weighted, tuple(found))


def _quiet() -> np.errstate:
    """Damaged parts may hold anything: what comes of it is looked at."""
    return np.errstate(over="ignore", invalid="ignore")


def _wrong(record: TableRecord, found: str, expected: str = "") -> Measured:
    return Measured(differences=(Difference(record.name, found, expected),))


class _Zeros:
    """Counts the rows that are all zero in a table and not in what stands for it."""

    def __init__(self) -> None:
        self.count, self.first = 0, -1

    def look(self, start: int, rows: Floats, stand_in: Floats) -> None:
        """Take in a block; see ``common.measured_errors``."""
        bad = np.flatnonzero(~rows.any(axis=1) & stand_in.any(axis=1))
        if bad.size and not self.count:
            self.first = start + int(bad[0])
        self.count += bad.size
