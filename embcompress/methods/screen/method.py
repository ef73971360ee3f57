"""Dictionary screening: the least important tokens share one row, and all ids stay valid.

"Dictionary screening" (arXiv:2211.12715) drops the least important tokens from a classifier's dictionary,
where importance is how much predictions change without the token. Here row weights give the importance
(token counts, or such importances), and dropped tokens keep their ids: one bit per token says whether it has
a row of its own. All others read row 0, the weighted mean of the dropped rows, which minimizes their squared
error (the centroid of Lloyd 1982).

By itself, ``screen`` stores the rows unchanged; the number of bytes then gives the number of rows, and the
error is known exactly. In ``screen+METHOD`` another method compresses the inner table, whose row 0 has the
weight of all dropped rows. Since row 0 is their mean, the losses add in squares:
Σ w_i ‖E_i − ŝ‖² = Σ w_i ‖E_i − s‖² + (Σ w_i) ‖s − ŝ‖² over the dropped rows, where ŝ is the decoded s.
The best number of rows is searched for. After the three passes that rank the rows, each number tried costs
one pass over the rows kept, and a fit of the other method.
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
from embcompress.linalg.bits import Bits
from embcompress.methods.base import Blocks, Fit, Method, Read, Settings, TableLayout
from embcompress.methods.dense.method import Dense
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_shapes
from embcompress.methods.screen.dropping import Dropped, Ranking, picked, ranking
from embcompress.methods.stats import Advance, TableStats, ignore_progress, measure
from embcompress.rows import Rows

KEPT = "0.kept"

_SHARES = (0, 1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Fractions of the tokens to try to keep."""

_STEP = 31 / 32
"""Ratio of the numbers of rows to try if the inner method has only one size, so that one fits closely."""


@dataclass(frozen=True)
class _Inner:
    """What is decided before encoding: the dropped rows, and the inner table with its layout."""

    dropped: Dropped
    stats: TableStats
    layout: TableLayout


@dataclass(frozen=True)
class _Candidates:
    """A table, and the inner tables tried so far by their number of kept rows."""

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
        """Statistics of the inner table; they take a pass unless the inner method codes by rows."""
        if number not in self.tables:
            stats = self.stats
            rows = _inner_rows(stats.rows, dropped)
            # If nothing is dropped, row 0 is zeros and needs some positive weight.
            first = dropped.weight or stats.weights_of().min()
            weights = np.append(first, stats.weights_of()[dropped.kept])
            if self.by_rows:
                energy = dropped.weight * stats.squares(dropped.shared[None])
                energies = np.append(energy, stats.energies[dropped.kept])
                table = replace(stats, rows=rows, weights=weights, energies=energies)
            else:
                table = measure(rows, stats.name, precise=stats.precise, weights=weights, metric=stats.metric)
            self.tables[number] = table
        return self.tables[number]


