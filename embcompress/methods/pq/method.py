"""Transform coding with trellis-coded coefficients: close to the rate–distortion bound, without training.

The spectrum of a transformer's table is flat, so truncation is the worst way to spend bytes. Here a row E_i
is stored as its coefficients E_i V_r, where V_r are the top eigenvectors of the (weighted) Gram matrix, and
reverse water-filling decides how many bits each component gets. The right factor is then refitted to the
coded left one by weighted least squares, as in LPLR (arXiv:2310.11028, algorithm 1), and is rounded to a few
bits itself. Decoding takes a gather and one product.

The name comes from product quantization (Jégou, Douze & Schmid 2011), the first version of this method:
k-means codebooks of 256 vectors, one byte per group of components. Each later change in this list was better
on all-MiniLM-L6-v2 at equal bytes. The numbers are weighted signal-to-error ratios at ratios 0.9, 0.95 and
0.97, with weights from the token counts of three text classification sets; the Gaussian bound is 20.8, 11.2
and 7.2 dB:

- one byte per group by k-means, as in the first version: 15.3, 7.9 and 4.5 dB;
- trellis-coded quantization (``linalg/trellis.py``; a few kilobytes of codebooks instead of 200), bits by
  greedy marginal gain, half bits for pairs of components: 18.0, 9.2 and 5.8 dB;
- a refitted right factor: 0.1 to 0.2 dB more; rounding it to 5 … 8 bits instead of float16: 0.6 dB more;
- a second class of rows with more bytes, for frequent tokens: 0.9 to 1.1 dB more. A third would add 0.1 dB.

These did not help: a scale per token (0.15 dB more at 0.9, less at 0.95 and 0.97), a second pass of the coder
over the residual (the coder falls short of the bound in each pass), tail-biting trellises.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DTYPES
from embcompress.linalg.integers import dequantize, quantize
from embcompress.linalg.packing import pack, packed_width
from embcompress.methods.base import Blocks, Fit, Method, Read, Settings, TableLayout
from embcompress.methods.parts import Elements, Part, Parts, PartSpec
from embcompress.methods.pq.decoding import TrellisTable
from embcompress.methods.pq.planning import TrellisPlan, plans, smallest
from embcompress.methods.pq.row_code import RowCode, trained
from embcompress.methods.stats import Advance, TableStats, ignore_progress

_U8, _F16, _F32, _I32 = (DTYPES[name] for name in ("U8", "F16", "F32", "I32"))


@dataclass(frozen=True)
class _TableCode:
    """The plan and the trained codes; ``fit`` hands them to ``encode`` in the layout's ``state``.

    Attributes:
        plan: classes of rows, rates and sizes.
        classes: the code of each class of rows.
    """

    plan: TrellisPlan
    classes: tuple[RowCode, ...]


class PQ(Method):
    """Stores trellis-coded rows and a right factor in integers.

    There may be a second class of rows, the *hot* ones, which get more bytes than the others. The parts, for
    c classes, r components, H hot rows and Z rows of zeros:

    - ``0.codes`` (V×m bytes): the bits of each row, of hot rows the first m bytes (see
      ``linalg/trelliscode.py``);
    - ``0.extra`` (H×e bytes): the remaining bits of hot rows, if there are any;
    - ``0.hot`` (⌈V/8⌉×1 bytes): one bit per row, whether it is hot;
    - ``0.rates`` (c×r bytes): twice the bits of each component, since there are half bits;
    - ``0.codebooks`` (1×n, float16): flat, one class after the other;
    - ``0.scales`` (c×r, float32): scales of the coefficients;
    - ``0.zeros`` (Z×1, int32): indices of the rows of zeros, if there are any;
    - ``1.codes`` (r×⌈d·b/8⌉ bytes) and ``1.scales`` (r×1, float32): the right factor in integers.
    """

    name = "pq"
    has_rank = True
    parts = (
        PartSpec("0.codes", Elements.BYTES),
        PartSpec("0.extra", Elements.BYTES, optional=True),
        PartSpec("0.hot", Elements.BYTES, optional=True),
        PartSpec("0.rates", Elements.BYTES),
        PartSpec("0.codebooks", Elements.FLOATS, trainable=True),
        PartSpec("0.scales", Elements.FLOATS),
        PartSpec("0.zeros", Elements.ROW_NUMBERS, optional=True),
        PartSpec("1.codes", Elements.BYTES, trainable=True),
        PartSpec("1.scales", Elements.SCALES, trainable=True),
    )

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Fewest bytes that a table can take: one component of one bit."""
        return smallest(shape)

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the error with a model of the coder that assumes Gaussian components."""
        candidates = plans(stats, limit)
        total = stats.spectrum.total
        if not candidates or not total:
            return 0.0 if candidates else None
        return math.sqrt(min(plan.distortion for plan in candidates) / total)

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Plan classes and rates with a model of the coder, then measure the error on a sample of rows."""
        return self.fitter(stats, settings)(limit)

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """Return :meth:`fit` for many limits; codes are trained once for all that lead to the same plan."""
        known: dict[Hashable, TableLayout] = {}

        def fit(limit: int) -> TableLayout | None:
            candidates = plans(stats, limit)
            if not candidates:
                return None
            plan = min(candidates, key=lambda p: p.distortion)
            key = plan.bits, *(rates.tobytes() for rates in plan.rates)
            if key not in known:
                known[key] = self._layout(stats, plan)
            return known[key]

        return fit

    def _layout(self, stats: TableStats, plan: TrellisPlan) -> TableLayout:
        """Train the codes of a plan on a sample of rows, and measure the error there."""
        sample, rank = stats.sample, plan.rank
        basis, factor = _bases(stats, rank)
        coefficients = sample.rows @ basis
        decoded = np.zeros_like(coefficients)
        classes = []
        for index, rates in enumerate(plan.rates):
            members = np.flatnonzero(plan.classes[sample.places] == index)
            code, decoded[members] = trained(rates, coefficients[members], sample.weights[members])
            classes.append(code)
        if len(sample.rows) == stats.rows.shape[0]:  # with fewer rows it would overfit the sample
            refit = _Refit(factor, max(float(code.scales.max()) for code in classes))
            refit.add(decoded, sample.rows, sample.weights)
            factor = refit.right()
        right = quantize(factor, plan.bits, np.float32)
        approximation = decoded @ dequantize(right.codes, right.scales, plan.bits)
        return TableLayout(
            parts=_parts(stats, plan, classes),
            rank=rank,
            dtype=_F16,
            bits=8 * float(plan.row_bytes @ plan.counts) / (rank * stats.rows.shape[0]),
            predicted_error=sample.relative_error(approximation),
            tolerance=0.15,
            state=_TableCode(plan, tuple(classes)),
        )

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """Encode all parts together, when the first of them is read."""

        @cache
        def contents() -> dict[str, NDArray[Any]]:
            return _encode_table(stats, layout.state, advance)

        def blocks(suffix: str) -> Blocks:
            return lambda: iter([contents()[suffix]])

        return {suffix: blocks(suffix) for suffix in layout.suffixes}

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        return TrellisTable(parts, shape, rank or 0).read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """2·r·d, for the product of the coefficients with the right factor."""
        return 2 * (rank or 0) * shape[1]


