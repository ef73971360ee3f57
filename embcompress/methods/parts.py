"""Parts, the stored tensors of a compressed table: what a method may store, and checks of what is stored."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

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


def parameter_shapes(
    specs: Collection[PartSpec], shapes: Mapping[str, tuple[int, int]], columns: int
) -> tuple[tuple[int, int], ...]:
    """Shapes of the trainable parameters that a model holds for a table: of its left and its right factor.

    Args:
        specs: everything that the method may store.
        shapes: shapes of the stored parts by suffix.
        columns: columns of the table, d.
    """
    found: dict[str, tuple[int, int]] = {}
    for spec in specs:
        child, _, _ = spec.suffix.partition(".")
        if spec.trainable and spec.suffix in shapes and child not in found:
            rows, width = shapes[spec.suffix]
            found[child] = (columns if child == "1" else rows, width)
    return tuple(found.values())


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


def check_elements(
    specs: Collection[PartSpec], found: Mapping[str, tuple[DType | None, tuple[int, ...]]]
) -> None:
    """Refuse parts of the wrong element types, and those that are no matrix or hold nothing.

    Args:
        specs: everything that the method may store.
        found: element type and shape of each part by suffix; the type is None if it is not in ``DTYPES``, or
            not stored densely.

    Raises:
        InputError: with the type or shape of the first wrong part, and what was expected.
    """
    for spec in specs:
        if spec.suffix not in found:
            continue
        dtype, shape = found[spec.suffix]
        if not (dtype and spec.elements.include(dtype)):
            kind = "an unknown type" if dtype is None else dtype.name
            raise InputError(
                f"part {spec.suffix} is of {kind}, expected {spec.elements.value}", remedy=REMAKE
            )
        if len(shape) != 2 or 0 in shape:
            raise InputError(
                f"part {spec.suffix} is of shape {[*shape]}, expected a matrix that holds something",
                remedy=REMAKE,
            )


def check_finite(specs: Collection[PartSpec], parts: Parts) -> None:
    """Refuse floats that are NaN or infinite; reads all float parts, block by block.

    Raises:
        InputError: with the first part that holds one.
    """
    for spec in specs:
        if spec.suffix in parts and spec.elements in (Elements.FLOATS, Elements.SCALES):
            for start, stop in parts[spec.suffix].spans():
                bad = ~np.isfinite(parts[spec.suffix].read(start, stop)).all(axis=1)
                if bad.any():
                    row = start + int(bad.argmax())
                    raise InputError(
                        f"part {spec.suffix} holds NaN or infinity in row {row:,}", remedy=REMAKE
                    )


def check_rank(parts: Parts, shape: tuple[int, int], rank: int | None) -> None:
    """Refuse a rank above min(V, d), which no table has, so that coefficients take no more than rows.

    Raises:
        InputError: as :func:`check_shapes`.
    """
    if rank is None or rank > min(shape):
        raise _unfit(parts, shape, rank)


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
    raise _unfit(parts, shape, rank)


def _unfit(parts: Parts, shape: tuple[int, int], rank: int | None) -> InputError:
    found = ", ".join(f"{suffix} {list(part.shape)}" for suffix, part in parts.items())
    of_rank = "" if rank is None else f" of rank {rank}"
    return InputError(
        f"parts {found} are not those of a table {list(shape)}{of_rank}, as its record says", remedy=REMAKE
    )
