"""A screened table in an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import CODES_OPSET, flags
from embcompress.dtypes import DType
from embcompress.methods.base import Method
from embcompress.methods.screen.method import KEPT, Screen


@dataclass(frozen=True)
class ScreenGraph(TableGraph):
    """Maps tokens to rows of the inner table by one bit per token; tokens without a row use row 0.

    Attributes:
        inner: how the inner table is looked up.
    """

    inner: TableGraph
    opset = CODES_OPSET

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Map ids to rows of the inner table, and look those up."""
        bits = flags(group, stored.part(KEPT), stored.shape[0])
        places = group.add("Mul", group.add("CumSum", bits, group.constant(0, "I64")), bits)
        inner_parts = {suffix: part for suffix, part in stored.parts.items() if suffix != KEPT}
        rows = group.add("Gather", places, ids, axis=0)
        return self.inner.lookup(group, rows, replace(stored, parts=inner_parts))


def table_graph(method: Method) -> TableGraph:
    """Return how a graph looks up rows of a screened table."""
    assert isinstance(method, Screen)
    return ScreenGraph(method.inner.graph())
