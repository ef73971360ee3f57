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
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.errors import InputError

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
    row_of: Tensor | None  # row of each token, derived from kept

    def __init__(self, tokens: int, width: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = tokens, width
        self.register_buffer("kept", kept)
        self.register_buffer("row_of", None, persistent=False)

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

    @abc.abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """Decode the rows (n×width) of the left factor with these indices (n)."""

    def derive(self) -> None:
        """Check the parts against each other, and compute what is derived from them.

        Subclasses call this at the end of their constructors; it is called again after a state dict is
        loaded.

        Raises:
            InputError: the parts contradict each other.
        """
        rows = self.num_embeddings
        if self.kept is not None:
            marks = marked(self.kept, self.num_embeddings, "kept")
            row_of = np.where(marks, np.cumsum(marks), 0).astype(np.int32)
            self.row_of = torch.from_numpy(row_of).to(self.kept.device)
            rows = 1 + int(marks.sum())
        require(len(self.stored) == rows, f"{len(self.stored):,} rows are stored for {rows:,}")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the rows (…×width) of token ids (…)."""
        numbers = ids.reshape(-1)
        if self.row_of is not None:
            numbers = self.row_of.index_select(0, numbers)
        return self.rows(numbers).reshape(*ids.shape, self.embedding_dim)

    def table(self) -> Tensor:
        """Decode the rows of all tokens (V×width)."""
        rows = torch.cat([*self._blocks()])
        return rows if self.row_of is None else rows.index_select(0, self.row_of)

    def scores(self, hidden: Tensor) -> Tensor:
        """Multiply ``hidden`` (…×width) by the rows of all tokens (…×V)."""
        scores = torch.cat([F.linear(hidden, block) for block in self._blocks()], dim=-1)
        return scores if self.row_of is None else scores.index_select(-1, self.row_of)

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


def marked(bits: Tensor, count: int, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Unpack one bit for each of ``count`` rows (from ⌈count/8⌉×1 bytes).

    Raises:
        InputError: the shape is wrong; the message calls the part ``name``.
    """
    require(bits.shape == (-(-count // 8), 1), f"{name} is {list(bits.shape)} for {count:,} rows")
    return np.unpackbits(bits.cpu().numpy()[:, 0], count=count).astype(np.bool_)
