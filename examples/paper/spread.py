"""Figures over seeds: mean, sample deviation, count; and the losses against the dense model of each seed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from results import Case, Measurement
from schedules import GRID, chosen_rate


@dataclass(frozen=True)
class Spread:
    """Figures of some numbers, one a seed.

    Attributes:
        mean: their mean.
        deviation: sample standard deviation, 0 for a single one.
        n: how many.
    """

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The figures of at least one number."""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Cell:
    """What measurements have in common that differ in their seed alone.

    Attributes:
        set, model, start: the case without its seed.
        method, ratio: the step without its rate.
    """

    set: str
    model: str
    start: str
    method: str
    ratio: float


def spreads(
    rows: Iterable[Measurement], value: Callable[[Measurement], float] = lambda row: 100 * row.test_accuracy
) -> dict[Cell, Spread]:
    """The spread of ``value`` in each cell; test accuracy in percent by default."""
    found: dict[Cell, list[float]] = defaultdict(list)
    for row in rows:
        found[Cell(row.set, row.model, row.start, row.method, row.ratio)].append(value(row))
    return {cell: Spread.of(values) for cell, values in found.items()}


def lost(rows: Sequence[Measurement]) -> list[tuple[Measurement, float]]:
    """Points of test accuracy that each compressed model lost against the dense one of the same case."""
    dense: Mapping[Case, float] = {row.case: row.test_accuracy for row in rows if row.method == "dense"}
    return [
        (row, 100 * (dense[row.case] - row.test_accuracy))
        for row in rows
        if row.method != "dense" and row.case in dense
    ]


def at_chosen_rates(rows: Sequence[Measurement]) -> list[Measurement]:
    """The rows of the schedules at the rate that seed 0's dev chose, where the whole grid was tried."""
    tried: dict[tuple[Case, str], set[float]] = defaultdict(set)
    for row in rows:
        if row.seed == 0:
            tried[row.case, row.method].add(row.learning_rate)
    chosen = {
        (case, method): chosen_rate(case, method, rows)
        for (case, method), rates in tried.items()
        if len(rates) == len(GRID)
    }
    return [r for r in rows if chosen.get((replace(r.case, seed=0), r.method)) == r.learning_rate]
