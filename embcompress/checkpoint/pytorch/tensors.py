"""Describe the tensors that pickled calls would rebuild: type, shape and the bytes they view."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from embcompress.checkpoint.pickles.allowed import REBUILD
from embcompress.checkpoint.pickles.nodes import Call, Global, StorageRef, children, walk
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.dtypes import BY_TORCH_NAME, DType
from embcompress.errors import InputError
from embcompress.storage.zipstore import AGAIN, Extent

_UTILS = "torch._utils."
_PARAMETERS = {f"{_UTILS}_rebuild_parameter", f"{_UTILS}_rebuild_parameter_with_state"}
_LAYOUTS = {
    f"{_UTILS}_rebuild_sparse_tensor": "sparse",
    f"{_UTILS}_rebuild_qtensor": "quantized",
    f"{_UTILS}_rebuild_meta_tensor_no_storage": "meta",
}
_ARGUMENTS: Final = {
    f"{_UTILS}_rebuild_tensor": (4, 4),
    f"{_UTILS}_rebuild_tensor_v2": (6, 7),
    f"{_UTILS}_rebuild_tensor_v3": (7, 8),
}
"""Functions that build dense tensors -> fewest and most arguments."""

_KIND_DTYPE: Final = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "QInt32": "qint32",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
    "Untyped": "uint8",
}
"""Storage class without its ending ``Storage`` -> torch dtype of its elements."""

_UNNAMED_BYTES: Final = {"complex32": 4, "qint32": 4, "bits16": 2}
"""Bytes of dtypes that have no :class:`DType`; those not listed take one byte."""

_MAX_BYTES = 1 << 62
_MAX_DIMENSIONS = 64
GRANULE = 16
"""Bytes of the widest element (complex128); a cut at a multiple of it splits no element of any type."""


def storage_kind(dtype: DType) -> Global:
    """The storage class of ``dtype``, which must be one of the dtypes that have their own."""
    kind = next(kind for kind, name in _KIND_DTYPE.items() if name == dtype.torch)
    return Global("torch", f"{kind}Storage")


@dataclass(frozen=True)
class View:
    """A dense tensor: a view of a storage.

    Attributes:
        storage: the storage it views.
        torch_dtype: name of its torch dtype.
        itemsize: bytes per element.
        offset: position of its first element, counted in elements of its own type.
        shape: size of each dimension.
        stride: step between neighbours along each dimension, in elements.
        plain: False if flags in the metadata (conjugate, negative) change what the bytes mean.
    """

    storage: StorageRef
    torch_dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    plain: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return _product(self.shape)

    @property
    def span(self) -> int:
        """Number of elements from the first to the last one it views; 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    @property
    def begin(self) -> int:
        """First byte it views, counted from the start of its storage."""
        return self.offset * self.itemsize

    @property
    def end(self) -> int:
        """The byte after the last one it views."""
        return self.begin + self.span * self.itemsize

    @property
    def memory(self) -> tuple[object, ...]:
        """What two views have in common if they are the same tensor."""
        return self.storage.key, self.torch_dtype, self.offset, self.shape, self.stride, self.plain

    @property
    def dtype(self) -> DType | None:
        """Element type; None for types that :class:`DType` lacks or that are packed (two per byte)."""
        dtype = BY_TORCH_NAME.get(self.torch_dtype)
        return dtype if dtype is not None and dtype.bits == 8 * self.itemsize else None


def parse_view(node: object, where: str) -> View | None:
    """The dense tensor that ``node`` rebuilds; None if it rebuilds anything else.

    Raises:
        InputError: it is such a call, but its arguments do not describe a tensor.
    """
    if not isinstance(node, Call) or str(node.function) not in _ARGUMENTS:
        return None
    fewest, most = _ARGUMENTS[str(node.function)]
    args = node.args
    if not fewest <= len(args) <= most or not isinstance(args[0], StorageRef) or type(args[1]) is not int:
        raise InputError(f"{where}: a tensor has unusual arguments for {node.function}", remedy=AGAIN)
    kind = args[0].kind.name.removesuffix("Storage")
    dtype: object = Global("torch", _KIND_DTYPE[kind])
    rest = args[4:]
    if fewest == 7:
        dtype, rest = args[6], (*args[4:6], *args[7:])
    if not isinstance(dtype, Global) or not (rest == () or isinstance(rest[0], bool)):
        raise InputError(f"{where}: a tensor has unusual arguments for {node.function}", remedy=AGAIN)
    # Hooks are None or an empty OrderedDict; metadata, if they follow, are a dict.
    if rest and (rest[1] or not all(isinstance(value, dict | None) for value in rest[1:])):
        raise InputError(f"{where}: a tensor carries hooks or metadata of an unknown kind", remedy=AGAIN)
    shape, stride = _sizes(args[2], where), _sizes(args[3], where)
    size = _itemsize(dtype.name)
    # Products are compared with limits in Python integers: nothing overflows, nothing is allocated.
    if len(shape) != len(stride) or args[1] < 0 or _product(shape) * size > _MAX_BYTES:
        raise InputError(
            f"{where}: a tensor has shape {_brief(shape)}, strides {_brief(stride)} and offset {args[1]}",
            remedy=AGAIN,
        )
    return View(args[0], dtype.name, size, args[1], shape, stride, plain=not (len(rest) == 3 and rest[2]))


