"""Plans the layout of each table from the user's target: a rank, a size, or an error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from embcompress.choices import AUTO, TARGETS
from embcompress.dtypes import DType
from embcompress.errors import TargetError, UsageError
from embcompress.linalg.metric import Metric
from embcompress.methods import METHODS
from embcompress.methods.base import Method, RankedMethod, Settings, TableLayout
from embcompress.methods.stats import Advance, TableStats, Weights, measure
from embcompress.rows import Rows
from embcompress.tables import Table

PRECISE_BELOW = 0.02
"""Relative error below which the Gram matrix is computed in float64. One in float32 is exact to 1e-7 of the
largest eigenvalue, so to 3e-4 in a relative error: it cannot predict smaller errors to 1e-5 of themselves."""


_ALIKE = 1.015
"""Methods within this factor of the least error, or of the fewest bytes, count as equally good."""

_HOPELESS = 1.5
"""A method is passed over if a quick estimate of its error is above what it should reach by this factor. In
380 trials (five shapes, ten kinds of tables, with and without weights, four ratios) this passed over ``lplr``
122 times, never wrongly; a factor of 1.3 would be wrong once, for a table most of whose rows are equal."""


@dataclass(frozen=True)
class Target:
    """What a compression should reach.

    Attributes:
        kind: one of ``TARGETS``.
        value: a rank; a fraction of bytes to remove; a fraction of the squared singular values to keep; a
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

    @property
    def error(self) -> float:
        """Largest relative error that it allows; 1 if it is not about errors."""
        if self.kind == "max_error":
            return self.value
        return math.sqrt(1 - self.value) if self.kind == "energy" else 1.0


@dataclass(frozen=True)
class TablePlan:
    """What will be done with one table.

    Attributes:
        table: the table.
        method: how it is compressed.
        layout: what is stored, and the predicted error.
        settings: other options of the request.
        stats: statistics of the table; errors and spectrum use its weights.
        rivals: approximate error of each method in no more bytes, by name.
    """

    table: Table
    method: Method
    layout: TableLayout
    settings: Settings
    stats: TableStats = field(repr=False)
    rivals: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense table, stored once."""
        return self.table.rows.nbytes

    @property
    def bytes_after(self) -> int:
        """Bytes of the parts that replace it."""
        return self.layout.nbytes

    @property
    def ratio(self) -> float:
        """Fraction of the table's bytes removed."""
        return 1 - self.bytes_after / self.bytes_before


def plan_tables(
    tables: Sequence[Table],
    target: Target,
    method: Method | None,
    dtype: DType | None = None,
    *,
    split_scale: str = "left",
    mirrored: bool = False,
    budget: int = 0,
    advance: Advance | None = None,
    weights: Weights | None = None,
    metric: Metric | None = None,
    spare: Collection[str] = (),
) -> tuple[TablePlan, ...]:
    """Choose the layout of each table.

    Whatever follows from sizes alone is checked before any row is read, so that a target out of reach is
    refused at once.

    Args:
        tables: the tables to compress.
        target: what to reach: for each table, or for all together (``max_size``).
        method: the method; None for the one predicted to reach the target best.
        dtype: element type of float factors; None for each table's own.
        split_scale: one of ``SPLITS``.
        mirrored: whether the transposes of right factors are stored too.
        budget: bytes of all factors together, for the target ``max_size``.
        advance: called with the number of rows read.
        weights: of the rows (V), for each table; errors and energies are then weighted.
        metric: over the columns, for each table; errors and energies are then those in it.
        spare: names of tables that are left out, and stay dense, where the target is out of their reach; at
            least one table must be none of them.

    Raises:
        UsageError: the method cannot plan for such a target.
        TargetError: the target is out of reach, or would make a table larger.
        InputError: a table cannot be read.
    """
    if target.kind == "rank" and not isinstance(method, RankedMethod):
        raise UsageError(
            f"rank {target.value:g}: method {method.name if method else AUTO} takes no rank",
            remedy="give a ratio, a size or an error",
        )
    settings_of = {t.name: Settings(dtype or t.rows.dtype, split_scale, mirrored) for t in tables}
    plans = []
    for table, limit in _limits(tables, target, method, settings_of, budget, spare):
        settings = settings_of[table.name]
        try:
            plan = _measured_plan(table, target, method, settings, limit, advance, weights, metric)
        except TargetError:
            if table.name in spare and not budget:  # of which what stays dense would take more
                continue
            raise
        if not plan.rivals:
            others = [m for m in METHODS.values() if m.name != plan.method.name]
            rivals = predicted_errors(plan.stats, plan.layout.nbytes, settings, others)
            plan = replace(plan, rivals={**rivals, plan.method.name: plan.layout.predicted_error})
        # A copy is without the sample of rows, of which there would be one a table.
        plans.append(replace(plan, stats=replace(plan.stats)))
    return tuple(plans)