class Screen(Method):
    """Stores ``X.0.kept``, and the parts of the inner method for a table of n+1 rows, if n are kept.

    ``0.kept`` (⌈V/8⌉×1 bytes) has one bit per token, most significant first: whether it keeps its row. The
    bits after the last token are ones. Row 0 of the inner table is shared by the dropped tokens; the kept
    rows follow in order of ids.

    Without weights, rows near the mean are dropped. In the table of a language model these are tokens that
    training hardly touched: of the 994 unused ones of all-MiniLM-L6-v2 half are among the nearest 2.5 %, all
    among the nearest 16 %. This gives the least error, but ignores which tokens are used; there, [MASK] is
    the nearest of all. So give counts or importances if you have any.

    Args:
        inner: the method that stores the rows; None to store them unchanged.
    """

    name = "screen"

    def __init__(self, inner: Method | None = None) -> None:
        self.inner = inner or Dense()
        if inner is not None:
            self.name = f"{Screen.name}+{inner.name}"
        self.parts = (PartSpec(KEPT, Elements.BYTES), *self.inner.parts)
        self.seed, self.by_spectrum = self.inner.seed, self.inner.by_spectrum
        self.has_rank = self.inner.has_rank

    def around(self, inner: Method) -> Method | None:
        """A screen before the rows of ``inner``; none before another screen."""
        return None if isinstance(inner, Screen) else Screen(inner)

    @property
    def has_module(self) -> bool:
        return self.inner.has_module

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Bytes if all tokens share one row."""
        return _mask_bytes(shape) + self.inner.least((1, shape[1]), settings)

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Keep as many rows as fit; with an inner method, the number with the least predicted error."""
        return self.fitter(stats, settings)(limit)

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """Return :meth:`fit` for many limits; the ranking and the inner tables are computed only once."""
        candidates = _Candidates(stats, self.inner.by_rows)
        return lambda limit: self._best(candidates, limit, settings)

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the loss with the mean of a sample, which saves three passes over the table.

        With an inner method this is the error of :meth:`fit`.
        """
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
        lost = stats.energies[dropped].sum() - weights[dropped].sum() * float(stats.squares(mean[None])[0])
        return float(np.sqrt(max(0.0, lost) / total))

    def _best(self, candidates: _Candidates, limit: int, settings: Settings) -> TableLayout | None:
        """Try to keep fewer and fewer rows, until the dropped rows alone lose more than the best layout.

        The numbers tried depend on the limit only in that they must fit, so that more bytes never give a
        larger error.
        """
        best: TableLayout | None = None
        shape = candidates.stats.rows.shape
        room = limit - _mask_bytes(shape)
        for number in self._numbers(candidates.stats, room, settings):
            dropped = candidates.ranking.drop(number)
            if best is not None and dropped.loss >= best.predicted_error**2 * candidates.total:
                break
            table = candidates.inner(number, dropped)
            layout = candidates.layouts.get(number) or self.inner.fit(table, room, settings)
            if candidates.by_rows:  # the layout does not depend on the bytes left
                candidates.layouts[number] = layout
            if layout is None:
                continue
            lost = dropped.loss + layout.predicted_error**2 * float(table.energies.sum())
            error = float(np.sqrt(lost / candidates.total)) if candidates.total > 0 else 0.0
            if best is None or error < best.predicted_error:
                mask = Part(KEPT, DTYPES["U8"], (_mask_bytes(shape), 1))
                state = _Inner(dropped, table, layout)
                parts = (mask, *layout.parts)
                best = replace(layout, parts=parts, predicted_error=error, state=state)
        return best

    def _numbers(self, stats: TableStats, room: int, settings: Settings) -> list[int]:
        """Numbers of rows to try to keep in ``room`` bytes, largest first."""
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
        inner: _Inner = layout.state

        def bits() -> Iterator[NDArray[Any]]:
            padded = np.ones(8 * _mask_bytes(stats.rows.shape), bool)
            padded[: stats.rows.shape[0]] = inner.dropped.kept
            yield np.packbits(padded)[:, None]

        return {KEPT: bits, **self.inner.encode(inner.stats, inner.layout, settings, advance)}

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """Return a reader of the kept rows and the shared row; the bits are read at once, and stay packed."""
        check_shapes(parts, {KEPT: (_mask_bytes(shape), 1)}, shape, rank)
        packed = parts[KEPT].read(0, _mask_bytes(shape))[:, 0]
        kept = Bits(packed, shape[0])
        try:
            # A table with a few rows more may have as many bytes of bits: the bits after the last token tell.
            if not kept.span(shape[0], 8 * len(packed)).all():
                raise InputError("bits of no token", remedy="")
            inner = {suffix: part for suffix, part in parts.items() if suffix != KEPT}
            read_inner = self.inner.decode(inner, (kept.total + 1, shape[1]), rank)
        except InputError:
            check_shapes(parts, {KEPT: (-1, -1)}, shape, rank)
            raise

        def read(start: int, stop: int) -> NDArray[Any]:
            first, behind = kept.before(start) + 1, kept.before(stop) + 1
            own = read_inner(first, behind) if behind > first else None
            if own is not None and len(own) == stop - start:
                return own
            rows = np.repeat(read_inner(0, 1), stop - start, axis=0)
            if own is not None:
                rows[kept.span(start, stop)] = own
            return rows

        return read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        return self.inner.flops(shape, rank)


def _mask_bytes(shape: tuple[int, int]) -> int:
    return -(-shape[0] // 8)


def _inner_rows(rows: Rows, dropped: Dropped) -> Rows:
    """The inner table: the shared row, then the kept rows, read from the table as needed."""
    places = np.flatnonzero(dropped.kept)

    def read(start: int, stop: int) -> NDArray[Any]:
        own = picked(rows, places[max(start - 1, 0) : stop - 1] if stop > 1 else places[:0])
        if start > 0 or stop == 0:
            return own
        wide = np.float64 if rows.dtype.name == "F64" else np.float32
        return np.concatenate([dropped.shared[None].astype(wide), own.astype(wide, copy=False)])

    return Rows((len(places) + 1, rows.shape[1]), rows.dtype, read)


METHODS = (Screen(),)