def _sizes(node: object, where: str) -> tuple[int, ...]:
    """Sizes or strides as a tuple; some torch versions wrote a torch.Size."""
    values = node.args[0] if isinstance(node, Call) and str(node.function) == "torch.Size" else node
    if (
        type(values) is not tuple
        or len(values) > _MAX_DIMENSIONS
        or not all(type(v) is int and v >= 0 for v in values)
    ):
        raise InputError(
            f"{where}: the sizes or strides of a tensor are not non-negative integers", remedy=AGAIN
        )
    return values


def _itemsize(torch_dtype: str) -> int:
    dtype = BY_TORCH_NAME.get(torch_dtype)
    return max(1, dtype.bits // 8) if dtype else _UNNAMED_BYTES.get(torch_dtype, 1)


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _brief(sizes: tuple[int, ...]) -> str:
    return str(list(sizes[:8]))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor whose elements are next to each other, row by row."""
    return tuple(_product(shape[i + 1 :]) for i in range(len(shape)))


def storage_bytes(ref: StorageRef) -> int:
    """Bytes of the whole storage."""
    return ref.numel * _itemsize(_KIND_DTYPE[ref.kind.name.removesuffix("Storage")])


def inside_of_tensors(node: object) -> Collection[object]:
    """Like ``children``, but without the storage of a dense tensor.

    The storages that a walk still meets are used by something other than dense tensors.
    """
    dense = isinstance(node, Call) and str(node.function) in _ARGUMENTS
    return node.args[1:] if isinstance(node, Call) and dense else children(node)


def check_storages(root: object, extents: Mapping[str, Extent], where: str) -> None:
    """Compare every storage and every tensor under ``root`` with the bytes in the file.

    Raises:
        InputError: a storage is missing, has the wrong size or two descriptions, or a tensor
            reaches beyond its storage.
    """
    known: dict[str, StorageRef] = {}
    for node in walk(root):
        if isinstance(node, StorageRef):
            _check_storage(node, known.setdefault(node.key, node), extents, where)
        # The walk visits parents first, so a view is checked before its storage; both checks must pass.
        view = parse_view(node, where) if isinstance(node, Call) else None
        if view and view.end > storage_bytes(view.storage):
            raise InputError(
                f"{where}: a tensor of shape {_brief(view.shape)} ends at byte {view.end:,} of storage "
                f"{view.storage.key}, which has {storage_bytes(view.storage):,}",
                remedy=AGAIN,
            )


def _check_storage(ref: StorageRef, first: StorageRef, extents: Mapping[str, Extent], where: str) -> None:
    extent = extents.get(ref.key)
    if extent is None:
        raise InputError(f"{where}: the bytes of storage {ref.key} are missing", remedy=AGAIN)
    if storage_bytes(ref) != extent.size:
        raise InputError(
            f"{where}: storage {ref.key} has {extent.size:,} bytes, its {ref.numel:,} elements need "
            f"{storage_bytes(ref):,}",
            remedy=AGAIN,
        )
    if extent.size and (ref.kind, ref.location) != (first.kind, first.location):
        raise InputError(f"{where}: storage {ref.key} is described in two ways", remedy=AGAIN)


def view_of(call: Call) -> View:
    """The dense tensor that ``call`` rebuilds, which has been parsed before."""
    view = parse_view(call, "")
    assert view is not None
    return view


def memory_of(node: object, where: str) -> tuple[object, ...] | None:
    """The memory of a dense tensor, see :attr:`View.memory`; None for an empty one, and for anything else."""
    view = parse_view(unwrap(node), where)
    return view.memory if view is not None and view.span else None


def unwrap(node: object) -> object:
    """The tensor inside a Parameter; any other node is returned unchanged."""
    return node.args[0] if is_parameter(node) and isinstance(node, Call) and node.args else node


def is_parameter(node: object) -> bool:
    """Whether ``node`` rebuilds an ``nn.Parameter``."""
    return isinstance(node, Call) and str(node.function) in _PARAMETERS


def is_tensor(node: object) -> bool:
    """Whether ``node`` rebuilds a tensor of any layout."""
    return isinstance(node, Call) and str(node.function) in REBUILD


def describe(name: str, node: Any, where: str) -> TensorInfo:
    """Describe the tensor that ``node`` rebuilds (see :func:`is_tensor`), under the key ``name``."""
    inner = unwrap(node)
    view = parse_view(inner, where)
    if view is not None:
        # Overlapping elements (expand) or bytes with flags cannot be read as a table.
        dense = view.plain and view.numel <= view.span
        return TensorInfo(
            name, view.dtype, view.shape, view.numel * view.itemsize, "dense" if dense else "object"
        )
    parts = (parse_view(part, where) for part in walk(inner))
    nbytes = sum(part.numel * part.itemsize for part in parts if part)
    function = str(inner.function) if isinstance(inner, Call) else ""
    return TensorInfo(name, None, _stated_shape(inner), nbytes, _LAYOUTS.get(function, "object"))


def _stated_shape(node: object) -> tuple[int, ...]:
    """The shape that the call of a tensor that is not dense states; () if it states none."""
    args = node.args if isinstance(node, Call) else ()
    # Arguments: (layout, (indices, values, shape, …)), (dtype, shape, …) or (storage, offset, shape, …)
    candidates = (*args[:3], *(args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()))
    for value in candidates:
        sizes = value.args[0] if isinstance(value, Call) and str(value.function) == "torch.Size" else value
        if type(sizes) is tuple and len(sizes) <= _MAX_DIMENSIONS and all(type(n) is int for n in sizes):
            return sizes
    return ()
