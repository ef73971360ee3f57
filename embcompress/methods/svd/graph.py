"""A table of two float factors in an ONNX graph: a gather and a product, and products without the table."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import PREFIX, Group, Stored, TableGraph
from embcompress.checkpoint.onnx.coding import wider
from embcompress.checkpoint.onnx.uses import TIMES, TURN, Use, attributes_of
from embcompress.dtypes import DType
from embcompress.methods.base import Method


class FactorGraph(TableGraph):
    """Left factor (V×r) times right factor (d×r, transposed)."""

    opset = 7

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather rows of the left factor, multiply by the right one."""
        dtype = stored.parts["0.weight"].dtype
        wide = wider(dtype, stored.dtype)
        rows = group.cast(group.add("Gather", stored.part("0.weight"), ids, axis=0), dtype, wide)
        turned = group.add("Transpose", group.cast(stored.part("1.weight"), dtype, wide), perm=[1, 0])
        return group.add("MatMul", rows, turned), wide

    def product(self, group: Group, use: Use, stored: Stored) -> None:
        """E = L Rᵀ, so that a product with E or Eᵀ is one with either factor after the other."""
        left, right = stored.part("0.weight"), stored.part("1.weight")
        dtype, node = stored.parts["0.weight"].dtype, use.node
        if use.kind == TURN:
            turned = group.cast(left, dtype, stored.dtype)
            group.add("Transpose", turned, output=_turned_name(node.output[0]), perm=[1, 0])
            return
        first, second = (left, right) if use.kind == TIMES else (right, left)
        given, options = node.input[0], attributes_of(node)
        if options.get("transA", 0):
            given = group.add("Transpose", given, perm=[1, 0])
        product = group.add("MatMul", given, group.cast(first, dtype, stored.dtype))
        turns = use.turned is None
        second = _turned_name(use.turned) if use.turned else group.cast(second, dtype, stored.dtype)
        if node.op_type == "Gemm":
            kept = {key: value for key, value in options.items() if key in ("alpha", "beta")}
            inputs = (product, second, *node.input[2:])
            group.add("Gemm", *inputs, output=node.output[0], transB=int(turns), **kept)
            return
        if turns:
            second = group.add("Transpose", second, perm=[1, 0])
        group.add("MatMul", product, second, output=node.output[0])


def _turned_name(name: str) -> str:
    """Name of the transposed left factor where there was a transposed table."""
    return f"{PREFIX}{name}"


def table_graph(_: Method) -> TableGraph:
    """How a graph computes with two float factors."""
    return FactorGraph()
