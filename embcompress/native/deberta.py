"""DeBERTa, versions 1 to 3: a table of ``embedding_size`` columns, and ``embed_proj`` to the hidden size."""

from __future__ import annotations

import re

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm, sibling
from embcompress.tables import Table

_HEAD = re.compile(r"(^|\.)(lm_predictions|mask_predictions|cls\.predictions|lm_head)\.")
"""Names of heads over the vocabulary, whose width is ``embedding_size`` too."""


class DeBERTa(NativeForm):
    """DeBERTa's ``embedding_size`` and ``embed_proj``.

    The model projects rows after it has added position and type vectors to them. So the form is exact only if
    it adds none there (DeBERTa-v3 in all sizes) and has no head over the vocabulary.
    """

    name = "deberta"

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Check ``model_type``; version 3 has that of version 2."""
        # A tuple, not a set: config.json may hold anything, even a list.
        return checkpoint.config.get("model_type") in ("deberta", "deberta-v2")

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        config, columns = checkpoint.config, table.rows.shape[1]
        size = config.get("embedding_size") or config.get("hidden_size")
        if not table.name.endswith("embeddings.word_embeddings.weight"):
            return f"{table.name} is not its word embedding"
        if config.get("hidden_size") != columns or size != columns:
            return f"it has a projection already, embedding_size {size}"
        if config.get("position_biased_input", True):
            return "positions are added before the projection (position_biased_input)"
        if config.get("type_vocab_size", 0):
            return f"types are added before the projection (type_vocab_size {config['type_vocab_size']})"
        heads = [name for name in (*checkpoint.tensors, *table.ties) if _HEAD.search(name)]
        if heads or "MaskedLM" in str(config.get("architectures")):
            return f"its head over the vocabulary ({heads[0] if heads else 'MaskedLM'}) has the same size"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        return table.name, sibling(table.name, "embed_proj")

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        return {checkpoint.config_name: {**checkpoint.config, "embedding_size": rank}}

    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """Drop ``embedding_size``, which then is the hidden size."""
        return {checkpoint.config_name: {k: v for k, v in checkpoint.config.items() if k != "embedding_size"}}
