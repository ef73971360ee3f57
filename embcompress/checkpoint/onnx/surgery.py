"""Edits graphs: replaces uses of a table by nodes that compute the same from its parts, and undoes that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import part_name, stem
from embcompress.checkpoint.onnx.building import PREFIX, Group, Stored, TableGraph, number_of, transposed_name
from embcompress.checkpoint.onnx.model import DATA_TYPES
from embcompress.checkpoint.onnx.uses import (
    GATHER,
    PASSED_ON,
    STANDARD,
    TRANSPOSE,
    Use,
    attributes_of,
    graphs_in,
    uses_of,
)
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.errors import InputError, UsageError


def compress(
    proto: onnx.ModelProto,
    tables: Sequence[TensorInfo],
    edit: Edit,
    where: Path,
    *,
    filled: bool,
) -> list[onnx.NodeProto]:
    """Rewire ``proto`` in place, so that it computes with parts instead of tables.

    Args:
        proto: the model; its initializers are ignored.
        tables: the tables that are replaced.
        edit: holds the parts of each table.
        where: the file, for error messages.
        filled: whether the contents of the parts can be read; if not, only sizes are right.

    Returns:
        The nodes that were replaced; node i by those of group i.

    Raises:
        UsageError: a use of a table cannot be replaced.
    """
    graph = proto.graph
    opset = _opset(proto, where)
    taken = {value for each in graphs_in(graph) for node in each.node for value in node.output}
    clash = next((new.name for new in edit.add if new.name in taken), None)
    clash = clash or next((value for value in taken if value.startswith(PREFIX)), None)
    if clash is not None:
        raise UsageError(f"{where}: a value of the graph is named {clash} already", remedy="rename it")
    groups: dict[int, Group] = {}
    old: list[onnx.NodeProto] = []
    gone: set[str] = set()
    for info in tables:
        parts = {n.name.removeprefix(f"{stem(info.name)}."): n for n in edit.add if n.replaces == info.name}
        shape = (info.shape[0], info.shape[1])
        stored = Stored(info.name, shape, info.matrix_dtype(), parts, where, opset, filled)
        table = edit.graphs[info.name]()
        stored.needs(table.opset)
        uses = [use for name in _names_of(info, edit) for use in uses_of(graph, name, stored.dtype, where)]
        if not uses:
            raise UsageError(f"{where}: no node uses {info.name}", remedy="name another with --key")
        for use in uses:
            group = Group(len(old), opset)
            _compute(group, use, table, replace(stored, dtype=use.dtype))
            groups[id(use.node)] = group
            old.append(use.node)
            if use.kind in (TRANSPOSE, PASSED_ON):
                gone.add(use.node.output[0])
    kept = [_copy(node) for node in old]
    for each in reversed([*graphs_in(graph)]):  # inner graphs first, since outer ones copy their nodes
        _replace(each, [new for node in each.node for new in _of(groups, node)])
        _drop_values(each, gone)
    return kept


def restore(
    proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], parts: frozenset[str], where: Path
) -> None:
    """Put the replaced nodes back into ``proto``, in place.

    Args:
        proto: the model.
        nodes: the replaced nodes, by the number of their group.
        parts: names of the initializers that are removed.
        where: the file, for error messages.

    Raises:
        InputError: the graph has been changed since it was compressed.
    """
    seen: set[int] = set()
    for graph in reversed([*graphs_in(proto.graph)]):
        found: list[onnx.NodeProto] = []
        for node in graph.node:
            number = number_of(node)
            if number is None:
                found.append(node)
            elif number >= len(nodes):
                raise _changed(where)
            elif number not in seen:
                seen.add(number)
                found.append(_copy(nodes[number]))
        _replace(graph, found)
    if len(seen) < len(nodes):
        raise _changed(where)
    for graph in graphs_in(proto.graph):
        made = {value for node in graph.node for value in node.output if value}
        if len(made) < sum(bool(v) for node in graph.node for v in node.output):
            raise _changed(where)
        for node in graph.node:
            if any(name in parts or name.startswith(PREFIX) for name in node.input):
                raise _changed(where)


def declare(proto: onnx.ModelProto, remove: frozenset[str], add: Sequence[NewTensor]) -> None:
    """Update the inputs of the graph for removed and added initializers.

    Before IR version 4 every initializer must be an input too. Since then, an input with the name of an
    initializer means that callers may override it, which is impossible for a removed table.
    """
    graph = proto.graph
    inputs = [value for value in graph.input if value.name not in remove]
    if proto.ir_version < 4:
        inputs += [helper.make_tensor_value_info(n.name, DATA_TYPES[n.dtype.name], n.shape) for n in add]
    inputs = [_copy(value) for value in inputs]
    del graph.input[:]
    graph.input.extend(inputs)
    _drop_values(graph, {*remove})


def _compute(group: Group, use: Use, table: TableGraph, stored: Stored) -> None:
    """Add the nodes that take the place of one node; at least one, which marks the place."""
    made = use.node.output[0]
    if use.kind == GATHER:
        rows, dtype = table.lookup(group, use.node.input[1], stored)
        group.cast(rows, dtype, stored.dtype, made)
    elif use.kind != PASSED_ON:
        table.product(group, use, stored)
    elif use.transposed is None:
        # What reads the value reads the parts instead, so that this node only keeps the place.
        group.add("Identity", next(iter(stored.parts.values())).name)
    else:
        options = attributes_of(use.node)
        group.add(use.node.op_type, transposed_name(use.transposed), output=transposed_name(made), **options)


def _names_of(info: TensorInfo, edit: Edit) -> tuple[str, ...]:
    """All names of a replaced table: its own, and those whose parts are aliases of its parts."""
    (first, *_) = (new for new in edit.add if new.replaces == info.name)
    suffix = first.name.removeprefix(f"{stem(info.name)}.")
    ties = (name for name in sorted(edit.remove) if edit.aliases.get(part_name(name, suffix)) == first.name)
    return (info.name, *ties)


def _opset(proto: onnx.ModelProto, where: Path) -> int:
    found = [int(entry.version) for entry in proto.opset_import if entry.domain in STANDARD]
    if not found:
        raise InputError(f"{where}: has no version of the standard operators", remedy="export it again")
    return max(found)


def _of(groups: dict[int, Group], node: onnx.NodeProto) -> list[onnx.NodeProto]:
    group = groups.get(id(node))
    return [node] if group is None else group.nodes


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph; some of the new ones may be among the old."""
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _drop_values(graph: onnx.GraphProto, names: set[str]) -> None:
    """Drop the shape information of removed values."""
    kept = [value for value in graph.value_info if value.name not in names]
    if len(kept) < len(graph.value_info):
        kept = [_copy(value) for value in kept]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _changed(where: Path) -> InputError:
    return InputError(
        f"{where}: the nodes of its compressed tables have been changed since they were written",
        remedy="make the file again from its source",
    )
