"""Static models of sentence-transformers: a module with a table of r columns, and a Dense from r to d."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import MAPPING, MODULES, WEIGHTS, read_modules, static_modules
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm
from embcompress.tables import Table

_STATIC, _MODEL2VEC, _WORDS = "embedding.weight", "embeddings", "emb_layer.weight"
"""Names of the table: of a StaticEmbedding, of a model that model2vec wrote, and of WordEmbeddings."""
_LEFT = {_STATIC: _MODEL2VEC, _MODEL2VEC: _STATIC, _WORDS: _WORDS}
"""Name of the left factor. A StaticEmbedding may have both names. model2vec reads only the one that the
directory was written with, so it does not take the rows of a left factor for vectors."""
_PACKAGES = (".static_embedding", ".word_embeddings")
"""Ends of the modules' packages. Up to version 5 all modules were in one; now each has its own file."""
_DENSE = "sentence_transformers.base.modules.dense.Dense"


class StaticModel(NativeForm):
    """A Dense module after the StaticEmbedding or the WordEmbeddings.

    The vector of a text is the mean of its tokens' rows, so projecting the mean is the same as projecting
    each row. WordEmbeddings give the rows themselves, and whatever follows them works on projected rows.
    """

    name = "static"

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Check the first of its modules."""
        return checkpoint.path.is_dir() and bool(static_modules(checkpoint.path))

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        if table.name not in _LEFT:
            return f"{table.name} is not its word embedding"
        if len(static_modules(checkpoint.path)) > 1:
            return "a projection follows it already"
        if others := [name for name in (MAPPING, WEIGHTS) if name in checkpoint.tensors]:
            return f"{others[0]} maps tokens to rows or weighs them"
        if dtype.name != "F32":
            return f"its projection computes in float32 and cannot use a factor in {dtype.torch}"
        return None

    def note(self, checkpoint: Checkpoint, *, native: bool) -> str | None:
        text = "SentenceTransformer loads it "
        text += "without embcompress" if native else "after embcompress.register()"
        if _MODEL2VEC in checkpoint.tensors:
            text += "; model2vec's own StaticModel does not, it needs what 'embcompress expand' makes of it"
        return text

    def names(self, table: Table) -> tuple[str, ...]:
        return _LEFT[table.name], "linear.weight"

    def files(self, checkpoint: Checkpoint) -> tuple[str | None, ...]:
        return None, f"{_folder(checkpoint)}/model.safetensors"

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """Add a second module to modules.json, and its configuration."""
        first, *rest = read_modules(checkpoint.path)
        folder = _folder(checkpoint)
        package, _, _ = first.entry["type"].rpartition(".")
        kind = _DENSE if package.endswith(_PACKAGES) else f"{package}.Dense"
        dense = {"idx": 1, "name": "1", "path": folder, "type": kind}
        about = {
            "in_features": rank,
            "out_features": shape[1],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        if first.kind == "WordEmbeddings":
            about["module_input_name"] = "token_embeddings"
        entries = [first.entry, dense, *(module.entry for module in rest)]
        return {MODULES: _numbered(entries), f"{folder}/config.json": about}

    def dense_documents(self, checkpoint: Checkpoint, shape: tuple[int, int]) -> Documents:
        """Remove the second module."""
        first, dense, *rest = read_modules(checkpoint.path)
        entries = [first.entry, *(module.entry for module in rest)]
        return {MODULES: _numbered(entries), f"{dense.folder}/config.json": None}


def _folder(checkpoint: Checkpoint) -> str:
    """Folder of the new module: a name that is free in the directory."""
    taken = {entry.name for entry in checkpoint.path.iterdir()}
    return next(
        name for name in ("1_Dense", *(f"1_Dense_{i}" for i in range(len(taken)))) if name not in taken
    )


def _numbered(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Renumber the entries of modules.json, and their names where these are the numbers."""
    return [
        {**entry, "idx": i, **({"name": str(i)} if entry.get("name") == str(entry.get("idx")) else {})}
        for i, entry in enumerate(entries)
    ]
