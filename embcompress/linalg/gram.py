"""The Gram matrix of a table, computed in one pass over its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAFE_SQUARES = (1e-24, 1e34)
"""Range of the largest diagonal element in which products in float32 neither overflow nor lose significant
terms to underflow (float32 spans 1e-38 to 3e38)."""


@dataclass(frozen=True)
class Gram:
    """EᵀE of a table E (V×d).

    Attributes:
        matrix: d×d, float64, symmetric.
        bad_rows: number of rows that hold NaN or infinity; unless it is 0 the matrix is meaningless.
        first_bad_row: index of the first of them; -1 if there are none.
    """

    matrix: NDArray[np.float64]
    bad_rows: int
    first_bad_row: int


def gram(blocks: Iterable[NDArray[Any]], columns: int, *, precise: bool = False) -> Gram:
    """Sum XᵀX over row blocks X.

    Products of float32 blocks are computed in float32 and summed in float64, so that the rounding error does
    not grow with V: it is about 1e-7 of the largest eigenvalue. With ``precise`` the products are computed in
    float64 too, which takes twice the time; the error is then about 1e-13.

    Args:
        blocks: row blocks (any number × ``columns``) of float32 or float64.
        columns: d.
        precise: compute the products in float64.
    """
    total = np.zeros((columns, columns))
    bad_rows, first_bad_row, seen = 0, -1, 0
    for block in blocks:
        if not bad_rows:
            total += _product(block, precise=precise)
        # NaN or infinity always reaches the diagonal, so the trace shows whether to check the rows.
        if bad_rows or not np.isfinite(total.trace()):
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if bad.size and first_bad_row < 0:
                first_bad_row = seen + int(bad[0])
            bad_rows += int(bad.size)
        seen += len(block)
    return Gram(total, bad_rows, first_bad_row)


def _product(block: NDArray[Any], *, precise: bool) -> NDArray[Any]:
    """XᵀX of one block; NumPy recognizes that both factors are the same array and computes one half."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # the range is checked below
        if precise or block.dtype == np.float64:
            wide = block.astype(np.float64, copy=False)
            squares: NDArray[Any] = wide.T @ wide
            return squares
        product: NDArray[Any] = block.T @ block
    low, high = _SAFE_SQUARES
    if low < product.diagonal().max() < high:
        return product
    return _product(block, precise=True)
