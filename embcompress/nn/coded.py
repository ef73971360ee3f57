"""An embedding whose rows are coded; it replaces an embedding or an embedding bag."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.nn.factorized import FactorizedEmbedding, Lookup
from embcompress.nn.lookup import CodedLookup, is_eager

_MANY, _FEWER = 256, 0.75
"""From so many ids on, if so few of them differ, it is worth the time to find out which do."""


@dataclass(frozen=True)
class LookupOptions:
    """The options of a dense embedding that still apply to a coded one.

    Codes have no gradient, so ``sparse`` and ``scale_grad_by_freq`` do not apply.

    Attributes:
        padding_idx: token that gets no gradient and does not count in a bag; None if there is none.
        mode: ``"sum"`` or ``"mean"`` for a bag; None if each id gives a row.
        include_last_offset: whether the last offset of bags is their end.
    """

    padding_idx: int | None = None
    mode: str | None = None
    include_last_offset: bool = False

    @classmethod
    def of(cls, module: Lookup) -> Self:
        """Return the options of a dense embedding or bag."""
        if isinstance(module, nn.EmbeddingBag):
            return cls(module.padding_idx, module.mode, bool(module.include_last_offset))
        return cls(module.padding_idx)


class CodedEmbedding(FactorizedEmbedding):
    """An embedding of V tokens in d dimensions whose rows are decoded when they are looked up.

    Its state dict holds the stored parts, with codes as bytes. Only a right factor in integers differs: here
    it is ``1.weight``, in floats. Floats are trained, codes never change. Other embeddings and heads may
    share the lookup.

    Args:
        lookup: looks up rows of the left factor.
        projection: ``nn.Linear(r, d, bias=False)``; None if the lookup gives rows of the table.
        scale: factor of the output, as in :class:`FactorizedEmbedding`.
        options: how rows are looked up.
    """

    def __init__(
        self,
        lookup: CodedLookup,
        projection: nn.Linear | None,
        scale: Tensor | float | None = None,
        options: LookupOptions = LookupOptions(),
    ) -> None:
        super().__init__(lookup, projection, scale)
        self.options = options

    @property
    def padding_idx(self) -> int | None:
        """Token that gets no gradient and does not count in a bag; None if there is none."""
        return self.options.padding_idx

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Embed token ids, or bags of them; where most ids come again, each is decoded once."""
        ids = args[0] if args else kwargs["input"]
        if self.options.mode is None and is_eager(ids) and ids.numel() >= _MANY:
            once, places = torch.unique(ids, return_inverse=True)
            if len(once) <= _FEWER * ids.numel():
                return F.embedding(places, super().forward(once))
        return super().forward(*args, **kwargs)

    def _look_up(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        padding = self.options.padding_idx
        if self.options.mode is not None:
            return self._bags(input, offsets, per_sample_weights)
        rows: Tensor = self.lookup(input)
        if padding is None or not torch.is_grad_enabled():
            return rows
        return torch.where((input == padding)[..., None], rows.detach(), rows)

    def _bags(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        """Sums or means of rows; each row is decoded once for every place in a bag.

        Padding gets weight 0, since models with torch's own ``padding_idx`` cannot be exported for a variable
        number of rows.
        """
        padding, mode = self.options.padding_idx, str(self.options.mode)
        rows: Tensor = self.lookup(ids.flatten())
        weights = None if weights is None else weights.to(rows.dtype)
        bags = partial(
            F.embedding_bag,
            torch.arange(ids.numel(), device=ids.device, dtype=ids.dtype).view_as(ids),
            offsets=offsets,
            include_last_offset=self.options.include_last_offset,
        )
        if padding is None or (weights is not None and mode != "sum"):  # torch refuses the latter
            return bags(rows, mode=mode, per_sample_weights=weights)
        counted = (ids != padding).to(rows.dtype)
        sums = bags(rows, mode="sum", per_sample_weights=counted if weights is None else weights * counted)
        return sums if mode == "sum" else sums / bags(counted.view(-1, 1), mode="sum").clamp(min=1)

    def extra_repr(self) -> str:
        return str(self.options)
