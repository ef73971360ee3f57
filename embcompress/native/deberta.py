"""DeBERTa, versions 1 to 3: ``embedding_size`` columns a token, and ``embed_proj`` to the hidden size."""

from __future__ import annotations

import re

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm, sibling
from embcompress.tables import Table

_HEAD = re.compile(r"(^|\.)(lm_predictions|mask_predictions|cls\.predictions|lm_head)\.")
"""Names of the heads over the vocabulary: they take their width from ``embedding_size`` too."""


class DeBERTa(NativeForm):
    """Rows of the left factor are projected after position and type vectors are added to them.

    So it is exact for models that add none there (DeBERTa-v3 and all of its size) and have no head over
    the vocabulary.
    """

    name = "deberta"

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """By ``model_type``; version 3 has that of version 2."""
        return checkpoint.config.get("model_type") in ("deberta", "deberta-v2")  # or anything, also a list

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        """Anything that is added before the projection, or goes by the same size; see the base class."""
        config, columns = checkpoint.config, table.rows.shape[1]
        size = config.get("embedding_size") or config.get("hidden_size")
        if not table.name.endswith("embeddings.word_embeddings.weight"):
            return f"{table.name} is not its table of words"
        if config.get("hidden_size") != columns or size != columns:
            return f"it has a projection already, embedding_size {size}"
        if config.get("position_biased_input", True):
            return "positions are added before the projection (position_biased_input)"
        if config.get("type_vocab_size", 0):
            return f"types are added before the projection (type_vocab_size {config['type_vocab_size']})"
        heads = [name for name in (*checkpoint.tensors, *table.ties) if _HEAD.search(name)]
        if heads or "MaskedLM" in str(config.get("architectures")):
            return f"its head over the vocabulary ({heads[0] if heads else 'MaskedLM'}) goes by the same size"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        """The table's own, and ``embed_proj`` beside it."""
        return table.name, sibling(table.name, "embed_proj")

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """``embedding_size`` in config.json."""
        return {"config.json": {**checkpoint.config, "embedding_size": rank}}

    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """Without ``embedding_size``, which is then the hidden size."""
        return {"config.json": {k: v for k, v in checkpoint.config.items() if k != "embedding_size"}}
