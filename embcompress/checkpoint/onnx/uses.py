"""Finds how a graph uses a table: which nodes gather rows of it, transpose it or multiply by it.

Exporters put nodes between a table and its uses that change nothing but its name (``Identity``) or its type
(``Cast``). They are uses of a kind of their own, and what they give out is followed like the table itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from embcompress.checkpoint.onnx.model import DATA_TYPES
from embcompress.dtypes import TABLE_DTYPES, DType
from embcompress.errors import UsageError

GATHER, TRANSPOSE, PRODUCT, PRODUCT_TRANSPOSED = "gather", "turn", "times", "times transposed"
PASSED_ON = "passed on"
"""Kinds of uses of a table E: a gather of rows, a transpose, a product with E, a product with Eᵀ, and E or Eᵀ
under another name or in another float type."""

_PASSING = ("Identity", "Cast")
"""Operators that give out their input, under another name or in another type."""

_FLOATS = {DATA_TYPES[dtype.name]: dtype for dtype in TABLE_DTYPES if dtype.name in DATA_TYPES}
"""Float types by their number in ``TensorProto.DataType``."""

_ID_INPUTS = {
    **dict.fromkeys(("Add", "Clip", "Concat", "Max", "Min", "Mod", "Sub"), slice(None)),
    **dict.fromkeys(("Cast", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"), slice(1)),
    **dict.fromkeys(("Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"), slice(1)),
    **dict.fromkeys(("Tile", "Transpose", "Unsqueeze"), slice(1)),
    "Where": slice(1, 3),
}
"""Operators that arrange or shift token ids, and which of their inputs are ids."""


STANDARD = ("", "ai.onnx")
"""Names of the domain of the standard operators."""


@dataclass(frozen=True)
class Use:
    """A node that uses a table.

    Attributes:
        kind: one of the kinds above.
        node: the node.
        dtype: element type in which the node reads the table.
        transposed: name of the transposed table, if a separate node computes it.
    """

    kind: str
    node: onnx.NodeProto
    dtype: DType
    transposed: str | None = None


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all subgraphs of its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graphs_in(inner)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes by name: numbers and lists of integers; None for values of other types."""
    found: dict[str, Any] = {}
    for each in node.attribute:
        values = {each.FLOAT: each.f, each.INT: each.i, each.INTS: tuple(each.ints)}
        found[each.name] = values.get(each.type)
    return found


def label(node: onnx.NodeProto) -> str:
    """Description of a node for error messages."""
    return f"{node.name or ' '.join(node.output)} ({node.op_type})"


def uses_of(graph: onnx.GraphProto, table: str, dtype: DType, where: Path) -> list[Use]:
    """Find all uses of an initializer: its own, then those of what a node makes of it.

    Args:
        graph: the main graph.
        table: name of the initializer.
        dtype: its element type.
        where: the file, for error messages.

    Raises:
        UsageError: one of them cannot be replaced.
    """
    found: list[Use] = []
    values = {table: (dtype, False)}  # name -> its type, and whether it is transposed
    waiting = [table]
    while waiting:
        value = waiting.pop(0)
        dtype, transposed = values[value]
        for node in _users(graph, value, where):
            kind = _kind(node, value, transposed=transposed)
            if kind is None:
                raise _unknown(node, table, where)
            found.append(Use(kind, node, dtype, value if transposed else None))
            if kind in (TRANSPOSE, PASSED_ON):
                made = node.output[0]
                if made in values:
                    raise _unknown(node, table, where)
                target = _FLOATS[attributes_of(node)["to"]] if node.op_type == "Cast" else dtype
                values[made] = target, transposed or kind == TRANSPOSE
                waiting.append(made)
    return found


def lookups_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Find the initializers whose rows are looked up, in one pass over the nodes.

    Returns:
        For each that a ``Gather`` reads on its first axis, the input of the graph that the ids come from;
        ``""`` if the graph computes them, as it does with positions.
    """
    alias = {tensor.name: tensor.name for tensor in graph.initializer}
    ids = {value.name: value.name for value in graph.input if value.name not in alias}
    found: dict[str, str] = {}
    for each in graphs_in(graph):
        for node in each.node:
            if node.domain not in STANDARD or not node.input or not node.output:
                continue
            table = alias.get(node.input[0])
            if table is not None and node.op_type in _PASSING:
                alias[node.output[0]] = table
            elif table is not None and _kind(node, node.input[0]) == GATHER:
                found[table] = found.get(table) or ids.get(node.input[1], "")
            for name in node.input[_ID_INPUTS.get(node.op_type, slice(0))]:
                if name in ids:
                    ids.update(dict.fromkeys(node.output, ids[name]))
                    break
    return found


def _users(graph: onnx.GraphProto, name: str, where: Path) -> list[onnx.NodeProto]:
    """The nodes that read a value.

    Raises:
        UsageError: it is an output of a graph.
    """
    found = []
    for each in graphs_in(graph):
        if any(value.name == name for value in each.output):
            raise UsageError(
                f"{where}: {name} is an output of the graph", remedy="export the model without it"
            )
        found += [node for node in each.node if name in node.input]
    return found


def _kind(node: onnx.NodeProto, value: str, *, transposed: bool = False) -> str | None:
    """How a node uses its input ``value``, a table or its transpose; None if that cannot be replaced."""
    places = [place for place, name in enumerate(node.input) if name == value]
    options = attributes_of(node)
    if node.domain not in STANDARD or len(places) != 1 or None in options.values():
        return None
    if len(node.output) != 1 or not node.output[0]:
        return None
    if node.op_type == "Identity" or (node.op_type == "Cast" and options.get("to") in _FLOATS):
        return PASSED_ON
    if node.op_type == "Transpose" and options.get("perm", (1, 0)) == (1, 0):
        return None if transposed else TRANSPOSE
    if len(node.input) < 2:
        return None
    if node.op_type == "Gather" and places == [0] and options.get("axis", 0) in (0, -2):
        return None if transposed else GATHER
    if node.op_type not in ("MatMul", "Gemm") or places != [1]:
        return None
    turned = bool(options.get("transB", 0)) if node.op_type == "Gemm" else False
    if transposed:
        return None if turned else PRODUCT_TRANSPOSED
    return PRODUCT_TRANSPOSED if turned else PRODUCT


def _unknown(node: onnx.NodeProto, table: str, where: Path) -> UsageError:
    return UsageError(
        f"{where}: node {label(node)} uses {table} in a way that factors cannot replace",
        remedy="export the model without optimization, or name another table with --key",
    )
