"""OPT: ``word_embed_proj_dim`` columns a token, ``project_in`` to the hidden size, ``project_out`` back."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm, sibling
from embcompress.tables import Table


class OPT(NativeForm):
    """With E = A B the scores E h of the tied head are A (B h): ``project_out`` is B, ``project_in`` Bᵀ.

    It is exact for the language model. The hidden states of the body alone come out projected, so a
    classifier on them would be another.
    """

    name = "opt"
    mirrored = True

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """By ``model_type``."""
        return checkpoint.config.get("model_type") == "opt"

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        """Whatever is not the language model with a tied head; see the base class."""
        config, columns = checkpoint.config, table.rows.shape[1]
        if not table.name.endswith("decoder.embed_tokens.weight"):
            return f"{table.name} is not its table of words"
        if config.get("hidden_size") != columns:
            return f"it has projections already, word_embed_proj_dim {columns}"
        if config.get("architectures") != ["OPTForCausalLM"]:
            return f"hidden states of {config.get('architectures')} would be projected"
        head = next((name for name in checkpoint.tensors if name.endswith("lm_head.weight")), None)
        if not config.get("tie_word_embeddings", True) or (head is not None and head not in table.ties):
            return "its head is not tied"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        """The table's own, and the two projections beside it."""
        return table.name, sibling(table.name, "project_in"), sibling(table.name, "project_out")

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """``word_embed_proj_dim`` in config.json."""
        return {"config.json": {**checkpoint.config, "word_embed_proj_dim": rank}}

    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """It is the hidden size again."""
        return {"config.json": {**checkpoint.config, "word_embed_proj_dim": shape[1]}}
