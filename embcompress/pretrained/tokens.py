"""Encode texts with the tokenizer of a directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embcompress.data.encoded import Encoded, Ids, batches_of
from embcompress.errors import InputError
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokenizer import tokenizer_in


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids.

    Attributes:
        texts: the token ids.
        padding: the id that pads shorter texts.
        special: ids that are no part of the texts themselves: padding, the tokens around each text.
    """

    texts: Encoded
    padding: int
    special: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def tensors(self, rows: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask of the texts ``rows``, each B×L with L the longest of them."""
        tokens = torch.from_numpy(self.texts.padded(rows, self.padding))
        lengths = torch.from_numpy(self.texts.lengths[rows])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return tokens.to(device), mask.to(device)

    def take(self, rows: Ids) -> Tokens:
        """Keep the texts ``rows``, in that order."""
        texts = self.texts
        kept = [texts.tokens[texts.starts[row] : texts.starts[row] + texts.lengths[row]] for row in rows]
        return replace(self, texts=Encoded(np.concatenate(kept), texts.lengths[rows]))


def encoded(model: Pretrained, texts: Iterable[str], max_length: int) -> Tokens:
    """Encode the distinct texts with the tokenizer of the model's directory; blank texts are left out.

    Args:
        model: the model.
        texts: the texts; repeated ones count once.
        max_length: tokens at which a text is cut off; the tokenizer's and the model's limits hold as well.

    Raises:
        UsageError: the directory has no tokenizer.
        InputError: the tokenizer cannot be read, or belongs to another model.
    """
    tokenizer = tokenizer_in(model.path)
    longest = min(
        max_length, int(min(tokenizer.model_max_length, 1 << 30)), positions(model.model, max_length)
    )
    distinct = dict.fromkeys(text for text in texts if text.strip())
    found: list[list[int]] = []
    for batch in batches_of(distinct):
        ids = tokenizer(batch, truncation=True, max_length=longest, padding=False)["input_ids"]
        found += (one for one in ids if one)
    data = tokens_for(model, found, tokenizer.pad_token_id or 0)
    special = sorted({data.padding, *tokenizer.all_special_ids})
    return replace(data, special=tuple(id for id in special if id < model.vocabulary))


def tokens_for(model: Pretrained, texts: Iterable[list[int]], padding: int) -> Tokens:
    """Token ids of texts, to be given to ``model``.

    Raises:
        InputError: one of them has no row in its table.
    """
    found = Encoded.of(texts)
    if found.tokens.size and int(found.tokens.max()) >= model.vocabulary:
        raise InputError(
            f"{model.path}: a text has token {int(found.tokens.max()):,}, the table has rows up to "
            f"{model.vocabulary - 1:,}",
            remedy="use the tokenizer that belongs to this model",
        )
    return Tokens(found, padding)


def positions(model: Any, usual: int) -> int:
    """Number of tokens that a model has positions for; ``usual`` if it has no limit.

    RoBERTa and related models number positions from ``padding_idx + 1``.
    """
    most = getattr(model.config, "max_position_embeddings", None) or usual
    if most < 0:  # as XLNet says that it has no limit
        return usual
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(most) - int(module.padding_idx) - 1
    return int(most)
