"""The parts that methods store, and the modules that hold them: the registry, and both ways between.

Most parts are in the state dict as they are stored. A right factor in integers (``1.codes``, r×⌈d·b/8⌉
bytes, and ``1.scales``, r×1) is there in floats, as ``1.weight`` (d×r), so that it can be trained; it
is rounded to integers of as many bits again when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.linalg.integers import quantize, unpacked_rows
from embcompress.linalg.packing import pack, packed_width, widest
from embcompress.methods import METHODS
from embcompress.methods.integer.method import Integers
from embcompress.nn.integer import IntegerRows
from embcompress.nn.lookup import CodedLookup, FloatRows, require
from embcompress.nn.outline import outlined
from embcompress.nn.trellis import TrellisRows

Parts = Mapping[str, Tensor]
"""Stored tensors by their suffix."""

RIGHT = "1.weight"
"""The right factor in the state dict of a module."""

_INTEGERS = ("1.codes", "1.scales")
_BITS = "0.bits"
RIGHT_PARTS = (_BITS, *_INTEGERS)
"""What tells a right factor in integers; the first is not always there."""

_FLOATS = {"weight", "scales", "codebooks"}
_TYPES = {"zeros": torch.int32}
"""Parts that are floats, and types of those that are neither floats nor bytes."""


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


def _floats(rows: dict[str, Tensor], width: int, **which: Any) -> CodedLookup:
    require(rows["weight"].shape[1] == width, f"rows are {rows['weight'].shape[1]} wide, not {width}")
    return FloatRows(rows["weight"], **which)


def _integers(rows: dict[str, Tensor], width: int, *, bits: int | None = None, **which: Any) -> CodedLookup:
    return IntegerRows(rows["codes"], rows["scales"], width, bits or rows["bits"], **which)


def _trellis(rows: dict[str, Any], width: int, **which: Any) -> CodedLookup:
    require(rows["rates"].shape[1] == width, f"rates are of {rows['rates'].shape[1]} components, not {width}")
    return TrellisRows(**rows, **which)


LOOKUPS: dict[str, Callable[..., CodedLookup]] = {
    "svd": _floats,
    "screen": _floats,
    "lplr": _integers,
    "pq": _trellis,
    **{name: partial(_integers, bits=m.bits) for name, m in METHODS.items() if isinstance(m, Integers)},
}
"""What makes a lookup of the parts ``0.*`` of each method; a method that is not here can only be expanded.

It is called with these parts, the width of a row, and what goes to ``CodedLookup`` as it is. Before the
rows of any there may be a screen, ``screen+svd``, which is the part ``0.kept`` and tells rows of tokens.
"""

_SCREENED = "screen+"


def has_module(method: str) -> bool:
    """Whether what the method of that name stores can be loaded."""
    return method.removeprefix(_SCREENED) in LOOKUPS


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
    if "0.kept" not in parts and "0.weight" in parts:
        return None
    for suffix, part in parts.items():
        leaf = suffix.rpartition(".")[2]
        known = part.is_floating_point() if leaf in _FLOATS else part.dtype == _TYPES.get(leaf, torch.uint8)
        require(known and part.dim() == 2, f"{suffix} is {part.dtype} of shape {list(part.shape)}")
    right = right_factor(parts, shape[1])
    rows = {s.removeprefix("0."): part.clone() for s, part in parts.items() if s.startswith("0.")}
    which = {"tokens": shape[0], "kept": rows.pop("kept", None)}
    width = shape[1] if right is None else right.shape[1]
    lookup = LOOKUPS[method.removeprefix(_SCREENED)](rows, width, **which)
    if right is None:
        return TableModules(lookup, None)
    require(right.shape[0] == shape[1], f"the right factor has {right.shape[0]} columns, not {shape[1]}")
    with outlined():
        projection = nn.Linear(width, shape[1], bias=False)
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
