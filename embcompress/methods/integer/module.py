"""Rows of scaled integers in torch."""

from __future__ import annotations

from torch import Tensor

from embcompress.methods.base import Method
from embcompress.methods.integer.method import Integers
from embcompress.methods.modules import Parts, TableModules, projected, rows_in
from embcompress.nn.integer import IntegerRows


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules:
    """Build the module that holds the rows of a (V, d) table."""
    assert isinstance(method, Integers)
    rows = rows_in(method, parts)
    lookup = IntegerRows(**rows, width=shape[1], bits=method.bits, tokens=shape[0], kept=kept)
    return projected(lookup, None, shape)
