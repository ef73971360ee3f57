"""Parts, the stored tensors of a compressed table: what a method may store, and checks of what is stored."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.rows import Rows

REMAKE = "make the file again from its source"
"""Remedy for a file whose parts do not belong together."""


class Elements(enum.Enum):
    """What kind of numbers a part holds."""

    FLOATS = "floats"
    SCALES = "float32 scales (F32)"
    BYTES = "unsigned bytes (U8)"
    ROW_NUMBERS = "row numbers (I32)"

    def include(self, dtype: DType) -> bool:
        """Whether a tensor of this element type holds such numbers."""
        return dtype.is_table if self is Elements.FLOATS else dtype.name == _STORED[self]


_STORED = {Elements.SCALES: "F32", Elements.BYTES: "U8", Elements.ROW_NUMBERS: "I32"}


@dataclass(frozen=True)
class PartSpec:
    """One tensor that a method may store for each table.

    Attributes:
        suffix: end of its name, after the name of the table without ``.weight``; e.g. ``"0.weight"``.
        elements: what kind of numbers it holds.
        optional: whether some layouts do without it.
        trainable: whether retraining changes it; other parts are copied unchanged.
    """

    suffix: str
    elements: Elements
    optional: bool = False
    trainable: bool = False


@dataclass(frozen=True)
class Part:
    """One tensor that will be stored for one table.

    Attributes:
        suffix: as in its :class:`PartSpec`.
        dtype: element type.
        shape: (rows, columns).
    """

    suffix: str
    dtype: DType
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.dtype.nbytes(math.prod(self.shape))


Parts = Mapping[str, Rows]
"""The stored parts of a table by their suffix."""


def check_suffixes(specs: Collection[PartSpec], present: Collection[str]) -> None:
    """Refuse a list of parts that lacks one, or has one that the method does not store.

    Args:
        specs: everything that the method may store.
        present: suffixes of the parts, in stored order.

    Raises:
        InputError: with both lists.
    """
    needed = [spec.suffix for spec in specs if spec.suffix in present or not spec.optional]
    if [*present] != needed:
        raise InputError(f"has the parts {[*present]}, its method stores {needed}", remedy=REMAKE)


def check_elements(specs: Collection[PartSpec], types: Mapping[str, DType | None]) -> None:
    """Refuse parts of the wrong element types.

    Args:
        specs: everything that the method may store.
        types: element type of each part by suffix; None for a type that is not in ``DTYPES``.

    Raises:
        InputError: with the type of the first wrong part, and what was expected.
    """
    for spec in specs:
        dtype = types.get(spec.suffix)
        if spec.suffix in types and not (dtype and spec.elements.include(dtype)):
            found = "an unknown type" if dtype is None else dtype.name
            raise InputError(
                f"part {spec.suffix} is of {found}, expected {spec.elements.value}", remedy=REMAKE
            )


def check_shapes(
    parts: Parts, expected: Mapping[str, tuple[int, int]], shape: tuple[int, int], rank: int | None
) -> None:
    """Refuse parts whose shapes do not fit the record of their table.

    Args:
        parts: the stored parts.
        expected: expected shapes by suffix; other parts are not checked.
        shape: (V, d), from the table's record.
        rank: components kept, from the table's record.

    Raises:
        InputError: with the shapes found, and those of the record.
    """
    if all(parts[suffix].shape == wanted for suffix, wanted in expected.items()):
        return
    found = ", ".join(f"{suffix} {list(part.shape)}" for suffix, part in parts.items())
    of_rank = "" if rank is None else f" of rank {rank}"
    raise InputError(
        f"parts {found} are not those of a table {list(shape)}{of_rank}, as its record says", remedy=REMAKE
    )
