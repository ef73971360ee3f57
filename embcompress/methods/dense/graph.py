"""Rows of an uncompressed table in an ONNX graph."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph
from embcompress.dtypes import DType
from embcompress.methods.base import Method


class DenseGraph(TableGraph):
    """Looks rows up with one Gather node."""

    opset = 7

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        part = stored.parts["0.weight"]
        return group.add("Gather", part.name, ids, axis=0), part.dtype


def table_graph(_: Method) -> TableGraph:
    """Return how a graph looks up rows that are stored unchanged."""
    return DenseGraph()
