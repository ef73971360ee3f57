"""Two factors of scaled integers in torch."""

from __future__ import annotations

from torch import Tensor

from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules, projected, right_factor, rows_in
from embcompress.nn.integer import IntegerRows
from embcompress.nn.lookup import require


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules:
    """Build the modules that hold the factors of a (V, d) table."""
    right = right_factor(parts, shape[1])
    assert right is not None
    require(right.shape[0] == shape[1], f"the right factor has {right.shape[0]} columns, not {shape[1]}")
    lookup = IntegerRows(**rows_in(method, parts), width=right.shape[1], tokens=shape[0], kept=kept)
    return projected(lookup, right, shape)
