"""Rows of scaled integers in an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, F32, scaled_integers
from embcompress.dtypes import DType
from embcompress.methods.base import Method
from embcompress.methods.integer.method import Integers


@dataclass(frozen=True)
class IntegerGraph(TableGraph):
    """Packed integers (V×⌈d·b/8⌉ bytes) times one scale per row (V×1).

    Attributes:
        bits: bits of an integer, b.
    """

    bits: int
    opset = CODES_OPSET

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        return scaled_integers(group, "0", ids, stored, stored.shape[1], self.bits), F32


def table_graph(method: Method) -> TableGraph:
    """Return how a graph looks up rows of scaled integers."""
    assert isinstance(method, Integers)
    return IntegerGraph(method.bits)
