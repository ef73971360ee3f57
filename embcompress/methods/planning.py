"""From what the user asks (a rank, a size, an error) to the rank of each table, before the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.dtypes import DType, Floats
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.linalg.gram import gram
from embcompress.linalg.spectrum import Spectrum, spectrum
from embcompress.methods.base import Method
from embcompress.tables import Rows, Table

TARGETS = ("rank", "ratio", "energy", "max_error", "max_size")
"""The kinds of target; exactly one is given."""

PRECISE_BELOW = 0.02
"""Relative error below which a float32 Gram matrix (exact to 1e-7 of the largest eigenvalue, so
to 3e-4 in a relative error) no longer foretells the error to 1e-5 of itself, and float64 is used."""

Weights = NDArray[np.float64]
"""How much each row of a table counts (V), all above 0."""

Advance = Callable[[int], None]
"""Called with the number of rows read."""


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Attributes:
        kind: one of ``TARGETS``.
        value: a rank; a fraction of bytes removed; a share of the squared singular values kept; a
            relative Frobenius error; or bytes of the written model.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in TARGETS:
            raise UsageError(f"target {self.kind!r}", remedy=f"choose from {', '.join(TARGETS)}")
        if not isinstance(self.value, int | float):
            raise UsageError(f"{self.kind} {self.value!r}", remedy="give a number")
        if self.kind in {"rank", "max_size"}:
            if not self.value >= 1 or self.value % 1:
                raise UsageError(f"{self.kind} {self.value}", remedy="give a whole number from 1 on")
        elif not 0 < self.value < 1 and not (self.kind == "energy" and self.value == 1):
            raise UsageError(f"{self.kind} {self.value}", remedy="give a fraction between 0 and 1")


@dataclass(frozen=True)
class TablePlan:
    """What will be done with one table.

    Attributes:
        table: the table.
        method: how it is compressed.
        rank: components kept.
        dtype: element type of the stored factors.
        bytes_before: bytes of the dense table, stored once.
        bytes_after: bytes of what replaces it.
        predicted_error: relative Frobenius error of what replaces it.
        spectrum: the spectrum that says so.
        weights: of each row (V), None for all alike; error and spectrum are weighted by them.
        precise: whether the work needs float64.
    """

    table: Table
    method: Method
    rank: int
    dtype: DType
    bytes_before: int
    bytes_after: int
    predicted_error: float
    spectrum: Spectrum = field(repr=False)
    precise: bool
    weights: Weights | None = field(default=None, repr=False)

    @property
    def ratio(self) -> float:
        """Fraction of the table's bytes removed."""
        return 1 - self.bytes_after / self.bytes_before


def break_even(method: Method, rows: Rows, dtype: DType) -> int:
    """Largest rank that takes fewer bytes than the table, at most min(V, d); 0 where none does."""
    return _largest_rank(method, rows, dtype, rows.nbytes - 1)


def measure_spectrum(
    rows: Rows,
    name: str,
    *,
    precise: bool = False,
    advance: Advance | None = None,
    weights: Weights | None = None,
) -> Spectrum:
    """The spectrum of a table E, in one pass; with row weights w that of Eᵀ diag(w) E.

    The top eigenvectors V_r of the weighted matrix minimize Σ_i w_i ‖E_i − E_i V_r V_rᵀ‖²: the rows
    are those of diag(√w) E, whose best approximation of rank r they give (Eckart & Young 1936).

    Raises:
        InputError: the table holds NaN, infinity, or values whose squares overflow.
    """
    roots = None if weights is None else np.sqrt(weights)

    def blocks() -> Iterator[Floats]:
        for start, stop in rows.spans():
            block = rows.read(start, stop)
            if roots is not None:
                block = block.astype(np.float64) if precise else block
                block *= roots[start:stop, None].astype(block.dtype)
            yield block
            if advance:
                advance(stop - start)

    found = gram(blocks(), rows.shape[1], precise=precise)
    if found.bad_rows:
        raise InputError(
            f"{name}: {found.bad_rows:,} of {rows.shape[0]:,} rows hold NaN or infinity, "
            f"the first is row {found.first_bad_row:,}",
            remedy="repair the table first",
        )
    if not found.matrix.trace() < float("inf"):
        raise InputError(f"{name}: values beyond 1e150 cannot be squared", remedy="scale the table first")
    return spectrum(found.matrix, rows.shape[0])


