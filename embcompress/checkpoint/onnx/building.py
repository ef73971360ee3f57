"""Nodes that stand in the place of one: named so that they are found again, and the old node kept."""

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
"""What the names of our nodes and values begin with; the number of their group comes next."""

NODES_KEY = "embcompress.nodes"
"""Metadata entry with the nodes that were replaced, base64 in a JSON list, by the number of their group."""


REPLACED = ("Gather", "Transpose", "MatMul", "Gemm")
"""Operators of nodes that are ever replaced."""


@dataclass(frozen=True)
class Stored:
    """The stored parts that replace a table.

    Attributes:
        name: name of the table.
        shape: shape of the table (V, d).
        dtype: element type of the table.
        parts: the parts by suffix.
        where: the file, for errors.
        opset: version of the standard operators.
        filled: whether the contents of the parts can be read.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    parts: Mapping[str, NewTensor]
    where: Path
    opset: int
    filled: bool

    def part(self, suffix: str) -> str:
        """Name of the initializer that holds a part."""
        return self.parts[suffix].name

    def content(self, suffix: str) -> NDArray[Any] | None:
        """What is in a part; None while only sizes matter and it is not made yet."""
        return np.concatenate([*self.parts[suffix].blocks()]) if self.filled else None

    def needs(self, opset: int) -> None:
        """Refuse a model with older operators than that.

        Raises:
            UsageError: with both versions.
        """
        if self.opset < opset:
            raise UsageError(
                f"{self.where}: has opset {self.opset}, the parts of {self.name} need {opset}",
                remedy="export it anew, or convert it with onnx.version_converter",
            )


class Group:
    """The nodes that stand in the place of one.

    Args:
        number: of the group.
        opset: version of the standard operators.
    """

    def __init__(self, number: int, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix, self._opset = f"{PREFIX}{number}/", opset

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; the name of its one output, which is made up unless given."""
        name = f"{self._prefix}{len(self.nodes)}_{kind}"
        output = name if output is None else output
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def constant(self, values: Any, dtype: str) -> str:
        """Add a constant of an element type named as in ``DTYPES``."""
        array = np.asarray(values, DTYPES[dtype].storage)
        return self.add("Constant", value=numpy_helper.from_array(array))

    def cast(self, value: str, source: DType, target: DType, output: str | None = None) -> str:
        """Convert a value, where that is to be done or the result needs a name of its own."""
        if source != target:
            return self.add("Cast", value, output=output, to=DATA_TYPES[target.name])
        if output is not None:
            assert [*self.nodes[-1].output] == [value], "only what was made last can be renamed"
            self.nodes[-1].output[0] = output
        return output or value

    def last_axis(self, value: str) -> str:
        """The same with one axis more, of size 1, behind the others; from opset 11 on."""
        if self._opset < 13:
            return self.add("Unsqueeze", value, axes=[-1])
        return self.add("Unsqueeze", value, self.constant([-1], "I64"))


class TableGraph(abc.ABC):
    """How a graph computes with a table from the parts that stand for it; each method has its own.

    Attributes:
        opset: first version of the standard operators that has everything it uses.
    """

    opset: ClassVar[int]

    @abc.abstractmethod
    def lookup(self, group: Group, ids: str, stored: Stored) -> tuple[str, DType]:
        """Add what computes the rows of these ids.

        Args:
            group: gets the nodes.
            ids: name of the value that holds the ids (any shape).
            stored: the parts.

        Returns:
            Name and element type of the value that holds the rows (…×d).
        """

    def product(self, group: Group, use: Use, stored: Stored) -> None:  # noqa: ARG002
        """Add what computes the outputs of a node that multiplies by the table or its transpose.

        Raises:
            UsageError: the stored parts have no product.
        """
        raise UsageError(
            f"{stored.where}: node {label(use.node)} multiplies by {stored.name}, "
            "and rows of codes have no product",
            remedy=f"choose --method {DEFAULT_METHOD}, or export a head that is not tied",
        )


def number_of(node: onnx.NodeProto) -> int | None:
    """The group that a node belongs to, None where it is a stranger's."""
    if not node.name.startswith(PREFIX):
        return None
    number = node.name.removeprefix(PREFIX).partition("/")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 10 else None


def kept_text(nodes: Sequence[onnx.NodeProto]) -> str:
    """The replaced nodes as a metadata entry."""
    return json.dumps([base64.b64encode(n.SerializeToString(deterministic=True)).decode() for n in nodes])


def kept_nodes(text: str, where: Path) -> list[onnx.NodeProto]:
    """The replaced nodes from a metadata entry.

    Raises:
        InputError: it holds none.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, list):
            raise TypeError
        data = [base64.b64decode(each, validate=True) for each in found]
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise InputError(
            f"{where}: the metadata under {NODES_KEY} cannot be read", remedy="make it again from its source"
        ) from None
    try:
        nodes = [onnx.NodeProto.FromString(each) for each in data]
        if not all(node.op_type in REPLACED and has_text(node) and not [*tensors_in(node)] for node in nodes):
            raise ValueError
    except Exception as error:  # google.protobuf's DecodeError; the package is not ours to import
        raise InputError(
            f"{where}: the metadata under {NODES_KEY} hold no nodes ({type(error).__name__})",
            remedy="make it again from its source",
        ) from None
    return nodes