def _measured_plan(
    table: Table,
    target: Target,
    method: Method | None,
    settings: Settings,
    limit: int,
    advance: Advance | None,
    weights: Weights | None,
    metric: Metric | None,
) -> TablePlan:
    """The plan of a table, by a spectrum as exact as it needs."""
    stats = measure(table.rows, table.name, advance=advance, weights=weights, metric=metric)
    plan: TablePlan | None = None
    try:
        plan = _plan(table, stats, target, method, settings, limit)
    except TargetError:
        if target.error >= PRECISE_BELOW:
            raise  # a more exact spectrum would change nothing
    if plan is None or (plan.method.by_spectrum and plan.layout.predicted_error < PRECISE_BELOW):
        stats = measure(table.rows, table.name, precise=True, advance=advance, weights=weights, metric=metric)
        plan = _plan(table, stats, target, method, settings, limit)
    return plan


def bytes_for_ratio(rows: Rows, ratio: float) -> int:
    """Most bytes that remove at least the fraction ``ratio`` of a table's bytes, and at least one byte."""
    # Users type decimal fractions: 0.9 of 1000 bytes leaves 100, not 99.99999999999997.
    return min(rows.nbytes - 1, int((1 - ratio) * rows.nbytes + 1e-6))


def predicted_errors(
    stats: TableStats, limit: int, settings: Settings, methods: Iterable[Method] | None = None
) -> dict[str, float]:
    """Estimate the error of each method in ``limit`` bytes, by name.

    Methods that do not fit, or whose estimate overflows, are left out.

    Args:
        stats: the table.
        limit: bytes of the stored parts.
        settings: other options of the request.
        methods: the methods to compare; None for all.
    """
    found = {}
    for method in METHODS.values() if methods is None else methods:
        with contextlib.suppress(FloatingPointError), np.errstate(all="ignore", over="raise"):
            error = method.predict_error(stats, limit, settings)
            if error is not None and math.isfinite(error):
                found[method.name] = error
    return found


def _plan(
    table: Table, stats: TableStats, target: Target, method: Method | None, settings: Settings, limit: int
) -> TablePlan:
    if method is None:
        return _best_plan(table, stats, target, settings, limit)
    if isinstance(method, RankedMethod) and target.kind == "rank":
        layout = method.at_rank(stats, int(target.value), settings)
    elif limit:
        fitting = method.fit(stats, limit, settings)
        if fitting is None:
            raise _out_of_reach(table, limit, method, settings)
        layout = fitting
    elif target.kind == "energy":
        layout = method.for_energy(stats, target.value, settings)
    else:
        layout = method.cheapest(stats, target.value, settings)
    return TablePlan(table, method, layout, settings, stats)


