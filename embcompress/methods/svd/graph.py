"""Two float factors in an ONNX graph: lookups, and products with the table that never build it."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import Group, Stored, TableGraph, transposed_name
from embcompress.checkpoint.onnx.coding import wider
from embcompress.checkpoint.onnx.uses import PRODUCT, TRANSPOSE, Use, attributes_of
from embcompress.dtypes import DType
from embcompress.methods.base import Method


class FactorGraph(TableGraph):
    """Left factor (V×r) times right factor (stored transposed, d×r)."""

    opset = 7

    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Gather rows of the left factor and multiply them by the right factor."""
        dtype = stored.parts["0.weight"].dtype
        wide = wider(dtype, stored.dtype)
        rows = group.cast(group.add("Gather", stored.part("0.weight"), ids, axis=0), dtype, wide)
        transposed = group.add("Transpose", group.cast(stored.part("1.weight"), dtype, wide), perm=[1, 0])
        return group.add("MatMul", rows, transposed), wide

    def product(self, group: Group, use: Use, stored: Stored) -> None:
        """Multiply by one factor after the other, since E = L R and Eᵀ = Rᵀ Lᵀ for L (V×r) and R (r×d)."""
        left, right = stored.part("0.weight"), stored.part("1.weight")
        dtype, node = stored.parts["0.weight"].dtype, use.node
        if use.kind == TRANSPOSE:
            transposed = group.cast(left, dtype, stored.dtype)
            group.add("Transpose", transposed, output=transposed_name(node.output[0]), perm=[1, 0])
            return
        first, second = (left, right) if use.kind == PRODUCT else (right, left)
        given, options = node.input[0], attributes_of(node)
        if options.get("transA", 0):
            given = group.add("Transpose", given, perm=[1, 0])
        product = group.add("MatMul", given, group.cast(first, dtype, stored.dtype))
        transposes = use.transposed is None
        second = (
            transposed_name(use.transposed) if use.transposed else group.cast(second, dtype, stored.dtype)
        )
        if node.op_type == "Gemm":
            kept = {key: value for key, value in options.items() if key in ("alpha", "beta")}
            inputs = (product, second, *node.input[2:])
            group.add("Gemm", *inputs, output=node.output[0], transB=int(transposes), **kept)
            return
        if transposes:
            second = group.add("Transpose", second, perm=[1, 0])
        group.add("MatMul", product, second, output=node.output[0])


def table_graph(_: Method) -> TableGraph:
    """Return how a graph computes with two float factors."""
    return FactorGraph()
