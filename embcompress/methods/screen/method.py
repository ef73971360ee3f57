"""Dictionary screening: tokens that matter least share one row, and all ids stay valid.

"Dictionary screening" (arXiv:2211.12715) drops the tokens of least importance from a classifier's
dictionary, where importance is how much predictions change without the token. Here the weights of
rows say what matters (token counts, or such importances), and dropped tokens keep their ids: a bit a
token says whether it has a row of its own, and what has none reads row 0, the weighted mean of all
those, which no other row beats for their squared error (the centroid of Lloyd 1982).

Alone the rows are stored as they are, so the bytes decide how many are kept, and the error is known
exactly. As ``screen+METHOD`` they are the table of another method, row 0 among them with the weight of
all that it stands for; with the mean as that row, what is lost adds up in squares:
Σ w_i ‖E_i − ŝ‖² = Σ w_i ‖E_i − s‖² + (Σ w_i) ‖s − ŝ‖² over the dropped rows, ŝ the stored s.
How many are kept is then searched for: a few numbers, each of which costs a pass over its rows (and what
the other method takes to fit), after the three passes that rank them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.methods.base import Blocks, Fit, Method, Read, Settings, TableLayout
from embcompress.methods.dense.method import Dense
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_shapes
from embcompress.methods.screen.dropping import Dropped, Ranking, picked, ranking
from embcompress.methods.stats import Advance, TableStats, ignore_progress, measure
from embcompress.rows import Rows

KEPT = "0.kept"

_SHARES = (0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Parts of the tokens that are tried to be kept."""

_STEP = 31 / 32
"""Ratio of the numbers tried where the inner method has one size, which then must fit closely."""


@dataclass(frozen=True)
class _Inner:
    """What is settled before a table is coded: what is dropped, and the rest as the inner method has it."""

    dropped: Dropped
    stats: TableStats
    layout: TableLayout


@dataclass(frozen=True)
class _Prospects:
    """A table and all inner tables that were looked at."""

    stats: TableStats
    by_rows: bool
    tables: dict[int, TableStats] = field(default_factory=dict)
    layouts: dict[int, TableLayout | None] = field(default_factory=dict)

    @cached_property
    def ranking(self) -> Ranking:
        return ranking(self.stats)

    @cached_property
    def total(self) -> float:
        return float(self.stats.energies.sum())

    def inner(self, number: int, dropped: Dropped) -> TableStats:
        """The table of the shared row and the kept ones, measured in a pass if the method asks for that."""
        if number not in self.tables:
            stats = self.stats
            rows = _inner_rows(stats.rows, dropped)
            # Where nothing is dropped row 0 is zeros, and its weight only has to be one.
            first = dropped.weight or stats.weights_of().min()
            weights = np.append(first, stats.weights_of()[dropped.kept])
            if self.by_rows:
                energy = dropped.weight * (dropped.shared @ dropped.shared)
                energies = np.append(energy, stats.energies[dropped.kept])
                table = replace(stats, rows=rows, weights=weights, energies=energies)
            else:
                table = measure(rows, stats.name, precise=stats.precise, weights=weights)
            self.tables[number] = table
        return self.tables[number]