def _parts(stats: TableStats, plan: TrellisPlan, classes: Sequence[RowCode]) -> tuple[Part, ...]:
    """The parts that a plan stores."""
    rows, columns = stats.rows.shape
    count, rank = len(classes), plan.rank
    parts = [Part("0.codes", _U8, (rows, int(plan.row_bytes[0])))]
    if count > 1:
        extra = int(plan.row_bytes[1] - plan.row_bytes[0])
        parts.append(Part("0.extra", _U8, (int(plan.counts[1]), extra)))
        parts.append(Part("0.hot", _U8, (-(-rows // 8), 1)))
    parts.append(Part("0.rates", _U8, (count, rank)))
    parts.append(Part("0.codebooks", _F16, (1, sum(code.codebooks.size for code in classes))))
    parts.append(Part("0.scales", _F32, (count, rank)))
    if len(plan.zeros):
        parts.append(Part("0.zeros", _I32, (len(plan.zeros), 1)))
    parts.append(Part("1.codes", _U8, (rank, packed_width(columns, plan.bits))))
    parts.append(Part("1.scales", _F32, (rank, 1)))
    return tuple(parts)


def _encode_table(stats: TableStats, table_code: _TableCode, advance: Advance) -> dict[str, NDArray[Any]]:
    """Encode the table in one pass; returns the contents of all parts by suffix."""
    plan, classes = table_code.plan, table_code.classes
    rows, rank = stats.rows.shape[0], plan.rank
    basis, factor = _bases(stats, rank)
    codes = np.empty((rows, plan.row_bytes[0]), np.uint8)
    extra: list[NDArray[np.uint8]] = []
    fit = _Refit(factor, max(float(code.scales.max()) for code in classes))
    for start, stop in stats.rows.spans():
        block = stats.rows.read(start, stop).astype(np.float32, copy=False)
        coefficients = block @ basis
        decoded = np.empty_like(coefficients)
        for index, code in enumerate(classes):
            members = np.flatnonzero(plan.classes[start:stop] == index)
            bits = code.encode(coefficients[members])
            codes[start + members] = bits[:, : codes.shape[1]]
            if index:
                extra.append(bits[:, codes.shape[1] :])
            decoded[members] = code.decode(bits)
        decoded[stats.energies[start:stop] == 0] = 0
        fit.add(decoded, block, stats.weights_of(start, stop))
        advance(stop - start)
    right = quantize(fit.right(), plan.bits, np.float32)
    contents: dict[str, NDArray[Any]] = {
        "0.codes": codes,
        "0.rates": np.stack([2 * code.rates for code in classes]).astype(np.uint8),
        "0.codebooks": np.concatenate([code.codebooks for code in classes])[None],
        "0.scales": np.stack([code.scales for code in classes]),
        "0.zeros": plan.zeros.astype(np.int32)[:, None],
        "1.codes": pack(right.codes, plan.bits),
        "1.scales": right.scales[:, None],
    }
    if extra:
        contents |= {"0.extra": np.concatenate(extra), "0.hot": np.packbits(plan.classes)[:, None]}
    return contents


def _bases(stats: TableStats, rank: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """What gives the coefficients of rows (d×r), and the right factor if nothing is fitted (r×d)."""
    return stats.analysis[:, :rank].astype(np.float32), stats.synthesis[:rank].astype(np.float32)


class _Refit:
    """Finds the right factor R that minimizes Σ_i w_i ‖E_i − L_i R‖² for the coded left factor L.

    Args:
        factor: the right factor (r×d) to fall back on, for components that L lacks.
        unit: typical size of the coefficients; everything is divided by it so that squares do not overflow.
    """

    def __init__(self, factor: NDArray[Any], unit: float) -> None:
        self._factor, self._unit = factor, np.float32(unit)
        self._gram = np.zeros((len(factor), len(factor)))
        self._cross = np.zeros(factor.shape)

    def add(self, left: NDArray[np.float32], rows: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        """Add a block of rows: products in float32, sums in float64, as in ``linalg/gram.py``."""
        left = left / self._unit
        weighted = (left * weights.astype(np.float32)[:, None]).T
        self._gram += weighted @ left
        self._cross += weighted @ (rows / self._unit)

    def right(self) -> NDArray[np.float64]:
        """The right factor (r×d)."""
        # The ridge is so small that it matters only for components that L lacks: it gives them the factor.
        ridge = 1e-6 * self._gram.trace() / len(self._gram) or 1.0
        wanted = self._cross + ridge * self._factor
        found: NDArray[np.float64] = np.linalg.solve(self._gram + ridge * np.eye(len(self._gram)), wanted)
        return found


METHODS = (PQ(),)
