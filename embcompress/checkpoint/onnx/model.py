"""Reads an ONNX model: parses the graph without its weights, and finds where the data of each weight is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embcompress.checkpoint.names import FILE_NAME_LIMIT, check_name, check_not_pointer
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.dtypes import DTYPES, DType
from embcompress.errors import InputError, UsageError
from embcompress.storage.protobuf import Field, Wire, field
from embcompress.storage.rawio import read_at

if TYPE_CHECKING:
    import onnx

PROTOBUF_LIMIT: Final = (1 << 31) - 1
"""Largest protobuf message that libraries read, in bytes; larger models keep weights in data files."""

GRAPH, METADATA = 7, 14
"""Fields of ModelProto."""
INITIALIZER: Final = 5
"""Field of GraphProto."""
RAW, _FLOATS, _DOUBLES = 9, 4, 10
"""Fields of TensorProto that hold the elements as bytes."""
_NODE, _ATTRIBUTE, _TENSOR = 1, 5, 5
"""Fields of GraphProto, NodeProto and AttributeProto."""

_SMALLEST_CONSTANT = 1024
"""Bytes of the smallest node that is searched for a matrix in it. Others hold names and a few numbers."""
_PLACE = b"location"
"""In every node whose matrix is in a data file."""

_MOST_AXES = 64  # the product of a long list of sizes would take hours
_TYPES = {1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64"}
_TYPES |= {12: "U32", 13: "U64", 14: "C64", 15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ"}
_TYPES |= {19: "F8_E5M2", 20: "F8_E5M2FNUZ", 23: "F4", 24: "F8_E8M0"}
DATA_TYPES: Mapping[str, int] = {name: number for number, name in _TYPES.items()}
"""Number in ``TensorProto.DataType`` of each element type in ``DTYPES`` that ONNX has."""


@dataclass(frozen=True)
class DataExtent:
    """Where the data of a tensor is.

    Attributes:
        file: the model or a data file.
        offset: offset of the first byte.
        nbytes: number of bytes.
        field: the field of TensorProto that holds the data; 0 for a data file.
    """

    file: Path
    offset: int
    nbytes: int
    field: int


@dataclass(frozen=True)
class Weight:
    """One initializer.

    Attributes:
        info: name, type and shape.
        extent: where its data is; None if it is in a list of numbers, which is parsed with the graph.
    """

    info: TensorInfo
    extent: DataExtent | None


@dataclass(frozen=True)
class Model:
    """A model whose weights are still in their files.

    A large ``Constant`` node of the main graph that holds a float matrix is read as the initializer that it
    might as well be: some exporters write tables so.

    Attributes:
        proto: the parsed model, with the headers of its initializers but not their data.
        weights: the initializers by name, in order.
        nested: data in data files of tensors inside nodes and subgraphs, in the order of :func:`tensors_in`.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, Weight]
    nested: tuple[DataExtent, ...]


def library() -> Any:
    """Import the package ``onnx``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise UsageError(
            "ONNX models need the package onnx", remedy="pip install 'embcompress[onnx]'"
        ) from None
    return onnx


def read_model(fd: int, path: Path) -> Model:
    """Read the model in ``fd``, without its weights.

    Raises:
        InputError: it is corrupt, or its data files are not in its folder.
        UsageError: the package onnx is missing.
    """
    size = os.fstat(fd).st_size
    check_not_pointer(read_at(fd, 64, 0), path)
    if size > PROTOBUF_LIMIT:
        raise InputError(f"{path}: takes {size:,} bytes, limit {PROTOBUF_LIMIT:,} for ONNX")
    wire = Wire(fd, size, str(path))
    parse = library().ModelProto.FromString
    skeleton, extents = _skeleton(wire, path)
    try:
        proto = parse(skeleton)
    except Exception as error:  # google.protobuf's DecodeError; the package is not ours to import
        raise _corrupt(path, f"is not an ONNX model ({type(error).__name__})") from None
    if not proto.HasField("graph") or len(proto.graph.initializer) != len(extents):
        raise _corrupt(path, "holds no graph")
    if not has_text(proto):
        raise _corrupt(path, "holds a name that is not UTF-8")
    if proto.ir_version < 4:  # every initializer is an input
        given = {value.name for value in proto.graph.input}
        for tensor in proto.graph.initializer:
            if tensor.name not in given:
                value = library().helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                proto.graph.input.append(value)
    weights: dict[str, Weight] = {}
    for tensor, extent in zip(proto.graph.initializer, extents, strict=True):
        check_name(tensor.name, path)
        if not tensor.name or tensor.name in weights:
            raise _corrupt(path, f"holds two tensors named {tensor.name!r}")
        weights[tensor.name] = _weight(tensor, extent, path)
    proto_tensors = (t for t in tensors_in(proto, skip_initializers=True) if is_external(t))
    return Model(proto, weights, tuple(_external(t, path) for t in proto_tensors))


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the data of ``tensor`` is in a data file."""
    return bool(tensor.data_location == 1)


