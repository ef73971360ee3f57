"""OPT: a table of ``word_embed_proj_dim`` columns, ``project_in`` to hidden states, ``project_out`` back."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm, sibling
from embcompress.tables import Table


class OPT(NativeForm):
    """OPT's ``project_in`` and ``project_out``.

    For E = A B the logits E h of the tied head are A (B h), so that ``project_out`` is B and ``project_in``
    Bᵀ. The form is exact for the language model. The hidden states of the bare model come out projected,
    which would change a classifier on top of them.
    """

    name = "opt"
    mirrored = True

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.config.get("model_type") == "opt"

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        config, columns = checkpoint.config, table.rows.shape[1]
        if not table.name.endswith("decoder.embed_tokens.weight"):
            return f"{table.name} is not its word embedding"
        if config.get("hidden_size") != columns:
            return f"it has projections already, word_embed_proj_dim {columns}"
        if config.get("architectures") != ["OPTForCausalLM"]:
            return f"hidden states of {config.get('architectures')} would be projected"
        head = next((name for name in checkpoint.tensors if name.endswith("lm_head.weight")), None)
        if not config.get("tie_word_embeddings", True) or (head is not None and head not in table.ties):
            return "its head is not tied"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        return table.name, sibling(table.name, "project_in"), sibling(table.name, "project_out")

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        return {checkpoint.config_name: {**checkpoint.config, "word_embed_proj_dim": rank}}

    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        return {checkpoint.config_name: {**checkpoint.config, "word_embed_proj_dim": shape[1]}}
