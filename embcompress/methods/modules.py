"""Builds torch modules from stored parts, and parts from trained modules.

A method that supports torch has a ``module.py`` with a function ``coded_table``. This file calls that
function, and holds the code that such files share. The state dict of a module holds most parts exactly as
they are stored. The exception is a right factor in integers (``1.codes``, r×⌈d·b/8⌉ bytes, and ``1.scales``,
r×1): it becomes ``1.weight`` (d×r) in floats, so that it can be trained, and is rounded to integers of as
many bits again when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
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
"""Stored tensors by suffix."""

LEFT, RIGHT = "0.weight", "1.weight"
"""Names of the factors in the state dict of a module."""

_INTEGERS = ("1.codes", "1.scales")
_BITS = "0.bits"
RIGHT_PARTS = (_BITS, *_INTEGERS)
"""The parts of a right factor in integers. The first, its number of bits, is optional."""

_RANKS = 256
"""Rows of a right factor unpacked at a time."""


@dataclass(frozen=True)
class TableModules:
    """The torch modules of a compressed table.

    Attributes:
        lookup: looks up rows of the left factor, or of the table if there is no right factor.
        projection: multiplies by the right factor; None if there is none.
    """

    lookup: CodedLookup
    projection: nn.Linear | None

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d) of the table."""
        width = self.lookup.embedding_dim if self.projection is None else self.projection.out_features
        return self.lookup.num_embeddings, width

    def to(self, like: Tensor) -> TableModules:
        """Move both modules to the device of ``like``, and their floats to its type; in place."""
        for part in (self.lookup, self.projection):
            if part is not None:
                part.to(device=like.device, dtype=like.dtype)
        return self


def has_module(method: str) -> bool:
    """Whether torch can look rows up in the parts that the method called ``method`` stores."""
    return method_for(method).has_module


def coded_table(method: str, parts: Parts, shape: tuple[int, int]) -> TableModules | None:
    """Build the torch modules of a compressed table from copies of its parts.

    They are copies because tensors from a reader may still be mapped to their file.

    Args:
        method: name of a method for which :func:`has_module` is true.
        parts: all stored parts.
        shape: (V, d) of the table.

    Returns:
        None if the parts are two plain float factors, for which PyTorch's own modules serve.

    Raises:
        InputError: the parts contradict each other or the shape.
    """
    entry = method_for(method)
    types = {s: BY_TORCH_NAME.get(str(part.dtype).removeprefix("torch.")) for s, part in parts.items()}
    check_elements(entry.parts, {s: (types[s], tuple(part.shape)) for s, part in parts.items()})
    found: TableModules | None = entry.module().coded_table(entry, parts, shape)
    return found


def rows_in(method: Method, parts: Parts) -> dict[str, Tensor]:
    """Copy the parts ``0.*``, by suffix without ``0.``; the trainable ones become parameters."""
    return {
        spec.suffix.removeprefix("0."): nn.Parameter(copy) if spec.trainable else copy
        for spec in method.parts
        if spec.suffix.startswith("0.") and spec.suffix in parts
        for copy in (parts[spec.suffix].clone(),)
    }


def projected(lookup: CodedLookup, right: Tensor | None, shape: tuple[int, int]) -> TableModules:
    """Join a lookup and a right factor (d×r, transposed), if there is one.

    Raises:
        InputError: the widths of lookup, right factor and (V, d) table do not match.
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
    """The transposed right factor (d×r) in floats; None if none is stored.

    Raises:
        InputError: its integers do not have ``columns`` columns.
    """
    if _INTEGERS[0] not in parts:
        return parts.get(RIGHT)
    codes, scales = (parts[suffix].numpy() for suffix in _INTEGERS)
    bits = _right_bits(parts, columns)
    require(scales.shape == (len(codes), 1), f"1.scales are {list(scales.shape)}")
    right = np.empty((columns, len(codes)), np.float32)
    for start in range(0, len(codes), _RANKS):
        some = slice(start, start + _RANKS)
        right[:, some] = unpacked_rows(codes[some], scales[some], columns, bits).T
    return torch.from_numpy(right)


def module_parts(parts: Parts, columns: int) -> dict[str, Tensor]:
    """The parts as the state dict of the module holds them: a right factor in integers becomes floats."""
    right = right_factor(parts, columns)
    others = {suffix: part for suffix, part in parts.items() if suffix not in _INTEGERS}
    return others if right is None else {**others, RIGHT: right}


def in_range(parts: Parts, dtype: torch.dtype) -> Parts:
    """Two float factors as they are, unless the left one is infinite in ``dtype``.

    Then its columns are divided, and those of the transposed right factor multiplied, by powers of two,
    which leaves their product as it is.
    """
    left, right = parts.get(LEFT), parts.get(RIGHT)
    if left is None or right is None:
        return parts
    most = left.abs().amax(0).double()
    excess = (most / torch.finfo(dtype).max).log2().ceil().clamp(min=0)
    if not excess.any():
        return parts
    by = excess.exp2()
    return {**parts, LEFT: left.double() / by, RIGHT: right.double() * by}


def trained_right(weight: Tensor, parts: Parts, columns: int) -> dict[str, Tensor]:
    """Round a trained right factor (d×r) to integers of as many bits as in ``parts``.

    A right factor that training did not change gives exactly the stored parts.
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
    """Bits of the right factor's integers: as stored, or the most that fit the bytes of a row."""
    width = parts["1.codes"].shape[1]
    bits = int(parts[_BITS][0, -1]) if _BITS in parts else widest(columns, width)
    fits = 1 <= bits <= 8 and packed_width(columns, bits) == width
    require(fits, f"{width} bytes hold no {columns} integers of {bits or 'any'} bits")
    return bits
