"""Modules that hold a table as two factors.

A table E (V×d) is replaced by left (V×r) times right (r×d). An embedding looks up a row of left and
multiplies it by right. A head that is tied to the table multiplies by the transpose of right first, so that
neither ever computes a V×d matrix. PyTorch stores the weight of a linear layer transposed, so in the state
dict of both modules ``0.weight`` is left and ``1.weight`` is the transpose of right (d×r). Left may be coded;
if rows of the table itself are coded, there is no right factor.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.nn.lookup import CodedLookup, is_eager, within

Lookup = nn.Embedding | nn.EmbeddingBag

_FEW = 4
"""Most hidden states for which :func:`_few_products` is faster. Generating text has one at a time."""
_WIDE, _LARGE = 128, 1 << 22
"""Least rank and least size of left for which it is faster: torch's own product is slow for large, wide left
factors."""
_BATCHES = 32
"""Number of blocks that it multiplies in parallel, more than most machines have cores."""


class FactorizedPair(nn.Sequential):
    """The two factors as children ``0`` (a lookup of V rows, r wide) and ``1`` (a linear layer, r to d).

    Without a right factor there is no child ``1``, and r = d.
    """

    def __init__(self, lookup: Lookup | CodedLookup, projection: nn.Linear | None) -> None:
        super().__init__(*(part for part in (lookup, projection) if part is not None))

    @property
    def lookup(self) -> Lookup | CodedLookup:
        """Child ``0``, which holds the left factor."""
        return cast("Lookup | CodedLookup", self[0])

    @property
    def projection(self) -> nn.Linear | None:
        """Child ``1``, which holds the transpose of the right factor; None if there is no right factor."""
        return cast(nn.Linear, self[1]) if len(self) > 1 else None

    @property
    def left(self) -> Tensor:
        """The left factor (V×r): the parameter of child ``0``, or decoded from codes on each access."""
        return self.lookup.table() if isinstance(self.lookup, CodedLookup) else self.lookup.weight

    @property
    def right(self) -> Tensor | None:
        """The right factor (r×d), a view of the parameter of child ``1``; None if there is none."""
        return None if self.projection is None else self.projection.weight.T

    @property
    def weight(self) -> Tensor:
        """The dense table (V×d), computed on each access with V·r·d multiply-adds and V·d numbers of memory.

        It exists for code that reads the dtype, device or values of a layer's weight, and is not a parameter:
        gradients flow through it to the factors, but writing to it has no effect.
        """
        return self._projected(self.left)

    def _projected(self, rows: Tensor) -> Tensor:
        """Rows of the table (n×d), or bags of them, from rows of left (n×r)."""
        if self.projection is None:
            return within(rows, self._dtype)
        if isinstance(self.lookup, CodedLookup) and self.projection.weight.dtype == torch.float16:
            rows = F.linear(rows.float(), self.projection.weight.float(), self.projection.bias)
            return within(rows, torch.float16)
        return within(self.projection(rows))

    @property
    def _dtype(self) -> torch.dtype | None:
        return self.lookup.dtype if isinstance(self.lookup, CodedLookup) else None

    @property
    def rank(self) -> int:
        """Components kept, r."""
        return self.lookup.embedding_dim

    def __setattr__(self, name: str, value: Any) -> None:
        # A property without a setter is not enough: torch registers a parameter in spite of it.
        if name == "weight":
            raise AttributeError(
                f"the weight of a {type(self).__name__} is the product of its factors and cannot be set: "
                "tie or resize the dense model before its table is factorized"
            )
        super().__setattr__(name, value)


class FactorizedEmbedding(FactorizedPair):
    """An embedding of V tokens in d dimensions, held as two factors.

    Its state dict loads with ``strict=True`` into ``nn.Sequential(nn.Embedding(V, r), nn.Linear(r, d,
    bias=False))`` and vice versa. A lookup costs r·d multiply-adds per token, or per bag if the lookup is an
    ``nn.EmbeddingBag``, since sum and mean commute with the projection.

    Args:
        lookup: ``nn.Embedding(V, r)``, or ``nn.EmbeddingBag(V, r)`` in mode sum or mean.
        projection: ``nn.Linear(r, d, bias=False)``.
        scale: factor of the output, None for 1. A tensor is first rounded to the output's dtype, as in Gemma;
        a
            float is not, as in BART.
    """

    scale: Tensor | float | None

    def __init__(
        self,
        lookup: Lookup | CodedLookup,
        projection: nn.Linear | None,
        scale: Tensor | float | None = None,
    ) -> None:
        super().__init__(lookup, projection)
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale, persistent=False)  # moves with the model, is not saved
        else:
            self.scale = scale

    @property
    def num_embeddings(self) -> int:
        """Rows of the table, V."""
        return self.lookup.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Columns of the table, d."""
        return self.rank if self.projection is None else self.projection.out_features

    @property
    def padding_idx(self) -> int | None:
        """Token that gets no gradient and does not count in a bag; None if there is none."""
        return cast(Lookup, self.lookup).padding_idx

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Embed token ids (any shape) to (…, d), or bags of them to (bags, d).

        The arguments are those of the lookup; a bag also takes ``offsets`` and ``per_sample_weights``.
        """
        output = self._projected(self._look_up(*args, **kwargs))
        if self.scale is None:
            return output
        return output * (self.scale.to(output.dtype) if isinstance(self.scale, Tensor) else self.scale)

    def _look_up(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rows of left, or bags of them."""
        return cast(Tensor, self.lookup(*args, **kwargs))


