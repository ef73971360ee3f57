"""Element types of checkpoints: one registry for names, sizes and conversion to and from floats.

Names are as in the safetensors format. NumPy has no bfloat16, but its bits are the upper half of a float32,
so that conversion is a shift either way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: name in a safetensors header, e.g. ``"BF16"``.
        bits: bits of an element on disk.
        torch: name of the torch dtype; ``""`` if torch has none.
        storage: NumPy dtype of the stored elements (little endian); ``""`` for types that are only
            copied as bytes.
        significand: bits of the significand, with the hidden bit; 0 for types that a table cannot have.
        largest: largest finite value of a table type.
    """

    name: str
    bits: int
    torch: str = ""
    storage: str = ""
    significand: int = 0
    largest: float = 0.0

    @property
    def is_table(self) -> bool:
        """Whether tables of this type can be compressed, and factors stored in it."""
        return self.significand > 0

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of rounding to nearest, 2**-p (Higham 2002, section 2.1)."""
        return 2.0**-self.significand

    @property
    def smallest(self) -> float:
        """Smallest positive value of a table type, a subnormal number."""
        return 2.0 ** (3 - math.frexp(self.largest)[1] - self.significand)

    def nbytes(self, elements: int) -> int:
        """Bytes of ``elements`` packed elements; types of less than a byte round up."""
        return (elements * self.bits + 7) // 8

    def decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Convert stored floats exactly to float32 (F64 to float64); return other elements unchanged."""
        if not self.is_table:
            return stored
        if self.name == "BF16":
            return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.name == "F64":
            return stored.astype(np.float64, copy=False)
        return stored.astype(np.float32, copy=False)

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Round floats to nearest even and return them as they are stored, in the same shape.

        Values beyond ``largest`` become infinite, as in torch; callers check ranges.
        """
        if self.name == "BF16":
            bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding would turn a NaN into infinity
            return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=self.storage)


_ALL = (
    DType("F64", 64, "float64", "<f8", 53, 1.7976931348623157e308),
    DType("F32", 32, "float32", "<f4", 24, 3.4028234663852886e38),
    DType("F16", 16, "float16", "<f2", 11, 65504.0),
    DType("BF16", 16, "bfloat16", "<u2", 8, 3.3895313892515355e38),
    DType("I64", 64, "int64", "<i8"),
    DType("I32", 32, "int32", "<i4"),
    DType("I16", 16, "int16", "<i2"),
    DType("I8", 8, "int8", "|i1"),
    DType("U64", 64, "uint64", "<u8"),
    DType("U32", 32, "uint32", "<u4"),
    DType("U16", 16, "uint16", "<u2"),
    DType("U8", 8, "uint8", "|u1"),
    DType("BOOL", 8, "bool", "|b1"),
    DType("C64", 64, "complex64"),
    DType("C128", 128, "complex128"),
    DType("F8_E4M3", 8, "float8_e4m3fn"),
    DType("F8_E5M2", 8, "float8_e5m2"),
    DType("F8_E8M0", 8, "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
    DType("F6_E2M3", 6),
    DType("F6_E3M2", 6),
    DType("F4", 4, "float4_e2m1fn_x2"),
)

DTYPES: dict[str, DType] = {d.name: d for d in _ALL}
BY_TORCH_NAME: dict[str, DType] = {d.torch: d for d in _ALL if d.torch}
TABLE_DTYPES: tuple[DType, ...] = tuple(d for d in _ALL if d.is_table)
