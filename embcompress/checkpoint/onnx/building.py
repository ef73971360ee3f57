"""Builds the nodes that replace one node of a graph; their names identify them, and the old node is kept."""

from __future__ import annotations

import abc
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from embcompress.checkpoint.onnx.model import DATA_TYPES, has_text, tensors_in
from embcompress.checkpoint.onnx.uses import Use, label
from embcompress.checkpoint.tensors import NewTensor
from embcompress.choices import DEFAULT_METHOD
from embcompress.dtypes import DTYPES, DType
from embcompress.errors import InputError, UsageError

PREFIX = "embcompress/"
"""Prefix of the names of our nodes and values; the number of their group follows."""

NODES_KEY = "embcompress.nodes"
"""Metadata key of the replaced nodes: a JSON list of base64 strings, indexed by the number of the group."""


REPLACED = ("Gather", "Transpose", "MatMul", "Gemm", "Identity", "Cast")
"""Operators of the nodes that can be replaced."""


@dataclass(frozen=True)
class Stored:
    """A compressed table in a graph.

    Attributes:
        name: name of the table.
        shape: (V, d) of the table.
        dtype: element type of the table.
        parts: its parts by suffix.
        where: the file, for error messages.
        opset: version of the standard operators in the model.
        filled: whether the contents of the parts can be read; if not, only their sizes are known.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    parts: Mapping[str, NewTensor]
    where: Path
    opset: int
    filled: bool

    def part(self, suffix: str) -> str:
        """Name of the initializer that holds the part."""
        return self.parts[suffix].name

    def content(self, suffix: str) -> NDArray[Any] | None:
        """Contents of the part; None unless ``filled``."""
        return np.concatenate([*self.parts[suffix].blocks()]) if self.filled else None

    def needs(self, opset: int) -> None:
        """Refuse a model whose operators are older than ``opset``.

        Raises:
            UsageError: with both versions.
        """
        if self.opset < opset:
            raise UsageError(
                f"{self.where}: has opset {self.opset}, the compressed {self.name} needs at least {opset}",
                remedy="export it again, or convert it with onnx.version_converter",
            )


class Group:
    """The nodes that replace one node.

    Args:
        number: number of the group.
        opset: version of the standard operators in the model.
    """

    def __init__(self, number: int, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix, self._opset = f"{PREFIX}{number}/", opset

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output; it is generated unless given."""
        name = f"{self._prefix}{len(self.nodes)}_{kind}"
        output = name if output is None else output
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def constant(self, values: Any, dtype: str) -> str:
        """Add a constant, and return its name; ``dtype`` is a key of ``DTYPES``."""
        array = np.asarray(values, DTYPES[dtype].storage)
        return self.add("Constant", value=numpy_helper.from_array(array))

    def cast(self, value: str, source: DType, target: DType, output: str | None = None) -> str:
        """Convert a value if its type differs from ``target``, and return the name of the result.

        If ``output`` is given, the result has that name; ``value`` is then the output of the last node.
        """
        if source != target:
            return self.add("Cast", value, output=output, to=DATA_TYPES[target.name])
        if output is not None:
            assert [*self.nodes[-1].output] == [value], "only the last output can be renamed"
            self.nodes[-1].output[0] = output
        return output or value

    def last_axis(self, value: str) -> str:
        """Add an axis of size 1 after the others; needs opset 11."""
        if self._opset < 13:
            return self.add("Unsqueeze", value, axes=[-1])
        return self.add("Unsqueeze", value, self.constant([-1], "I64"))


class TableGraph(abc.ABC):
    """How a graph computes with the parts of a compressed table; each method has its own subclass.

    Attributes:
        opset: oldest version of the standard operators with everything that is used.
    """

    opset: ClassVar[int]

    @abc.abstractmethod
    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Add nodes that look up the rows of token ids.

        Args:
            group: the nodes are added to it.
            ids: name of the value that holds the ids (any shape).
            stored: the table and its parts.

        Returns:
            Name and element type of the value that holds the rows (…×d).
        """

    def product(self, group: Group, use: Use, stored: Stored) -> None:  # noqa: ARG002
        """Add nodes that compute the output of a node that transposes the table or multiplies by it.

        Args:
            group: the nodes are added to it.
            use: the node, and how it uses the table.
            stored: the table and its parts.

        Raises:
            UsageError: the method does not support products.
        """
        raise UsageError(
            f"{stored.where}: node {label(use.node)} multiplies by {stored.name}, "
            "which coded rows do not support",
            remedy=f"choose --method {DEFAULT_METHOD}, or export a head that is not tied",
        )


def transposed_name(name: str) -> str:
    """Name of the value that holds the transposed left factor instead of the transposed table ``name``."""
    return f"{PREFIX}{name}"


def number_of(node: onnx.NodeProto) -> int | None:
    """Number of the group that a node belongs to; None for nodes that are not ours."""
    if not node.name.startswith(PREFIX):
        return None
    number = node.name.removeprefix(PREFIX).partition("/")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def kept_text(nodes: Sequence[onnx.NodeProto]) -> str:
    """Serialize replaced nodes to a metadata entry."""
    return json.dumps([base64.b64encode(n.SerializeToString(deterministic=True)).decode() for n in nodes])


def kept_nodes(text: str, where: Path) -> list[onnx.NodeProto]:
    """Parse replaced nodes from a metadata entry.

    Raises:
        InputError: the entry does not hold such nodes.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise TypeError
        data = [base64.b64decode(each, validate=True) for each in found]
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise InputError(
            f"{where}: the metadata under {NODES_KEY} cannot be read",
            remedy="make the file again from its source",
        ) from None
    try:
        nodes = [onnx.NodeProto.FromString(each) for each in data]
        if not all(node.op_type in REPLACED and has_text(node) and not [*tensors_in(node)] for node in nodes):
            raise ValueError
    except Exception as error:  # google.protobuf's DecodeError; the package is not ours to import
        raise InputError(
            f"{where}: the metadata under {NODES_KEY} hold no nodes ({type(error).__name__})",
            remedy="make the file again from its source",
        ) from None
    return nodes
