"""Truncated SVD: two float factors, the best of their rank.

Acharya, Goel, Metallinou & Dhillon 2019 (arXiv:1811.00641) replace the table E by W_a W_b with
W_a = U_k and W_b = S_k V_kᵀ. Here the factors come from the Gram matrix: with V_r its top
eigenvectors, E V_r = U_r S_r, so one pass gives the spectrum and a second the left factor, and a
table never needs to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.dtypes import DType, Floats
from embcompress.errors import InputError, TargetError
from embcompress.linalg.spectrum import Spectrum
from embcompress.methods.base import Blocks, Dimensions, Method, Part, Settings
from embcompress.tables import Rows

_ROUNDING = 0.555
"""Relative error of a product of two rounded factors, in unit roundoffs u. A value m·2^e is off by
up to u·2^e, evenly, so a factor loses u/sqrt(3·E[m²]) = 0.392 u of its norm for significands m
spread log-uniformly over [1, 2); two independent losses add in squares."""


class SVD(Method):
    """Float factors: left (V×r) as ``X.0.weight``, right (d×r, transposed) as ``X.1.weight``."""

    name = "svd"
    suffixes = ("0.weight", "1.weight")

    def parts(self, shape: tuple[int, int], rank: int, dtype: DType) -> tuple[Part, ...]:
        """V×r and d×r; see the base class."""
        return tuple(
            Part(suffix, dtype, (size, rank)) for suffix, size in zip(self.suffixes, shape, strict=True)
        )

    def flops(self, shape: tuple[int, int], rank: int) -> int:
        """2·r·d: one row of the left factor times the right one."""
        return 2 * rank * shape[1]

    def predicted_error(self, spectrum: Spectrum, rank: int, dtype: DType) -> float:
        """Eckart–Young for what is cut off, and the rounding of the stored factors on what is kept."""
        cut = spectrum.relative_errors()[rank]
        rounding = _ROUNDING * dtype.unit_roundoff
        return float(np.sqrt(cut**2 + rounding**2 * (1 - cut**2))) if spectrum.total > 0 else 0.0

    def encode(self, table: Rows, spectrum: Spectrum, settings: Settings) -> tuple[Blocks, ...]:
        """Left = E V_r scaled, right = V_r scaled back; see the base class."""
        vectors = spectrum.vectors[:, : settings.rank]
        left_scale, right_scale = _scales(spectrum.eigenvalues[: settings.rank], settings.split_scale)
        wide = settings.precise or table.dtype.name == "F64"
        basis = (vectors * left_scale).astype(np.float64 if wide else np.float32)
        right = vectors * right_scale

        def left_blocks() -> Iterator[Floats]:
            for block in table.blocks():
                yield _checked(block.astype(basis.dtype, copy=False) @ basis, settings.dtype)

        def right_blocks() -> Iterator[Floats]:
            yield _checked(right, settings.dtype)

        return left_blocks, right_blocks

    def dimensions(self, parts: Sequence[Rows]) -> Dimensions:
        """Rows of the left factor by rows of the stored right one; see the base class."""
        left, right = parts
        if left.shape[1] != right.shape[1]:
            raise InputError(
                f"factors of {list(left.shape)} and {list(right.shape)} have no product",
                remedy="make the file again from its source",
            )
        return Dimensions((left.shape[0], right.shape[0]), left.shape[1])

    def decode(self, parts: Sequence[Rows], start: int, stop: int) -> Floats:
        """Left rows times the right factor; see the base class."""
        left, right = parts
        return left.read(start, stop) @ right.read(0, right.shape[0]).T


def _scales(eigenvalues: NDArray[np.float64], split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors for the columns of E V_r (= U S) and of V_r, whose product is 1 for each component."""
    singular = np.sqrt(eigenvalues)
    # Directions that the table does not have stay as they are: dividing by them would give NaN.
    present = singular > singular.max(initial=0.0) * 1e-12
    power = {"left": 0.0, "even": 0.5, "right": 1.0}[split]
    right = np.where(present, singular, 1.0) ** power
    return 1.0 / right, right


def _checked(block: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """``block``, unless a value would become infinite in ``dtype``."""
    peak = max(float(block.max(initial=0.0)), -float(block.min(initial=0.0)))
    if peak > dtype.largest:
        raise TargetError(
            f"a factor reaches {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
            remedy="store the factors with --dtype bfloat16 or float32, or try --split-scale even",
        )
    return block
