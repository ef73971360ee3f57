"""Truncated SVD: two float factors, the best approximation of their rank.

Acharya, Goel, Metallinou & Dhillon 2019 (arXiv:1811.00641) replace the table E by W_a W_b with
W_a = U_k and W_b = S_k V_kᵀ. Here the factors come from the Gram matrix: E V_r = U_r S_r for its top
eigenvectors V_r. So one pass gives the spectrum and a second one the left factor, and the table need not
fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.dtypes import DType
from embcompress.errors import InputError, TargetError
from embcompress.linalg.spectrum import Spectrum
from embcompress.methods.base import Blocks, RankedMethod, Read, Settings, TableLayout
from embcompress.methods.parts import Elements, Part, Parts, PartSpec, check_rank, check_shapes
from embcompress.methods.stats import Advance, TableStats, ignore_progress
from embcompress.rows import Rows

MIRROR = "out.weight"
"""Suffix of the transpose of the right factor (r×d), if it is stored too; never used in a name on disk."""

_ROUNDING = 0.555
"""Relative error of a product of two rounded factors, in unit roundoffs u. The error of a value m·2^e is
uniform up to u·2^e, so that of a factor is u/sqrt(3·E[m²]) = 0.392 u of its norm if significands m are
log-uniform over [1, 2); the errors of two factors add in squares."""


class SVD(RankedMethod):
    """Stores float factors: left (V×r) as ``X.0.weight``, right (transposed, d×r) as ``X.1.weight``.

    Models that have a separate projection for their tied head hold the right factor a second time, r×d.
    """

    name = "svd"
    has_rank = True
    parts = (
        PartSpec("0.weight", Elements.FLOATS, trainable=True),
        PartSpec("1.weight", Elements.FLOATS, trainable=True),
        PartSpec(MIRROR, Elements.FLOATS, optional=True, trainable=True),
    )
    is_factors = True
    margin = 0.0
    by_spectrum = True

    def stored(self, shape: tuple[int, int], rank: int, settings: Settings) -> tuple[Part, ...]:
        """The parts at ``rank``: V×r and d×r, and r×d if the settings are ``mirrored``."""
        shapes = [(shape[0], rank), (shape[1], rank), (rank, shape[1])][: 3 if settings.mirrored else 2]
        return tuple(
            Part(suffix, settings.dtype, size) for suffix, size in zip(self.suffixes, shapes, strict=False)
        )

    def nbytes(self, shape: tuple[int, int], rank: int, settings: Settings) -> int:
        """Bytes of the factors of a (V, d) table at ``rank``."""
        return sum(part.nbytes for part in self.stored(shape, rank, settings))

    def largest_rank(self, shape: tuple[int, int], limit: int, settings: Settings) -> int:
        """Largest rank, at most min(V, d), whose factors take at most ``limit`` bytes; 0 if none does."""
        return min(*shape, max(0, limit) // self.nbytes(shape, 1, settings))

    def break_even(self, rows: Rows, settings: Settings) -> int:
        return self.largest_rank(rows.shape, rows.nbytes - 1, settings)

    def predicted_error(self, spectrum: Spectrum, rank: int, dtype: DType) -> float:
        """Relative error at ``rank``: Eckart–Young for what is cut off, plus the rounding of both factors."""
        cut = spectrum.relative_errors()[rank]
        rounding = _ROUNDING * dtype.unit_roundoff
        return float(np.sqrt(cut**2 + rounding**2 * (1 - cut**2))) if spectrum.total > 0 else 0.0

    def widest(self, shape: tuple[int, int], settings: Settings) -> TableLayout:
        return replace(super().widest(shape, settings), parts=self.stored(shape, min(shape), settings))

    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Bytes at rank 1."""
        return self.nbytes(shape, 1, settings)

    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Plan the largest rank within the limit."""
        rank = self.largest_rank(stats.rows.shape, limit, settings)
        return self.at_rank(stats, rank, settings) if rank else None

    def at_rank(self, stats: TableStats, rank: int, settings: Settings) -> TableLayout:
        dtype = settings.dtype
        return TableLayout(
            parts=self.stored(stats.rows.shape, rank, settings),
            rank=rank,
            dtype=dtype,
            bits=dtype.bits,
            predicted_error=self.predicted_error(stats.spectrum, rank, dtype),
            tolerance=0.02,  # for the rounding model; the error of the cut is exact
        )

    def check_rank(self, rows: Rows, name: str, rank: int, settings: Settings) -> None:
        limit = self.break_even(rows, settings)
        if rank <= limit:
            return
        needed = self.nbytes(rows.shape, rank, settings)
        what = (
            f"rank {rank} is above min(V, d) = {min(rows.shape)}"
            if rank > min(rows.shape)
            else f"rank {rank} would take {needed:,} bytes, the table takes {rows.nbytes:,}"
        )
        remedy = f"its break-even rank is {limit}" if limit else "no rank makes it smaller, leave it dense"
        raise TargetError(f"{name} {list(rows.shape)}: {what}", remedy=remedy)

    def cheapest(self, stats: TableStats, error: float, settings: Settings) -> TableLayout:
        """Find the smallest rank, directly from the spectrum."""
        found, dtype = stats.spectrum, settings.dtype
        rank = found.rank_for_error(error)

        def bound() -> float:
            # The rounding to a narrow type is predicted to within a fifth of a unit roundoff.
            return self.predicted_error(found, rank, dtype) + 0.2 * dtype.unit_roundoff

        while rank < found.limit and bound() > error:
            rank += 1
        if bound() > error:
            raise TargetError(
                f"{stats.name}: error {error:.3g} is below the rounding of {dtype.torch}, "
                f"which reaches {bound():.3g} at full rank {rank}",
                remedy="allow more, or store the factors in a wider --dtype",
            )
        self.check_rank(stats.rows, stats.name, rank, settings)
        return self.at_rank(stats, rank, settings)

    def for_energy(self, stats: TableStats, energy: float, settings: Settings) -> TableLayout:
        """Find the smallest rank that keeps the energy; rounding is ignored."""
        rank = stats.spectrum.rank_for_energy(energy)
        self.check_rank(stats.rows, stats.name, rank, settings)
        return self.at_rank(stats, rank, settings)

    def limits(self, rows: Rows, settings: Settings) -> str:
        """Remedy: the ranks that make the table smaller."""
        limit = self.break_even(rows, settings)
        return (
            f"set a lower target: it shrinks at ranks from 1 to its break-even rank {limit}"
            if limit
            else "leave it dense"
        )

    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """Encode left = E V_r with scaled columns, and right = V_r scaled by the inverse.

        In a metric M = A² they are E A V_r and A⁻¹ V_r.
        """
        table, found, dtype = stats.rows, stats.spectrum, layout.dtype
        left_scale, right_scale = _scales(found.eigenvalues[: layout.rank], settings.split_scale)
        wide = stats.precise or table.dtype.name == "F64"
        basis = stats.analysis[:, : layout.rank] * left_scale
        basis = basis.astype(np.float64 if wide else np.float32)
        right = stats.synthesis[: layout.rank].T * right_scale

        def left_blocks() -> Iterator[NDArray[Any]]:
            for block in table.blocks():
                yield _checked(_product(block.astype(basis.dtype, copy=False), basis), dtype)

        def right_blocks() -> Iterator[NDArray[Any]]:
            yield _checked(right, dtype)

        def mirror_blocks() -> Iterator[NDArray[Any]]:
            yield _checked(right.T, dtype)

        every = (left_blocks, right_blocks, mirror_blocks)
        return dict(zip(layout.suffixes, every, strict=False))

    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """Return a reader of left rows times the right factor.

        Raises:
            InputError: the shapes do not fit the record, or a second right factor is stored whose values
                differ from the first, because they were trained separately.
        """
        check_rank(parts, shape, rank)
        left, right = (parts[suffix] for suffix in self.suffixes[:2])
        sizes = ((shape[0], rank or 0), (shape[1], rank or 0), (rank or 0, shape[1]))
        expected = {s: size for s, size in zip(self.suffixes, sizes, strict=True) if s in parts}
        check_shapes(parts, expected, shape, rank)
        mirror = parts.get(MIRROR)
        if mirror is not None and not np.array_equal(
            mirror.read(0, mirror.shape[0]).T, right.read(0, right.shape[0])
        ):
            raise InputError(
                "the projections to and from the factors differ, as they do after training: "
                "they no longer store one table",
                remedy="load it with the model's own library",
            )

        def read(start: int, stop: int) -> NDArray[Any]:
            rows: NDArray[Any] = left.read(start, stop) @ right.read(0, right.shape[0]).T
            return rows

        return read

    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """2·r·d: one row of the left factor times the right one."""
        assert rank is not None
        return 2 * rank * shape[1]


def _scales(eigenvalues: NDArray[np.float64], split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors for the columns of E V_r (= U S) and of V_r, whose product is 1 for each component."""
    singular = np.sqrt(eigenvalues)
    # Components with singular value 0 are not scaled: division would give NaN.
    present = singular > singular.max(initial=0.0) * 1e-12
    power = {"left": 0.0, "even": 0.5, "right": 1.0}[split]
    right = np.where(present, singular, 1.0) ** power
    return 1.0 / right, right


def _product(block: NDArray[Any], basis: NDArray[Any]) -> NDArray[Any]:
    """``block`` times ``basis``, in float64 if float32 overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        product: NDArray[Any] = block @ basis
    return product if np.isfinite(product).all() else block.astype(np.float64) @ basis


def _checked(block: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Return ``block``; raise an error if a value would become infinite in ``dtype``."""
    peak = max(float(block.max(initial=0.0)), -float(block.min(initial=0.0)))
    if not peak <= dtype.largest:
        raise TargetError(
            f"a factor reaches {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
            remedy="store the factors with --dtype bfloat16 or float32, or try --split-scale even",
        )
    return block


METHODS = (SVD(),)
