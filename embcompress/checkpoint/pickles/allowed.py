"""The allowlists for torch pickles: names of weights and plain data, and the arguments that calls may have.

The first is the list of ``torch.load(weights_only=True)`` (torch._weights_only_unpickler of torch 2.13).
They hold strings only; nothing is imported or called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TYPED = ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16")
_COMPLEX = ("ComplexDouble", "ComplexFloat")
_QUANTIZED = ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")
_DTYPES = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)),
    *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")),
    *("float64", "float32", "float16", "bfloat16", "float4_e2m1fn_x2", "bool"),
    *("complex128", "complex64", "complex32", "qint8", "qint32", "quint8", "quint4x2", "quint2x4"),
    *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
)
_SCHEMES = (
    *(f"per_{what}_{how}" for what in ("tensor", "channel") for how in ("affine", "symmetric")),
    "per_channel_affine_float_qparams",
)

REBUILD = frozenset(
    {
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_wrapper_subclass",
    }
)
"""Functions whose calls build tensors."""

ALLOWED = (
    REBUILD
    | {f"torch{device}.{kind}Storage" for device in ("", ".cuda") for kind in _TYPED + _COMPLEX}
    | {f"torch.{kind}Storage" for kind in _QUANTIZED}
    | {f"torch{device}.{kind}Tensor" for device in ("", ".cuda") for kind in _TYPED}
    | {f"torch{device}.sparse.{kind}Tensor" for device in ("", ".cuda") for kind in _TYPED if kind != "Bool"}
    | {f"torch.{name}" for name in (*_DTYPES, *_SCHEMES, "Tensor", "Size", "device")}
    | {"torch.storage.UntypedStorage", "torch.storage.TypedStorage", "torch.nn.parameter.Parameter"}
    | {"torch.serialization._get_layout", "torch._utils._rebuild_device_tensor_from_numpy"}
    | {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {"builtins.bytearray", "builtins.set", "builtins.complex"}
)
"""Every global that ``torch.load(weights_only=True)`` accepts."""

_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_SCALARS = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("intc", "uintc", "longlong", "ulonglong", "bool", "bool_", "str_", "bytes_", "object_"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "clongdouble"),
    *("datetime64", "timedelta64", "void"),
)

PLAIN = frozenset(
    {
        *(f"builtins.{name}" for name in ("frozenset", "slice", "range", "bytes", "object")),
        *(f"builtins.{name}" for name in ("bool", "int", "float", "str", "list", "tuple", "dict")),
        *("collections.defaultdict", "collections.deque"),
        *("argparse.Namespace", "types.SimpleNamespace"),
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *(f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")),
        *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "uuid.SafeUUID"),
        *(f"numpy.{name}" for name in ("ndarray", "dtype", *_SCALARS)),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("_reconstruct", "scalar")
        ),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        "torch.torch_version.TorchVersion",
    }
)
"""Classes of plain data in the standard library, NumPy and torch, and the functions that make them.

``torch.load(weights_only=True)`` does not accept these. They are carried as they are, and never made.
"""

OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
OLD_NAMES = {
    ("__builtin__", "xrange"): "range",
    ("__builtin__", "long"): "int",
    ("__builtin__", "unicode"): "str",
}
"""Names of Python 2, which pickles of protocol 2 still use, and those of Python 3."""

HASHABLE = frozenset({"torch.Size", "torch.device", "builtins.complex", "builtins.frozenset"})
"""Functions whose results are plain values that may be dict keys."""


def _ints(value: Any) -> bool:
    return type(value) is tuple and all(type(v) is int for v in value)


def _encodable(args: tuple[Any, ...]) -> bool:
    return (
        len(args) == 2
        and isinstance(args[0], str)
        and isinstance(args[1], str)
        and args[1] in ("latin1", "latin-1")
        and all(c <= "\xff" for c in args[0])
    )


_LAYOUTS = {
    f"torch.{name}" for name in ("strided", *(f"sparse_{k}" for k in ("coo", "csr", "csc", "bsr", "bsc")))
}

SIGNATURES: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "collections.OrderedDict": lambda a: a == () or (len(a) == 1 and type(a[0]) is list),
    "collections.Counter": lambda a: a == () or (len(a) == 1 and type(a[0]) is dict),
    "torch.Size": lambda a: len(a) == 1 and _ints(a[0]),
    "torch.device": lambda a: 1 <= len(a) <= 2 and isinstance(a[0], str) and _ints(a[1:]),
    "torch.serialization._get_layout": lambda a: len(a) == 1 and isinstance(a[0], str) and a[0] in _LAYOUTS,
    "torch._utils._rebuild_parameter": lambda a: len(a) == 3 and isinstance(a[1], bool),
    "torch._utils._rebuild_parameter_with_state": lambda a: len(a) == 4 and isinstance(a[1], bool),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda a: len(a) == 4 and _ints(a[1]) and _ints(a[2]),
    "_codecs.encode": _encodable,
    "builtins.bytearray": lambda a: a == () or (len(a) == 1 and type(a[0]) is bytes) or _encodable(a),
    "builtins.set": lambda a: len(a) == 1 and type(a[0]) is list,
    "builtins.frozenset": lambda a: a == () or (len(a) == 1 and type(a[0]) is list),
    "builtins.complex": lambda a: len(a) == 2 and all(type(v) is float for v in a),
}
"""The other functions that may be called, each with a check that torch accepts the arguments."""
