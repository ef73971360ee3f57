"""Modules that hold a table as factors.

A table E (V×d) is replaced by left (V×r) times right (r×d). An embedding looks up a row of left and
multiplies it by right; a head that shared the table multiplies by right transposed first, so that
neither ever makes a V×d matrix. PyTorch keeps the weight of a linear layer transposed, hence the
state dict of both modules: ``0.weight`` is left, ``1.weight`` is right transposed (d×r). Left may
also be coded, and a table whose rows are coded as they are has no right factor.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.nn.lookup import CodedLookup

Lookup = nn.Embedding | nn.EmbeddingBag

_FEW = 4
"""Hidden states up to which :func:`_few_products` is the faster way, as for each token of generated text."""
_WIDE, _LARGE = 128, 1 << 22
"""Its least rank and numbers of left: torch's own way is slow where rows are wide and the table is large."""
_BATCHES = 32
"""Blocks of rows that it multiplies side by side, more than most machines have cores."""


class FactorizedPair(nn.Sequential):
    """The two factors as children ``0`` (a lookup of V rows, r wide) and ``1`` (a linear layer, r to d).

    Without a right factor there is no child ``1``, and r is d.
    """

    def __init__(self, lookup: Lookup | CodedLookup, projection: nn.Linear | None) -> None:
        super().__init__(*(part for part in (lookup, projection) if part is not None))

    @property
    def lookup(self) -> Lookup | CodedLookup:
        """Child ``0``, which holds left."""
        return cast("Lookup | CodedLookup", self[0])

    @property
    def projection(self) -> nn.Linear | None:
        """Child ``1``, which holds right transposed; None where there is no right factor."""
        return cast(nn.Linear, self[1]) if len(self) > 1 else None

    @property
    def left(self) -> Tensor:
        """The left factor (V×r): the parameter of child ``0``, or decoded anew from codes."""
        return self.lookup.table() if isinstance(self.lookup, CodedLookup) else self.lookup.weight

    @property
    def right(self) -> Tensor | None:
        """The right factor (r×d), a view of the parameter of child ``1``; None where there is none."""
        return None if self.projection is None else self.projection.weight.T

    @property
    def weight(self) -> Tensor:
        """The dense table (V×d), computed anew each time: V·r·d multiply-adds and V·d numbers of memory.

        It is for code that asks a layer for its dtype, its device or its values, and no parameter:
        gradients flow through it to the factors, but changing it changes nothing.
        """
        return self.left if self.right is None else self.left @ self.right

    @property
    def rank(self) -> int:
        """Components kept, r."""
        return self.lookup.embedding_dim

    def __setattr__(self, name: str, value: Any) -> None:
        # A property without a setter is not enough: torch registers a parameter without asking it.
        if name == "weight":
            raise AttributeError(
                f"the weight of a {type(self).__name__} is the product of its factors and cannot be set: "
                "tie or resize the dense model before its table is factorized"
            )
        super().__setattr__(name, value)


class FactorizedEmbedding(FactorizedPair):
    """An embedding of V tokens in d dimensions, held as two factors.

    Its state dict loads, strict, into ``nn.Sequential(nn.Embedding(V, r), nn.Linear(r, d, bias=False))``
    and the other way round. A lookup costs r·d multiply-adds a token (a bag, with
    ``nn.EmbeddingBag`` as lookup, r·d for each bag: sum and mean go through the projection unharmed).

    Args:
        lookup: ``nn.Embedding(V, r)``, or an ``nn.EmbeddingBag(V, r)`` in mode sum or mean.
        projection: ``nn.Linear(r, d, bias=False)``.
        scale: what the output is multiplied by, None for 1. A tensor is rounded to the output's
            dtype first, as Gemma does; a float is not, as BART does.
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
        """The row that gets no gradient and, in a bag, is not counted."""
        return cast(Lookup, self.lookup).padding_idx

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Embed token ids (any shape) to (…, d), or bags of them to (bags, d).

        Takes what the lookup takes: for a bag also ``offsets`` and ``per_sample_weights``.
        """
        output = self._look_up(*args, **kwargs)
        if self.projection is not None:
            output = self.projection(output)
        if self.scale is None:
            return output
        return output * (self.scale.to(output.dtype) if isinstance(self.scale, Tensor) else self.scale)

    def _look_up(self, *args: Any, **kwargs: Any) -> Tensor:
        """Rows of left, or bags of them."""
        return cast(Tensor, self.lookup(*args, **kwargs))


class FactorizedHead(FactorizedPair):
    """A linear layer from d features to V logits whose weight is the table of an embedding.

    It owns no factors: its children are those of the embedding, so both train the same numbers.
    Costs r·(d + V) multiply-adds a token instead of V·d; where left is coded, it is decoded for each call.

    Args:
        embedding: where the factors are.
        bias: added to the logits (V), None for none.
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
    """Whether a product is better made in batches: few rows of float32 on a CPU, and no graph is made."""
    return (
        type(hidden) is Tensor  # and nothing that records what is done with it
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and hidden.dtype == torch.float32
        and hidden.device.type == "cpu"
        and left.shape[1] >= _WIDE
        and left.numel() >= _LARGE
        and 0 < math.prod(hidden.shape[:-1]) <= _FEW
    )


def _few_products(hidden: Tensor, left: Tensor) -> Tensor:
    """Logits (…, V) of a few hidden states (…, r): ``hidden @ leftᵀ`` in batches of rows of left.

    On processors, torch's product of one row with the rows of a matrix runs on one core and waits for
    memory: for 250,002×191 numbers on two cores this way takes 5 ms, that one 24.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    size = len(left) // _BATCHES
    blocks = left[: size * _BATCHES].reshape(_BATCHES, size, left.shape[1])
    products = torch.bmm(blocks, rows.T.expand(_BATCHES, -1, -1)).reshape(size * _BATCHES, len(rows))
    logits = torch.cat([products, left[size * _BATCHES :] @ rows.T])
    return logits.T.reshape(*hidden.shape[:-1], len(left)).contiguous()
