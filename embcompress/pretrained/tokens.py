"""Texts as the tokenizer of a directory splits them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embcompress.data.encoded import Encoded, Ids
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.library import OFFLINE, check_small_files, library, reading
from embcompress.pretrained.models import Pretrained

_BATCH = 2048
"""Texts that are encoded at a time."""


@dataclass(frozen=True)
class Tokens:
    """Texts as a model reads them.

    Attributes:
        texts: token ids.
        padding: id that fills short texts up.
    """

    texts: Encoded
    padding: int

    def __len__(self) -> int:
        return len(self.texts)

    def tensors(self, rows: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids and mask (rows × the longest) of some texts."""
        tokens = torch.from_numpy(self.texts.padded(rows, self.padding))
        lengths = torch.from_numpy(self.texts.lengths[rows])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return tokens.to(device), mask.to(device)

    def take(self, rows: Ids) -> Tokens:
        """Some of the texts."""
        texts = self.texts
        kept = [texts.tokens[texts.starts[row] : texts.starts[row] + texts.lengths[row]] for row in rows]
        return Tokens(Encoded(np.concatenate(kept), texts.lengths[rows]), self.padding)


def encoded(model: Pretrained, texts: Iterable[str], max_length: int) -> Tokens:
    """Distinct texts as the tokenizer of a model's directory splits them; blank ones are left out.

    Raises:
        UsageError: the directory brings no tokenizer.
        InputError: it cannot be read, or is that of another model.
    """
    tokenizer = tokenizer_in(model.path)
    longest = min(
        max_length, int(min(tokenizer.model_max_length, 1 << 30)), positions(model.model, max_length)
    )
    distinct = iter(dict.fromkeys(text for text in texts if text.strip()))
    found: list[list[int]] = []
    while batch := [*itertools.islice(distinct, _BATCH)]:
        ids = tokenizer(batch, truncation=True, max_length=longest, padding=False)["input_ids"]
        found += (one for one in ids if one)
    texts_ = Encoded.of(found)
    if texts_.tokens.size and int(texts_.tokens.max()) >= model.vocabulary:
        raise InputError(
            f"{model.path}: a text has token {int(texts_.tokens.max()):,}, the table has rows up to "
            f"{model.vocabulary - 1:,}",
            remedy="take the tokenizer that belongs to this model",
        )
    return Tokens(texts_, tokenizer.pad_token_id or 0)


def tokenizer_in(path: Path) -> Any:
    """The tokenizer of a directory, as transformers makes it.

    Raises:
        UsageError: the directory brings none.
        InputError: it cannot be read.
    """
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UsageError(
            f"{path}: brings no tokenizer", remedy="put the files of the model's tokenizer there"
        )
    check_small_files(path)
    with reading(path):
        return library().AutoTokenizer.from_pretrained(path, **OFFLINE)


def positions(model: Any, usual: int) -> int:
    """Tokens that a model has positions for, ``usual`` where it has no limit.

    RoBERTa and its kin begin to count behind the padding.
    """
    most = getattr(model.config, "max_position_embeddings", None) or usual
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(most) - int(module.padding_idx) - 1
    return int(most)
