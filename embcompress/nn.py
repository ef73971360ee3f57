"""Modules that stand where a dense table stood; torch only.

A table E (V×d) is replaced by left (V×r) times right (r×d). An embedding looks up a row of left and
multiplies it by right; a head that shared the table multiplies by right transposed first, so that
neither ever makes a V×d matrix. PyTorch keeps the weight of a linear layer transposed, hence the
state dict of both modules: ``0.weight`` is left, ``1.weight`` is right transposed (d×r).
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

Lookup = nn.Embedding | nn.EmbeddingBag


class FactorizedPair(nn.Sequential):
    """The two factors as children ``0`` (a lookup of V rows, r wide) and ``1`` (a linear layer, r to d)."""

    def __init__(self, lookup: Lookup, projection: nn.Linear) -> None:
        super().__init__(lookup, projection)

    @property
    def lookup(self) -> Lookup:
        """Child ``0``, which holds left."""
        return cast(Lookup, self[0])

    @property
    def projection(self) -> nn.Linear:
        """Child ``1``, which holds right transposed."""
        return cast(nn.Linear, self[1])

    @property
    def left(self) -> nn.Parameter:
        """The left factor (V×r)."""
        return cast(nn.Parameter, self.lookup.weight)

    @property
    def right(self) -> Tensor:
        """The right factor (r×d), a view of the parameter of child ``1``."""
        return self.projection.weight.T

    @property
    def weight(self) -> Tensor:
        """The dense table (V×d), computed anew each time: V·r·d multiply-adds and V·d numbers of memory.

        It is for code that asks a layer for its dtype, its device or its values, and no parameter:
        gradients flow through it to the factors, but changing it changes nothing.
        """
        return self.left @ self.right

    @property
    def rank(self) -> int:
        """Components kept, r."""
        return self.projection.in_features

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

    def __init__(self, lookup: Lookup, projection: nn.Linear, scale: Tensor | float | None = None) -> None:
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
        return self.projection.out_features

    @property
    def padding_idx(self) -> int | None:
        """The row that gets no gradient and, in a bag, is not counted."""
        return self.lookup.padding_idx

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Embed token ids (any shape) to (…, d), or bags of them to (bags, d).

        Takes what the lookup takes: for a bag also ``offsets`` and ``per_sample_weights``.
        """
        output: Tensor = self.projection(self.lookup(*args, **kwargs))
        if self.scale is None:
            return output
        return output * (self.scale.to(output.dtype) if isinstance(self.scale, Tensor) else self.scale)


class FactorizedHead(FactorizedPair):
    """A linear layer from d features to V logits whose weight is the table of an embedding.

    It owns no factors: its children are those of the embedding, so both train the same numbers.
    Costs r·(d + V) multiply-adds a token instead of V·d.

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
        return self.projection.out_features

    @property
    def out_features(self) -> int:
        """Number of logits, V."""
        return self.lookup.num_embeddings

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of hidden states (…, d): ``hidden @ rightᵀ @ leftᵀ + bias``."""
        return F.linear(F.linear(hidden, self.right), self.left, self.bias)
