"""Lookups that decode rows when they are needed: the base class, and the simplest subclass.

A coded lookup can be child ``0`` of a factorized module. Its state dict holds the parts of a method that
belong to rows, with their stored names and shapes. Codes are buffers of bytes and never change; floats that
are trained are parameters.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.errors import InputError
from embcompress.linalg.classes import RowClasses

_BLOCK = 4096
"""Rows decoded at a time when all are needed, so that temporaries stay small."""


class CodedLookup(nn.Module, abc.ABC):
    """Looks up rows of the left factor, one per token.

    With ``kept``, tokens share rows: a kept token has row 1 + the number of kept tokens before it, and all
    others have row 0.

    Args:
        tokens: number of tokens, V.
        width: numbers in a decoded row.
        kept: one bit per token (⌈V/8⌉×1 bytes, most significant first); None if each token has a row.

    Attributes:
        num_embeddings: number of tokens, V.
        embedding_dim: numbers in a decoded row.
    """

    kept: Tensor | None
    # Derived from kept: how many tokens are kept before each of its bytes (⌈V/8⌉, int32)
    kept_before: Tensor | None

    def __init__(self, tokens: int, width: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = tokens, width
        self.register_buffer("kept", kept)
        self.register_buffer("kept_before", None, persistent=False)

    def hold(self, **parts: Tensor | None) -> None:
        """Register parts by name: parameters as parameters, other tensors as buffers."""
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    @property
    @abc.abstractmethod
    def stored(self) -> Tensor:
        """The part with one row for each row of the left factor."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the table that rows stand for; None if it is that of the rows."""
        return None

    @abc.abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """Decode the rows (n×width) of the left factor with these indices (n).

        Where the table is float16 they may be float32: coefficients can exceed its range where the numbers of
        the table do not.
        """

    def derive(self) -> None:
        """Check the parts against each other, and compute what is derived from them.

        Subclasses call this at the end of their constructors; it is called again after a state dict is
        loaded.

        Raises:
            InputError: the parts contradict each other.
        """
        rows = self.num_embeddings
        if self.kept is not None:
            packed = packed_bits(self.kept, rows, "kept")
            ones = np.cumsum(np.bitwise_count(packed), dtype=np.int32)
            self.kept_before = torch.from_numpy(np.append(np.int32(0), ones[:-1])).to(self.kept.device)
            rows = 1 + int(RowClasses(packed, rows, 2).totals[1])
        require(len(self.stored) == rows, f"{len(self.stored):,} rows are stored for {rows:,}")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the rows (…×width) of token ids (…)."""
        return self.rows(self._numbers(ids.reshape(-1))).reshape(*ids.shape, self.embedding_dim)

    def table(self) -> Tensor:
        """Decode the rows of all tokens (V×width)."""
        rows = torch.cat([*self._blocks()])
        return rows if self.kept is None else rows.index_select(0, self._numbers(self._tokens()))

    def scores(self, hidden: Tensor) -> Tensor:
        """Multiply ``hidden`` (…×width) by the rows of all tokens (…×V)."""
        blocks = (F.linear(hidden.to(block.dtype), block).to(hidden.dtype) for block in self._blocks())
        scores = torch.cat([*blocks], dim=-1)
        return scores if self.kept is None else scores.index_select(-1, self._numbers(self._tokens()))

    def _tokens(self) -> Tensor:
        """The ids of all tokens (V)."""
        return torch.arange(self.num_embeddings, device=self.stored.device)

    def _numbers(self, ids: Tensor) -> Tensor:
        """Row of each token id (n): those kept before its byte, and in its byte up to itself."""
        if self.kept is None or self.kept_before is None:
            return ids
        places = ids >> 3
        bits = self.kept.flatten().index_select(0, places).to(torch.int32) >> 7 - (ids & 7)
        pairs = bits - (bits >> 1 & 0x55)  # the ones of each two bits, of each four, of all eight
        fours = (pairs & 0x33) + (pairs >> 2 & 0x33)
        ones = (fours + (fours >> 4)) & 0x0F
        return (self.kept_before.index_select(0, places) + ones) * (bits & 1)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def _blocks(self) -> Iterator[Tensor]:
        """Yield all rows of the left factor in blocks; in one block when compiling, for a short graph."""
        count, device = len(self.stored), self.stored.device
        step = count if torch.compiler.is_compiling() else _BLOCK
        for start in range(0, count, step):
            yield self.rows(torch.arange(start, min(start + step, count), device=device))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        try:
            self.derive()
        except InputError as error:
            args[-1].append(error.message)  # torch raises one error with all messages


class FloatRows(CodedLookup):
    """Looks up rows that are stored as floats.

    Args:
        weight: the rows (N×width).
        tokens: number of tokens, V.
        kept: which tokens keep a row, as in :class:`CodedLookup`.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, tokens: int, kept: Tensor | None = None) -> None:
        super().__init__(tokens, weight.shape[1], kept)
        self.hold(weight=weight)
        self.derive()

    @property
    def stored(self) -> Tensor:
        """The rows."""
        return self.weight

    def rows(self, numbers: Tensor) -> Tensor:
        return F.embedding(numbers, self.weight)


def is_eager(tensor: Tensor) -> bool:
    """Whether shapes may depend on a tensor's numbers: it is on a CPU, and no graph is being recorded."""
    return (
        type(tensor) is Tensor  # no subclass, which might record operations
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def within(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of a table in its type; beyond the range of float16 or bfloat16 they become its largest.

    ``expand`` writes the same. NaN stays.

    Args:
        values: rows of the table.
        dtype: its type; None for that of the rows.
    """
    dtype = dtype or values.dtype
    if dtype in (torch.float16, torch.bfloat16):
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)


def require(whether: bool, otherwise: str) -> None:
    """Raise an error about contradictory parts, unless ``whether`` holds.

    Args:
        whether: a condition on the parts of a table.
        otherwise: what is wrong if it does not hold.

    Raises:
        InputError: with ``otherwise``.
    """
    if not whether:
        raise InputError(
            f"the parts of a table contradict each other: {otherwise}",
            remedy="make the file again from its source",
        )


def packed_bits(bits: Tensor, count: int, name: str) -> NDArray[np.uint8]:
    """The bytes of one bit for each of ``count`` rows (⌈count/8⌉×1).

    Raises:
        InputError: the shape is wrong; the message calls the part ``name``.
    """
    require(bits.shape == (-(-count // 8), 1), f"{name} is {list(bits.shape)} for {count:,} rows")
    return bits.cpu().numpy()[:, 0]
