"""The tensors that stand for a table: what a method may store, and what it did store."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.rows import Rows

REMAKE = "make the file again from its source"
"""What to do about a file whose parts do not belong together."""


class Elements(enum.Enum):
    """What a part is made of."""

    FLOATS = "floats"
    BYTES = "unsigned bytes (U8)"
    ROW_NUMBERS = "row numbers (I32)"

    def include(self, dtype: DType) -> bool:
        """Whether a tensor of this element type is of this kind."""
        return dtype.is_table if self is Elements.FLOATS else dtype.name == _STORED[self]


_STORED = {Elements.BYTES: "U8", Elements.ROW_NUMBERS: "I32"}


@dataclass(frozen=True)
class PartSpec:
    """One tensor that a method may store for a table.

    Attributes:
        suffix: what follows the table's stem in its name, e.g. ``"0.weight"``.
        elements: what it is made of.
        optional: whether a layout may do without it.
        trainable: whether retraining changes it; other parts are written as they were read.
    """

    suffix: str
    elements: Elements
    optional: bool = False
    trainable: bool = False


@dataclass(frozen=True)
class Part:
    """One tensor that a method stores for a certain table.

    Attributes:
        suffix: that of its :class:`PartSpec`.
        dtype: element type.
        shape: (rows, columns).
    """

    suffix: str
    dtype: DType
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes it takes on disk."""
        return self.dtype.nbytes(math.prod(self.shape))


Parts = Mapping[str, Rows]
"""The stored parts of a table by their suffix."""


def check_suffixes(specs: Collection[PartSpec], present: Collection[str]) -> None:
    """Refuse parts among which one is missing that must be there, or one that the method does not store.

    Raises:
        InputError: with both lists.
    """
    needed = [spec.suffix for spec in specs if spec.suffix in present or not spec.optional]
    if [*present] != needed:
        raise InputError(f"has the parts {[*present]}, its method stores {needed}", remedy=REMAKE)


def check_elements(specs: Collection[PartSpec], types: Mapping[str, DType | None]) -> None:
    """Refuse parts of the wrong element types, since their numbers would mean something else.

    Args:
        specs: what the method may store.
        types: element type of each part by its suffix, None for one that has no name here.

    Raises:
        InputError: with the type of the first such part, and what it should be.
    """
    for spec in specs:
        dtype = types.get(spec.suffix)
        if spec.suffix in types and not (dtype and spec.elements.include(dtype)):
            found = "an unknown type" if dtype is None else dtype.name
            raise InputError(
                f"part {spec.suffix} is of {found}, expected are {spec.elements.value}", remedy=REMAKE
            )


def check_shapes(
    parts: Parts, expected: Mapping[str, tuple[int, int]], shape: tuple[int, int], rank: int | None
) -> None:
    """Refuse stored parts of other shapes than a table's record calls for.

    Args:
        parts: what is stored.
        expected: shape of each part that is looked at, by its suffix.
        shape: (V, d) of the table, as its record says.
        rank: components kept, as its record says.

    Raises:
        InputError: with the shapes found, and what the record says.
    """
    if all(parts[suffix].shape == wanted for suffix, wanted in expected.items()):
        return
    found = ", ".join(f"{suffix} {list(part.shape)}" for suffix, part in parts.items())
    of_rank = "" if rank is None else f" of rank {rank}"
    raise InputError(
        f"parts {found} are not those of a table {list(shape)}{of_rank}, as its record says", remedy=REMAKE
    )