def tensors_in(message: Any, *, skip_initializers: bool = False) -> Iterator[onnx.TensorProto]:
    """Yield all tensors inside a message, including subgraphs, attributes and functions.

    Args:
        message: a ModelProto or a part of it.
        skip_initializers: leave out the initializers of the main graph.
    """
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if skip_initializers and descriptor.message_type.name == "GraphProto":
            for inner, items in value.ListFields():
                if inner.message_type is not None and inner.name != "initializer":
                    yield from _tensors_of(items)
        else:
            yield from _tensors_of(value)


def has_text(message: Any) -> bool:
    """Whether all text in a message is UTF-8; the parser returns other text as bytes."""
    for descriptor, value in message.ListFields():
        several = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
        if descriptor.type == descriptor.TYPE_MESSAGE and not all(map(has_text, several)):
            return False
        if descriptor.type == descriptor.TYPE_STRING and bytes in map(type, several):
            return False
    return True


def _tensors_of(value: Any) -> Iterator[onnx.TensorProto]:
    for item in [value] if hasattr(value, "ListFields") else value:
        if item.DESCRIPTOR.name == "TensorProto":
            yield item
        else:
            yield from tensors_in(item)


def _skeleton(wire: Wire, path: Path) -> tuple[bytes, list[DataExtent | None]]:
    """The bytes of the model without the data of its initializers, and where that data is."""
    kept: list[bytes] = []
    graphs: list[Field] = []
    for part in wire.fields(0, wire.size):
        if part.number == GRAPH:
            graphs.append(part)
        else:
            kept.append(wire.read(part.start, part.end))
    if len(graphs) != 1 or not graphs[0].is_bytes:
        raise _corrupt(path, "is not an ONNX model: it holds no graph" if not graphs else "holds two graphs")
    inside: list[bytes] = []
    extents: list[DataExtent | None] = []
    for part in wire.fields(graphs[0].begin, graphs[0].end):
        if part.number == INITIALIZER and part.is_bytes:
            header, extent = _tensor(wire, part, path)
        elif (constant := _constant(wire, part, path)) is not None:
            header, extent = constant
        else:
            inside.append(wire.read(part.start, part.end))
            continue
        inside.append(field(INITIALIZER, header))
        extents.append(extent)
    return b"".join([*kept, field(GRAPH, b"".join(inside))]), extents


def _tensor(wire: Wire, part: Field, path: Path) -> tuple[bytes, DataExtent | None]:
    """A tensor without its data, and where the data is."""
    header: list[bytes] = []
    found: list[DataExtent] = []
    for piece in wire.fields(part.begin, part.end):
        if piece.number in (RAW, _FLOATS, _DOUBLES) and piece.is_bytes:
            found.append(DataExtent(path, piece.begin, piece.length, piece.number))
        else:
            header.append(wire.read(piece.start, piece.end))
    if len(found) > 1:
        raise _corrupt(path, "a tensor holds its data twice")
    return b"".join(header), found[0] if found else None


def _constant(wire: Wire, part: Field, path: Path) -> tuple[bytes, DataExtent | None] | None:
    """The same for a node that gives out a float matrix, as an initializer; None for all other nodes."""
    if part.number != _NODE or not part.is_bytes:
        return None
    if part.length < _SMALLEST_CONSTANT and _PLACE not in wire.read(part.begin, part.end):
        return None
    onnx = library()
    rest, attributes = _apart(wire, part, _ATTRIBUTE)
    try:
        node = onnx.NodeProto.FromString(rest)
        if node.op_type != "Constant" or node.domain or len(node.output) != 1 or len(attributes) != 1:
            return None
        rest, tensors = _apart(wire, attributes[0], _TENSOR)
        attribute = onnx.AttributeProto.FromString(rest)
        if attribute.name != "value" or attribute.type != attribute.TENSOR or len(tensors) != 1:
            return None
        header, extent = _tensor(wire, tensors[0], path)
        tensor = onnx.TensorProto.FromString(header)
        dtype = _dtype(tensor)
        if len(tensor.dims) != 2 or dtype is None or not dtype.is_table:
            return None
        tensor.name = node.output[0]
    except Exception:  # of protobuf, among others; reading the whole model says what is wrong
        return None
    return tensor.SerializeToString(deterministic=True), extent