class Screen(Method):
    """Parts: ``X.0.kept``, and those of the inner method for a table of n+1 rows.

    ``0.kept`` (⌈V/8⌉×1 bytes) has a bit a token, the most significant first: whether it keeps its row. The
    bits behind the last token are ones. Row 0 of the inner table is shared by all others; the kept ones
    follow in order of id.

    Without weights, rows near the mean are dropped: in a language model's table those are tokens that
    training hardly touched (of all-MiniLM-L6-v2's 994 unused ones half are among the nearest 2.5 %, all
    among the nearest 16 %). That is right for the error, but knows nothing of use, and [MASK] is the
    nearest of all there: give counts or importances where there are any.

    Args:
        inner: how the rows are stored; as they are when None.
    """

    name = "screen"

    def __init__(self, inner: Method | None = None) -> None:
        self.inner = inner or Dense()
        if inner is not None:
            self.name = f"{Screen.name}+{inner.name}"
        self.parts = (PartSpec(KEPT, Elements.BYTES), *self.inner.parts)
        self.seed, self.by_spectrum = self.inner.seed, self.inner.by_spectrum

    def around(self, inner: Method) -> Method | None:
        """A screen before the rows of ``inner``; none before another screen."""
        return None if isinstance(inner, Screen) else Screen(inner)

    @property
    def has_module(self) -> bool:
        """As the inner method has."""
        return self.inner.has_module

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """All tokens share one row."""
        return _mask_bytes(shape) + self.inner.least((1, shape[1]), settings)

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """As many rows as fit; with an inner method, of the numbers tried the one foretold to lose least."""
        return self.fitter(stats, settings)(limit)

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """The ranking of the rows and the inner tables are remembered from limit to limit."""
        prospects = _Prospects(stats, self.inner.by_rows)
        return lambda limit: self._best(prospects, limit, settings)

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Alone: what is dropped, its mean that of a sample, in the place of three passes over the table."""
        if not self.inner.exact:
            return super().predict_error(stats, limit, settings)
        numbers = self._numbers(stats, limit - _mask_bytes(stats.rows.shape), settings)
        total = float(stats.energies.sum())
        if not numbers or not total:
            return 0.0 if numbers else None
        weights, sample = stats.weights_of(), stats.sample
        dropped = np.ones(len(weights), np.bool_)
        dropped[np.lexsort((stats.energies, weights))[len(weights) - numbers[0] :]] = False
        drawn = dropped[sample.places]
        share = sample.weights[drawn]
        mean = share @ sample.rows[drawn] / share.sum() if drawn.any() else np.zeros(stats.rows.shape[1])
        lost = stats.energies[dropped].sum() - weights[dropped].sum() * (mean @ mean)
        return float(np.sqrt(max(0.0, lost) / total))

    def _best(self, prospects: _Prospects, limit: int, settings: Settings) -> TableLayout | None:
        """From the most rows on, until what is dropped alone loses more than the best found.

        The numbers tried do not depend on the limit, but for those that do not fit, so that more bytes
        never foretell a larger error.
        """
        best: TableLayout | None = None
        shape = prospects.stats.rows.shape
        room = limit - _mask_bytes(shape)
        for number in self._numbers(prospects.stats, room, settings):
            dropped = prospects.ranking.drop(number)
            if best is not None and dropped.loss >= best.predicted_error**2 * prospects.total:
                break
            table = prospects.inner(number, dropped)
            layout = prospects.layouts.get(number) or self.inner.fit(table, room, settings)
            if prospects.by_rows:  # whose layout does not depend on the bytes that are left
                prospects.layouts[number] = layout
            if layout is None:
                continue
            lost = dropped.loss + layout.predicted_error**2 * float(table.energies.sum())
            error = float(np.sqrt(lost / prospects.total)) if prospects.total > 0 else 0.0
            if best is None or error < best.predicted_error:
                mask = Part(KEPT, DTYPES["U8"], (_mask_bytes(shape), 1))
                state = _Inner(dropped, table, layout)
                parts = (mask, *layout.parts)
                best = replace(layout, parts=parts, predicted_error=error, state=state)
        return best

    def _numbers(self, stats: TableStats, room: int, settings: Settings) -> list[int]:
        """How many rows to try to keep in ``room`` bytes, the most first."""
        rows, columns = stats.rows.shape
        if self.inner.exact:
            fitting = min(room // self.inner.least((1, columns), settings), rows) - 1
            return [fitting] if fitting >= 0 else []
        if self.inner.by_rows:
            steps = np.arange(int(np.log(rows) / -np.log(_STEP)) + 1)
            found = {0, *(rows * _STEP**steps).astype(int).tolist()}
        else:
            found = {int(share * rows) for share in _SHARES}
        if stats.weights is not None:
            found.add(int((stats.weights > stats.weights.min()).sum()))
        fitting_ones = (n for n in found if self.inner.least((n + 1, columns), settings) <= room)
        return sorted(fitting_ones, reverse=True)

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """The bits, and the inner table; see the base class."""
        inner: _Inner = layout.state

        def bits() -> Iterator[NDArray[Any]]:
            padded = np.ones(8 * _mask_bytes(stats.rows.shape), bool)
            padded[: stats.rows.shape[0]] = inner.dropped.kept
            yield np.packbits(padded)[:, None]

        return {KEPT: bits, **self.inner.encode(inner.stats, inner.layout, settings, advance)}

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """A row of its own or the shared one; the bits are read at once, see the base class."""
        check_shapes(parts, {KEPT: (_mask_bytes(shape), 1)}, shape, rank)
        bits = np.unpackbits(parts[KEPT].read(0, _mask_bytes(shape))[:, 0]).astype(bool)
        kept = bits[: shape[0]]
        before = np.append(0, np.cumsum(kept))
        try:
            # A table of fewer rows has as many bytes of bits: what lies behind its last bit tells.
            if not bits[shape[0] :].all():
                raise InputError("bits of no token", remedy="")
            inner = {suffix: part for suffix, part in parts.items() if suffix != KEPT}
            read_inner = self.inner.decode(inner, (int(before[-1]) + 1, shape[1]), rank)
        except InputError:
            check_shapes(parts, {KEPT: (-1, -1)}, shape, rank)
            raise

        def read(start: int, stop: int) -> NDArray[Any]:
            first, behind = int(before[start]) + 1, int(before[stop]) + 1
            own = read_inner(first, behind) if behind > first else None
            if own is not None and len(own) == stop - start:
                return own
            rows = np.repeat(read_inner(0, 1), stop - start, axis=0)
            if own is not None:
                rows[kept[start:stop]] = own
            return rows

        return read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """Those of the inner method."""
        return self.inner.flops(shape, rank)


def _mask_bytes(shape: tuple[int, int]) -> int:
    return -(-shape[0] // 8)


def _inner_rows(rows: Rows, dropped: Dropped) -> Rows:
    """The shared row and the kept ones, read from the table when they are asked for."""
    places = np.flatnonzero(dropped.kept)

    def read(start: int, stop: int) -> NDArray[Any]:
        own = picked(rows, places[max(start - 1, 0) : stop - 1] if stop > 1 else places[:0])
        if start > 0 or stop == 0:
            return own
        wide = np.float64 if rows.dtype.name == "F64" else np.float32
        return np.concatenate([dropped.shared[None].astype(wide), own.astype(wide, copy=False)])

    return Rows((len(places) + 1, rows.shape[1]), rows.dtype, read)


METHODS = (Screen(),)
