"""Rows of an uncompressed table in torch."""

from __future__ import annotations

from torch import Tensor

from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules, projected, rows_in
from embcompress.nn.lookup import FloatRows


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules:
    """Build the module that holds the rows of a (V, d) table."""
    return projected(FloatRows(**rows_in(method, parts), tokens=shape[0], kept=kept), None, shape)
