"""Rows stored as they are, in an ONNX graph."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.dtypes import DType
from embcompress.methods.base import Method


class DenseGraph(TableGraph):
    """A gather."""

    opset = 7

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather the rows."""
        part = stored.parts["0.weight"]
        return group.add("Gather", part.name, ids, axis=0), part.dtype


def table_graph(_: Method) -> TableGraph:
    """How a graph looks up rows that are stored as they are."""
    return DenseGraph()
