"""Errors of compressed tables, measured again and compared with the recorded ones."""

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

_TOLERANCE = 1e-5
"""Share of itself by which an error may differ: other machines add in another order."""

_ROUNDING = 2.0**-22
"""Share of the table's norm by which it may differ as well, for tables with no error but rounding: four
roundoffs of float32."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one table.

    Attributes:
        plain: relative Frobenius error with all rows alike; None if it was not measured.
        weighted: the same with weighted rows.
        differences: between what was measured and the record.
    """

    plain: float | None = None
    weighted: float | None = None
    differences: tuple[Difference, ...] = ()


def measured_alone(written: Checkpoint, record: TableRecord, progress: Progress) -> Measured:
    """Decode a table without its original: every number must be finite."""
    if not record.is_one_table:
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
        pass  # parts that are no such table are reported by ``part_differences``
    return Measured()


def measured_again(
    original: Checkpoint,
    written: Checkpoint,
    record: TableRecord,
    weights: Weights | None,
    progress: Progress,
) -> Measured:
    """Compare the errors of a table with the recorded ones, and its zero rows with those of the original.

    A table that its record calls trained has no recorded error: it is measured, and compared with nothing.

    Args:
        original: holds the dense table.
        written: holds the parts.
        record: the table's.
        weights: of each row (V); None if they are not known.
        progress: called as ``progress(stage, done, total)``.
    """
    precise = record.relative_error < PRECISE_BELOW
    dense, zeros = rows_of(original, record.name), _Zeros()
    if record.nonfinite:
        count, dense = count_nonfinite(dense), filled_up(dense)
        if count != record.nonfinite and not record.trained:
            return _wrong(
                record,
                f"{count:,} numbers of the original are NaN or infinite",
                f"{record.nonfinite:,} by its record",
            )
    try:
        stand_in = decoded(written, record, precise=precise)
    except EmbcompressError:
        return Measured()  # reported by ``part_differences``
    try:
        with _quiet():
            errors = measured_errors(
                dense, stand_in, progress, precise=precise, weights=weights, look=zeros.look
            )
    except EmbcompressError as error:
        return _wrong(record, error.message)
    plain, weighted = errors.plain.relative, errors.weighted.relative if weights is not None else None
    if record.trained:
        return Measured(plain, weighted)
    # Values next to zero are rounded to multiples of the smallest one; a table may hold no others.
    typical = math.sqrt(errors.plain.table / math.prod(dense.shape))
    slack = _ROUNDING + (4 * DTYPES["F32"].smallest / typical if typical else 0)
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
    """Damaged parts may hold any numbers; what they decode to is checked afterwards."""
    return np.errstate(over="ignore", invalid="ignore")


def _wrong(record: TableRecord, found: str, expected: str = "") -> Measured:
    return Measured(differences=(Difference(record.name, found, expected),))


class _Zeros:
    """Counts the rows that are all zero in a table and are not in its decoded form."""

    def __init__(self) -> None:
        self.count, self.first = 0, -1

    def look(self, start: int, rows: Floats, stand_in: Floats) -> None:
        """Look at one block; see ``compression.residuals.measured_errors``."""
        bad = np.flatnonzero(~rows.any(axis=1) & stand_in.any(axis=1))
        if bad.size and not self.count:
            self.first = start + int(bad[0])
        self.count += bad.size