class FactorizedHead(FactorizedPair):
    """A linear layer from d features to V logits whose weight is tied to an embedding.

    Its children are those of the embedding, so both train the same factors. It costs r·(d + V) multiply-adds
    per token instead of V·d. A coded left factor is decoded in each call.

    Args:
        embedding: the embedding with the factors.
        bias: added to the logits (V); None for none.
    """

    bias: nn.Parameter | None

    def __init__(self, embedding: FactorizedPair, bias: nn.Parameter | None = None) -> None:
        super().__init__(embedding.lookup, embedding.projection)
        self.register_parameter("bias", bias)

    @property
    def in_features(self) -> int:
        """Width of the input, d."""
        return self.rank if self.projection is None else self.projection.out_features

    @property
    def out_features(self) -> int:
        """Number of logits, V."""
        return self.lookup.num_embeddings

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, d): ``hidden @ rightᵀ @ leftᵀ + bias``."""
        if self.right is not None:
            hidden = F.linear(hidden, self.right)
        if isinstance(self.lookup, CodedLookup):
            logits = self.lookup.scores(hidden)
        elif _is_few(hidden, self.lookup.weight):
            logits = _few_products(hidden, self.lookup.weight)
        else:
            return F.linear(hidden, self.lookup.weight, self.bias)
        return logits if self.bias is None else logits + self.bias


def _is_few(hidden: Tensor, left: Tensor) -> bool:
    """Whether :func:`_few_products` is faster: few rows of float32 on a CPU, and no graph being recorded."""
    return (
        is_eager(hidden)
        and hidden.dtype == torch.float32
        and left.shape[1] >= _WIDE
        and left.numel() >= _LARGE
        and 0 < math.prod(hidden.shape[:-1]) <= _FEW
    )


def _few_products(hidden: Tensor, left: Tensor) -> Tensor:
    """Logits (…, V) of a few hidden states (…, r): ``hidden @ leftᵀ`` in batches of rows of left.

    On a CPU, torch multiplies a single row by a matrix on one core, which then waits for memory: for
    250,002×191 numbers that takes 24 ms, and this function takes 5 ms on two cores.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    size = len(left) // _BATCHES
    blocks = left[: size * _BATCHES].reshape(_BATCHES, size, left.shape[1])
    products = torch.bmm(blocks, rows.T.expand(_BATCHES, -1, -1)).reshape(size * _BATCHES, len(rows))
    logits = torch.cat([products, left[size * _BATCHES :] @ rows.T])
    return logits.T.reshape(*hidden.shape[:-1], len(left)).contiguous()
