"""What stands in a graph in the place of each use of a table: a lookup, or a product with factors."""

from __future__ import annotations

from embcompress.checkpoint.onnx.building import PREFIX, Group, Stored
from embcompress.checkpoint.onnx.lookups import lookup_of
from embcompress.checkpoint.onnx.uses import GATHER, TIMES, TURN, Use, attributes_of, label
from embcompress.errors import UsageError

_FACTORS = {"0.weight", "1.weight"}


def rewrite(group: Group, use: Use, stored: Stored) -> None:
    """Add to a group what computes the outputs of a use's node from the stored parts.

    Raises:
        UsageError: there is no way.
    """
    lookup = lookup_of(stored)
    if use.kind == GATHER:
        rows, dtype = lookup(group, use.node.input[1], stored)
        group.cast(rows, dtype, stored.dtype, use.node.output[0])
    elif {*stored.parts} == _FACTORS:
        _product(group, use, stored)
    else:
        raise UsageError(
            f"{stored.where}: node {label(use.node)} multiplies by {stored.name}, "
            "and rows of codes have no product",
            remedy="choose --method svd, or export a head that is not tied",
        )


def _product(group: Group, use: Use, stored: Stored) -> None:
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