def _best_plan(table: Table, stats: TableStats, target: Target, settings: Settings, limit: int) -> TablePlan:
    """The plan by the method with the least error in ``limit`` bytes, or the fewest bytes for an error."""
    layouts: dict[str, TableLayout] = {}
    rivals: dict[str, float] = {}
    # Methods that have quick estimates come last, when there is something to compare them with.
    for method in sorted(METHODS.values(), key=lambda m: type(m).quick_error is not Method.quick_error):
        room, error = limit, min((one.predicted_error for one in layouts.values()), default=math.inf)
        if not limit:
            room = math.ceil(_ALIKE * min((one.nbytes for one in layouts.values()), default=0))
            error = target.error
        estimate = method.quick_error(stats, room, settings) if layouts else None
        if estimate is not None and estimate > _HOPELESS * error:
            rivals[method.name] = estimate
            continue
        if estimate is not None and not limit and not _reaches(method, stats, room, error, settings):
            continue  # the search would only find out how many more bytes than the others it takes
        with contextlib.suppress(TargetError):
            layout = method.fit(stats, limit, settings) if limit else method.cheapest(stats, error, settings)
            if layout is not None:
                layouts[method.name], rivals[method.name] = layout, layout.predicted_error
    if not layouts:
        raise TargetError(
            f"{table.name} {list(table.rows.shape)}: no method reaches the target",
            remedy="set a lower target, or leave the table dense",
        )
    loss = {
        name: layouts[name].predicted_error if limit else layouts[name].nbytes
        for name in METHODS
        if name in layouts
    }
    # Errors predicted from a sample are known to a per cent or two: of equals, take the fastest lookup.
    alike = [name for name in loss if loss[name] <= _ALIKE * min(loss.values())]
    best = min(alike, key=lambda n: METHODS[n].flops(stats.rows.shape, layouts[n].rank))
    compared = {name: rivals[name] for name in METHODS if limit and name in rivals}
    return TablePlan(table, METHODS[best], layouts[best], settings, stats, compared)


def _reaches(method: Method, stats: TableStats, room: int, error: float, settings: Settings) -> bool:
    """Whether the method reaches the target error, with its margin, in that many bytes."""
    layout = method.fit(stats, min(room, stats.rows.nbytes - 1), settings)
    return layout is not None and layout.predicted_error <= error * (1 - method.margin)


def _limits(
    tables: Sequence[Table],
    target: Target,
    method: Method | None,
    settings: Mapping[str, Settings],
    budget: int,
    spare: Collection[str],
) -> list[tuple[Table, int]]:
    """The tables whose shapes let them reach the target, each with the bytes that this leaves it.

    Raises:
        TargetError: the target is out of reach of one that is not spare.
    """
    share = budget / sum(t.rows.nbytes for t in tables)
    limits = []
    for table in tables:
        try:
            limits.append((table, _limit(table, target, method, settings[table.name], share)))
        except TargetError:
            if table.name not in spare:
                raise
    reached = [table for table, _ in limits]
    if len(reached) == len(tables):
        return limits
    # What stays dense takes its bytes from the budget of the others.
    dense = sum(t.rows.nbytes * (1 + len(t.copies)) for t in tables if t not in reached)
    return _limits(reached, target, method, settings, max(0, budget - dense), spare)


def _limit(table: Table, target: Target, method: Method | None, settings: Settings, share: float) -> int:
    """Bytes that the target leaves to a table, checked by shapes alone; 0 for targets other than sizes."""
    rows = table.rows
    if isinstance(method, RankedMethod) and target.kind == "rank":
        method.check_rank(rows, table.name, int(target.value), settings)
        return 0
    if target.kind not in {"ratio", "max_size"}:
        return 0
    limit = bytes_for_ratio(rows, target.value if target.kind == "ratio" else 1 - share)
    candidates = METHODS.values() if method is None else (method,)
    thriftiest = min(candidates, key=lambda m: m.least(rows.shape, settings))
    if limit < thriftiest.least(rows.shape, settings):
        raise _out_of_reach(table, limit, thriftiest, settings)
    return limit


def _out_of_reach(table: Table, limit: int, method: Method, settings: Settings) -> TargetError:
    rows = table.rows
    least = method.least(rows.shape, settings)
    if limit >= least:
        return TargetError(
            f"{table.name} {list(rows.shape)}: {method.name} has no layout in {limit:,} bytes that can hold "
            f"its values",
            remedy="choose another --method, or scale the table",
        )
    return TargetError(
        f"{table.name} {list(rows.shape)}: the target leaves it {limit:,} bytes "
        f"(ratio {1 - limit / rows.nbytes:.4g}), {method.name} takes at least {least:,} "
        f"(ratio {1 - least / rows.nbytes:.4g})",
        remedy=method.limits(rows, settings),
    )
