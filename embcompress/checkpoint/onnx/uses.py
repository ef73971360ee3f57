"""Finds how a graph uses a table: which nodes gather rows of it, transpose it or multiply by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from embcompress.errors import UsageError

GATHER, TRANSPOSE, PRODUCT, PRODUCT_TRANSPOSED = "gather", "turn", "times", "times transposed"
"""Kinds of uses of a table E: a gather of rows, a transpose, a product with E, a product with Eᵀ."""


STANDARD = ("", "ai.onnx")
"""Names of the domain of the standard operators."""


@dataclass(frozen=True)
class Use:
    """A node that uses a table.

    Attributes:
        kind: one of the kinds above.
        node: the node.
        transposed: name of the transposed table, if a separate node computes it.
    """

    kind: str
    node: onnx.NodeProto
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


def uses_of(graph: onnx.GraphProto, table: str, where: Path) -> list[Use]:
    """Find all uses of an initializer, in the order of the nodes.

    Raises:
        UsageError: one of them cannot be replaced.
    """
    found: list[Use] = []
    transposed: set[str] = set()
    for node in _users(graph, {table}, where):
        kind = _kind(node, table)
        if kind is None:
            raise _unknown(node, table, where)
        found.append(Use(kind, node))
        if kind == TRANSPOSE:
            transposed.add(node.output[0])
    for node in _users(graph, transposed, where):
        places = [place for place, name in enumerate(node.input) if name in transposed]
        if not _multiplies(node) or places != [1] or _transposes(node):
            raise _unknown(node, table, where)
        found.append(Use(PRODUCT_TRANSPOSED, node, node.input[1]))
    return found


def _users(graph: onnx.GraphProto, names: set[str], where: Path) -> list[onnx.NodeProto]:
    """The nodes that have one of the names as an input.

    Raises:
        UsageError: one of the names is an output of a graph.
    """
    found = []
    for each in graphs_in(graph):
        given = names & {value.name for value in each.output}
        if given:
            raise UsageError(
                f"{where}: {min(given)} is an output of the graph", remedy="export the model without it"
            )
        found += [node for node in each.node if names & {*node.input}]
    return found


def _kind(node: onnx.NodeProto, table: str) -> str | None:
    """How a node uses its input ``table``; None if that cannot be replaced."""
    places = [place for place, name in enumerate(node.input) if name == table]
    options = attributes_of(node)
    if node.domain not in STANDARD or len(places) != 1 or None in options.values():
        return None
    if len(node.output) != 1 or len(node.input) < 1 + (node.op_type != "Transpose"):
        return None
    if node.op_type == "Gather" and places == [0] and options.get("axis", 0) in (0, -2):
        return GATHER
    if node.op_type == "Transpose" and options.get("perm", (1, 0)) == (1, 0):
        return TRANSPOSE
    if node.op_type == "MatMul" and places == [1]:
        return PRODUCT
    if node.op_type == "Gemm" and places == [1]:
        return PRODUCT_TRANSPOSED if _transposes(node) else PRODUCT
    return None


def _multiplies(node: onnx.NodeProto) -> bool:
    known = node.domain in STANDARD and node.op_type in ("MatMul", "Gemm") and len(node.output) == 1
    return known and None not in attributes_of(node).values()


def _transposes(node: onnx.NodeProto) -> bool:
    """Whether a node itself transposes its second input."""
    return bool(attributes_of(node).get("transB", 0))


def _unknown(node: onnx.NodeProto, table: str, where: Path) -> UsageError:
    return UsageError(
        f"{where}: node {label(node)} uses {table} in a way that factors cannot replace",
        remedy="export the model without optimization, or name another table with --key",
    )
