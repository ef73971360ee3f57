"""Lookups whose rows are decoded when they are asked for: what they share, and the plainest of them.

Child ``0`` of a factorized module may be one. Its state dict holds the parts of a method that belong
to rows, under their stored names and in their stored shapes: codes are buffers of bytes, which stay
what they are; floats are parameters where training may move them.
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
"""Rows decoded at a time where all are wanted: their temporaries stay small."""


class CodedLookup(nn.Module, abc.ABC):
    """Rows of left, one a token.

    With ``kept``, tokens share rows: a token that is kept has the row 1 + the number of kept tokens
    before it, all others have row 0.

    Args:
        tokens: tokens that can be looked up, V.
        width: numbers in a decoded row.
        kept: a bit a token (⌈V/8⌉×1 bytes, the most significant first); None where each has a row.

    Attributes:
        num_embeddings: V.
        embedding_dim: the width.
    """

    kept: Tensor | None
    row_of: Tensor | None  # of each token; made from kept

    def __init__(self, tokens: int, width: int, kept: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = tokens, width
        self.register_buffer("kept", kept)
        self.register_buffer("row_of", None, persistent=False)

    def hold(self, **parts: Tensor | None) -> None:
        """Register parts under their names: parameters as parameters, other tensors as buffers."""
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)

    @property
    @abc.abstractmethod
    def stored(self) -> Tensor:
        """The part that has a row for each row of left."""

    @abc.abstractmethod
    def rows(self, numbers: Tensor) -> Tensor:
        """The rows of left (n×width) of these numbers (n), decoded."""

    def derive(self) -> None:
        """Check the parts against each other, and make anew what follows from them.

        Raises:
            InputError: they contradict each other.
        """
        rows = self.num_embeddings
        if self.kept is not None:
            marks = marked(self.kept, self.num_embeddings, "kept")
            row_of = np.where(marks, np.cumsum(marks), 0).astype(np.int32)
            self.row_of = torch.from_numpy(row_of).to(self.kept.device)
            rows = 1 + int(marks.sum())
        require(len(self.stored) == rows, f"{len(self.stored):,} rows are stored for {rows:,}")

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (…×width) of token ids (…)."""
        numbers = ids.reshape(-1)
        if self.row_of is not None:
            numbers = self.row_of.index_select(0, numbers)
        return self.rows(numbers).reshape(*ids.shape, self.embedding_dim)

    def table(self) -> Tensor:
        """The rows of all tokens, V×width."""
        rows = torch.cat([*self._blocks()])
        return rows if self.row_of is None else rows.index_select(0, self.row_of)

    def scores(self, hidden: Tensor) -> Tensor:
        """The products of ``hidden`` (…×width) with the rows of all tokens, …×V."""
        scores = torch.cat([F.linear(hidden, block) for block in self._blocks()], dim=-1)
        return scores if self.row_of is None else scores.index_select(-1, self.row_of)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def _blocks(self) -> Iterator[Tensor]:
        """All rows of left, block by block; in one where each block would make the compiled graph longer."""
        count, device = len(self.stored), self.stored.device
        step = count if torch.compiler.is_compiling() else _BLOCK
        for start in range(0, count, step):
            yield self.rows(torch.arange(start, min(start + step, count), device=device))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        try:
            self.derive()
        except InputError as error:
            args[-1].append(error.message)  # torch raises them all together


class FloatRows(CodedLookup):
    """Rows stored as they are, for tokens that share some.

    Args:
        weight: N×width.
        tokens: see the base class.
        kept: see the base class.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, tokens: int, kept: Tensor | None = None) -> None:
        super().__init__(tokens, weight.shape[1], kept)
        self.hold(weight=weight)
        self.derive()

    @property
    def stored(self) -> Tensor:
        """The weight."""
        return self.weight

    def rows(self, numbers: Tensor) -> Tensor:
        """See the base class."""
        return F.embedding(numbers, self.weight)


def require(whether: bool, otherwise: str) -> None:
    """Refuse parts of a table that contradict each other.

    Raises:
        InputError: with what they say.
    """
    if not whether:
        raise InputError(
            f"the parts of a table are not of one table: {otherwise}",
            remedy="make the file again from its source",
        )


def marked(bits: Tensor, count: int, name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each of ``count`` rows is marked, by packed bits (⌈count/8⌉×1)."""
    require(bits.shape == (-(-count // 8), 1), f"{name} is {list(bits.shape)} for {count:,} rows")
    return np.unpackbits(bits.cpu().numpy()[:, 0], count=count).astype(np.bool_)