def _apart(wire: Wire, message: Field, number: int) -> tuple[bytes, list[Field]]:
    """A message without its fields of this number, and these fields."""
    pieces = [*wire.fields(message.begin, message.end)]
    rest = b"".join(wire.read(piece.start, piece.end) for piece in pieces if piece.number != number)
    return rest, [piece for piece in pieces if piece.number == number and piece.is_bytes]


def _weight(tensor: onnx.TensorProto, extent: DataExtent | None, path: Path) -> Weight:
    shape, dtype = tuple(tensor.dims), _dtype(tensor)
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape) or math.prod(shape) >= 1 << 63:
        raise _corrupt(path, f"{tensor.name} has the shape {list(shape[:_MOST_AXES])}")
    expected = None if dtype is None else dtype.nbytes(math.prod(shape))
    if is_external(tensor):
        if extent is not None:
            raise _corrupt(path, f"{tensor.name} has data in the model and in a data file")
        extent = _external(tensor, path, expected)
    if extent is None and expected == 0:
        extent = DataExtent(path, 0, 0, RAW)
    if extent is None or (extent.field != RAW and extent.field and not _as_stored(extent, dtype)):
        return Weight(TensorInfo(tensor.name, dtype, shape, expected or 0, "listed"), extent)
    if expected is not None and extent.nbytes != expected:
        raise _corrupt(
            path, f"{tensor.name} {list(shape)} takes {expected:,} bytes, {extent.nbytes:,} are stored"
        )
    return Weight(TensorInfo(tensor.name, dtype, shape, extent.nbytes), extent)


def _dtype(tensor: onnx.TensorProto) -> DType | None:
    name = _TYPES.get(tensor.data_type)
    return None if name is None else DTYPES[name]


def _as_stored(extent: DataExtent, dtype: DType | None) -> bool:
    """Whether a packed list of numbers has the same bytes as raw data of this element type."""
    return dtype is not None and dtype.name == {_FLOATS: "F32", _DOUBLES: "F64"}[extent.field]


def _external(tensor: onnx.TensorProto, path: Path, expected: int | None = None) -> DataExtent:
    """Where in a data file the data of ``tensor`` is.

    Raises:
        InputError: the data file is outside the model's folder or not a regular file, or it is too short.
    """
    says = {entry.key: entry.value for entry in tensor.external_data}
    place = says.get("location", "")
    file = _data_file(path, place, tensor.name)
    try:
        size = file.stat().st_size
        offset = int(says.get("offset") or 0)
        length = int(says["length"]) if says.get("length") else (expected or size - offset)
    except OSError as error:
        raise InputError(
            f"{path}: the data of {tensor.name} is in {place!r}, which cannot be read ({error.strerror})",
            remedy="put the file next to the model",
        ) from None
    except ValueError:
        raise _corrupt(path, f"the offset or length of {tensor.name} is not a number") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise _corrupt(path, f"the data of {tensor.name} is not within the {size:,} bytes of {place!r}")
    return DataExtent(file, offset, length, 0)


def _data_file(path: Path, place: str, name: str) -> Path:
    """Path of the data file ``place`` of tensor ``name``, which must be in the folder of the model.

    In a download cache both are links into another folder; the target of the data file may be in that folder.

    Raises:
        InputError: the path leads out of the folder, is too long, or is not a file.
    """

    def refuse(why: str) -> InputError:
        return InputError(
            f"{path}: the data of {name} is in {place!r}, which {why}",
            remedy="put the data file next to the model",
        )

    parts = place.replace("\\", "/").split("/")
    if not place or not place.isprintable() or ":" in place or place.startswith(("/", "\\")) or ".." in parts:
        raise refuse("leads out of the model's folder")
    if len(place.encode()) > FILE_NAME_LIMIT:
        raise refuse(f"has more than {FILE_NAME_LIMIT} bytes")
    file = path.parent / place
    homes = {path.parent.resolve(), path.resolve().parent}
    if not homes & {*file.resolve().parents}:
        raise refuse("leads out of the model's folder")
    if not file.is_file():
        raise refuse("is not a file there")
    return file


def metadata_of(entries: Iterable[onnx.StringStringEntryProto], path: Path) -> dict[str, str]:
    """Return the metadata by key.

    Raises:
        InputError: a key occurs twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        if entry.key in found:
            raise _corrupt(path, f"has the key {entry.key!r} twice in its metadata")
        found[entry.key] = entry.value
    return found


def _corrupt(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}", remedy="make the file again from its source")
