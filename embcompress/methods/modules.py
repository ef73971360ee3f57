"""The torch modules that hold stored parts, and the way back from trained modules to parts.

A method that torch can look rows up in has a ``module.py`` with ``coded_table``. This file calls it, and
holds what such files share. Most parts are in the state dict of a module as they are stored. A right
factor in integers (``1.codes``, r×⌈d·b/8⌉ bytes, and ``1.scales``, r×1) is there in floats, as ``1.weight``
(d×r), so that it can be trained; it is rounded to integers of as many bits again when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embcompress.dtypes import BY_TORCH_NAME
from embcompress.linalg.integers import quantize, unpacked_rows
from embcompress.linalg.packing import pack, packed_width, widest
from embcompress.methods import method_for
from embcompress.methods.base import Method
from embcompress.methods.parts import check_elements
from embcompress.nn.lookup import CodedLookup, require
from embcompress.nn.outline import outlined

Parts = Mapping[str, Tensor]
"""Stored tensors by their suffix."""

RIGHT = "1.weight"
"""The right factor in the state dict of a module."""

_INTEGERS = ("1.codes", "1.scales")
_BITS = "0.bits"
RIGHT_PARTS = (_BITS, *_INTEGERS)
"""Where a right factor in integers is stored; a method need not store the first, its bits."""


@dataclass(frozen=True)
class TableModules:
    """What stands for a table.

    Attributes:
        lookup: its rows, or rows of its left factor.
        projection: its right factor, None where there is none.
    """

    lookup: CodedLookup
    projection: nn.Linear | None

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d) of the table."""
        width = self.lookup.embedding_dim if self.projection is None else self.projection.out_features
        return self.lookup.num_embeddings, width

    def to(self, like: Tensor) -> TableModules:
        """The same, its floats of the type of ``like``, all of it on the device of ``like``; in place."""
        for part in (self.lookup, self.projection):
            if part is not None:
                part.to(device=like.device, dtype=like.dtype)
        return self


def has_module(method: str) -> bool:
    """Whether torch can look rows up in what the method of that name stores."""
    return method_for(method).has_module


def coded_table(method: str, parts: Parts, shape: tuple[int, int]) -> TableModules | None:
    """The modules that hold stored parts, as copies: tensors that were read may still hang on their file.

    Args:
        method: one that :func:`has_module`.
        parts: all that are stored.
        shape: (V, d) of the table.

    Returns:
        None where the parts are the two plain float factors, which PyTorch's own modules hold.

    Raises:
        InputError: the parts contradict each other or the shape.
    """
    entry = method_for(method)
    types = {s: BY_TORCH_NAME.get(str(part.dtype).removeprefix("torch.")) for s, part in parts.items()}
    check_elements(entry.parts, types)
    for suffix, part in parts.items():
        require(part.dim() == 2, f"{suffix} is of shape {list(part.shape)}")
    found: TableModules | None = entry.module().coded_table(entry, parts, shape)
    return found


def rows_in(method: Method, parts: Parts) -> dict[str, Tensor]:
    """Copies of the parts ``0.*`` by the rest of their suffix; parameters where the method says trainable."""
    return {
        spec.suffix.removeprefix("0."): nn.Parameter(copy) if spec.trainable else copy
        for spec in method.parts
        if spec.suffix.startswith("0.") and spec.suffix in parts
        for copy in (parts[spec.suffix].clone(),)
    }


def projected(lookup: CodedLookup, right: Tensor | None, shape: tuple[int, int]) -> TableModules:
    """A lookup, followed by a right factor (d×r, transposed) where there is one.

    Raises:
        InputError: the right factor, or without one the lookup, has another width than the (V, d) table.
    """
    if right is None:
        require(lookup.embedding_dim == shape[1], f"rows are {lookup.embedding_dim} wide, not {shape[1]}")
        return TableModules(lookup, None)
    require(right.shape[0] == shape[1], f"the right factor has {right.shape[0]} columns, not {shape[1]}")
    rank = right.shape[1]
    require(lookup.embedding_dim == rank, f"rows are {lookup.embedding_dim} wide, not {rank}")
    with outlined():
        projection = nn.Linear(rank, shape[1], bias=False)
    projection.weight = nn.Parameter(right.clone())
    return TableModules(lookup, projection)


def right_factor(parts: Parts, columns: int) -> Tensor | None:
    """The right factor, transposed (d×r), in floats; None where none is stored.

    Raises:
        InputError: its integers are not of d columns.
    """
    if _INTEGERS[0] not in parts:
        return parts.get(RIGHT)
    codes, scales = (parts[suffix].numpy() for suffix in _INTEGERS)
    bits = _right_bits(parts, columns)
    require(scales.shape == (len(codes), 1), f"1.scales are {list(scales.shape)}")
    floats = unpacked_rows(codes, scales, columns, bits)
    return torch.from_numpy(floats).T.contiguous()


def module_parts(parts: Parts, columns: int) -> dict[str, Tensor]:
    """The parts as they are named in the state dict of the module that holds them."""
    right = right_factor(parts, columns)
    others = {suffix: part for suffix, part in parts.items() if suffix not in _INTEGERS}
    return others if right is None else {**others, RIGHT: right}


def trained_right(weight: Tensor, parts: Parts, columns: int) -> dict[str, Tensor]:
    """A trained right factor (d×r) as the integers in which ``parts`` store it.

    One that was not changed becomes what it was, to the bit.
    """
    before = right_factor(parts, columns)
    assert before is not None
    if torch.equal(before, weight):
        return {suffix: parts[suffix] for suffix in _INTEGERS}
    bits = _right_bits(parts, columns)
    scale_type = parts["1.scales"].numpy().dtype
    found = quantize(weight.T.contiguous().numpy(), bits, scale_type)
    codes, scales = pack(found.codes, bits), found.scales[:, None]
    return dict(zip(_INTEGERS, map(torch.from_numpy, (codes, scales)), strict=True))


def _right_bits(parts: Parts, columns: int) -> int:
    """Bits of the right factor's integers: as stored, or the most that take a row's bytes."""
    width = parts["1.codes"].shape[1]
    bits = int(parts[_BITS][0, -1]) if _BITS in parts else widest(columns, width)
    fits = 1 <= bits <= 8 and packed_width(columns, bits) == width
    require(fits, f"{width} bytes hold no {columns} integers of {bits or 'any'} bits")
    return bits
