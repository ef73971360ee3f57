"""Static models of sentence-transformers: a StaticEmbedding with r columns, and a Dense from r to d."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import MODULES, read_modules, static_modules
from embcompress.dtypes import DType
from embcompress.native.base import Documents, NativeForm
from embcompress.tables import Table

_STATIC = "embedding.weight"
_MODEL2VEC = "embeddings"
"""Names of the table in sentence-transformers and in model2vec. The former reads both; model2vec reads only
its own, so it will not mistake the rows of a left factor for vectors."""
_DENSE = "sentence_transformers.base.modules.dense.Dense"
_OTHERS = ("mapping", "weights")
"""Other tensors that model2vec may store."""


class StaticModel(NativeForm):
    """A Dense module after the StaticEmbedding.

    The vector of a text is the mean of its tokens' rows, so projecting the mean is the same as projecting
    each row.
    """

    name = "static"

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Check the first of its modules."""
        return checkpoint.path.is_dir() and bool(static_modules(checkpoint.path))

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        if table.name not in (_STATIC, _MODEL2VEC):
            return f"{table.name} is not its word embedding"
        if len(static_modules(checkpoint.path)) > 1:
            return "a projection follows it already"
        if others := [name for name in _OTHERS if name in checkpoint.tensors]:
            return f"{others[0]} maps tokens to rows or weighs them"
        if dtype.name != "F32":
            return f"its projection computes in float32 and cannot use a factor in {dtype.torch}"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        return _STATIC, "linear.weight"

    def files(self, checkpoint: Checkpoint) -> tuple[str | None, ...]:
        return None, f"{_folder(checkpoint)}/model.safetensors"

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """Add a second module to modules.json, and its configuration."""
        first, *rest = read_modules(checkpoint.path)
        folder = _folder(checkpoint)
        package, _, _ = first.entry["type"].rpartition(".")
        # Up to version 5 all modules were in one package; since then each has its own file.
        kind = _DENSE if package.endswith(".static_embedding") else f"{package}.Dense"
        dense = {"idx": 1, "name": "1", "path": folder, "type": kind}
        about = {
            "in_features": rank,
            "out_features": shape[1],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
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