def plan_tables(
    tables: Sequence[Table],
    target: Target,
    method: Method,
    dtype: DType | None = None,
    *,
    budget: int = 0,
    advance: Advance | None = None,
    weights: Weights | None = None,
) -> tuple[TablePlan, ...]:
    """Choose the rank of each table.

    What the sizes decide is decided before a row is read, so that a target out of reach is
    refused at once.

    Args:
        tables: the tables to compress.
        target: what is asked for; it holds for each table, ``max_size`` for all together.
        method: how.
        dtype: element type of the factors, None for the table's own.
        budget: bytes all factors may take together, for the target ``max_size``.
        advance: called with the number of rows read.
        weights: of each row of each table (V); targets on energy and error are then weighted.

    Raises:
        TargetError: the target is out of reach, or would make a table larger.
        InputError: a table cannot be read.
    """
    share = budget / sum(t.rows.nbytes for t in tables)
    by_size = [_rank_by_size(t, target, method, dtype or t.rows.dtype, share) for t in tables]
    plans = []
    for table, rank in zip(tables, by_size, strict=True):
        stored = dtype or table.rows.dtype
        found = measure_spectrum(table.rows, table.name, advance=advance, weights=weights)
        chosen = rank or _rank_by_error(found, target, method, stored, table)
        precise = float(found.relative_errors()[chosen]) < PRECISE_BELOW
        if precise:
            found = measure_spectrum(table.rows, table.name, precise=True, advance=advance, weights=weights)
            chosen = rank or _rank_by_error(found, target, method, stored, table)
        _check_rank(chosen, table, method, stored)
        plans.append(
            TablePlan(
                table=table,
                method=method,
                rank=chosen,
                dtype=stored,
                bytes_before=table.rows.nbytes,
                bytes_after=method.nbytes(table.rows.shape, chosen, stored),
                predicted_error=method.predicted_error(found, chosen, stored),
                spectrum=found,
                precise=precise,
                weights=weights,
            )
        )
    return tuple(plans)


def rank_for_ratio(method: Method, rows: Rows, dtype: DType, ratio: float) -> int:
    """Largest rank that removes at least the fraction ``ratio`` of the table's bytes; 0 where none does."""
    # The fraction a user types is decimal: 0.9 of 1000 bytes leaves 100, not 99.99999999999997.
    return _largest_rank(method, rows, dtype, int((1 - ratio) * rows.nbytes + 1e-6))


def _largest_rank(method: Method, rows: Rows, dtype: DType, limit: int) -> int:
    """Largest rank up to min(V, d) that takes at most ``limit`` bytes; bytes grow with the rank."""
    low, high = 0, min(rows.shape)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if method.nbytes(rows.shape, middle, dtype) <= limit else (low, middle - 1)
    return low


def _rank_by_size(table: Table, target: Target, method: Method, dtype: DType, share: float) -> int:
    """The rank where shapes alone decide it, checked; 0 where the spectrum is needed."""
    rows = table.rows
    if target.kind == "rank":
        rank = int(target.value)
        _check_rank(rank, table, method, dtype)
        return rank
    if target.kind not in {"ratio", "max_size"}:
        return 0
    ratio = target.value if target.kind == "ratio" else 1 - share
    rank = rank_for_ratio(method, rows, dtype, ratio) if ratio < 1 else 0
    if rank < 1:
        smallest = method.nbytes(rows.shape, 1, dtype)
        raise TargetError(
            f"{table.name} {list(rows.shape)}: a ratio of {ratio:.4g} leaves less than rank 1, "
            f"which takes {smallest:,} bytes (ratio {1 - smallest / rows.nbytes:.4g})",
            remedy=_largest_target(table, method, dtype),
        )
    return min(rank, break_even(method, rows, dtype))


def _largest_target(table: Table, method: Method, dtype: DType) -> str:
    limit = break_even(method, table.rows, dtype)
    return f"ask for less: it pays from rank 1 to its break-even rank {limit}" if limit else "leave it dense"


def _rank_by_error(found: Spectrum, target: Target, method: Method, dtype: DType, table: Table) -> int:
    """The smallest rank that meets a target on energy or error."""
    if target.kind == "energy":
        return found.rank_for_energy(target.value)
    rank = found.rank_for_error(target.value)

    def promised() -> float:
        # Rounding to a short type adds to what is cut off; how much is foretold to a fifth of a roundoff.
        return method.predicted_error(found, rank, dtype) + 0.2 * dtype.unit_roundoff

    while rank < found.limit and promised() > target.value:
        rank += 1
    if promised() > target.value:
        raise TargetError(
            f"{table.name}: error {target.value:.3g} is below the rounding of {dtype.torch}, "
            f"which can promise {promised():.3g} at full rank {rank}",
            remedy="allow more, or store the factors in a wider --dtype",
        )
    return rank


def _check_rank(rank: int, table: Table, method: Method, dtype: DType) -> None:
    rows, limit = table.rows, break_even(method, table.rows, dtype)
    if rank <= limit:
        return
    needed = method.nbytes(rows.shape, rank, dtype)
    what = (
        f"rank {rank} is above min(V, d) = {min(rows.shape)}"
        if rank > min(rows.shape)
        else f"rank {rank} would take {needed:,} bytes, the table takes {rows.nbytes:,}"
    )
    remedy = f"its break-even rank is {limit}" if limit else "no rank makes it smaller, leave it dense"
    raise TargetError(f"{table.name} {list(rows.shape)}: {what}", remedy=remedy)
