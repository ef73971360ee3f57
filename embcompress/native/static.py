"""Static models of sentence-transformers: a StaticEmbedding of r columns, and a Dense from r to d."""

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
"""What the two libraries call the table. The first reads the second's too, the second no other: so it
does not take the rows of a left factor for vectors."""
_DENSE = "sentence_transformers.base.modules.dense.Dense"
_OTHERS = ("mapping", "weights")
"""What model2vec may store beside its table."""


class StaticModel(NativeForm):
    """A text's vector is the mean of its tokens' rows, so projecting the mean is projecting each row."""

    name = "static"

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """By the first of its modules."""
        return checkpoint.path.is_dir() and bool(static_modules(checkpoint.path))

    def objection(self, checkpoint: Checkpoint, table: Table, dtype: DType) -> str | None:
        """Types that the two modules cannot share, and tables that are more than rows; see the base class."""
        if table.name not in (_STATIC, _MODEL2VEC):
            return f"{table.name} is not its table of words"
        if len(static_modules(checkpoint.path)) > 1:
            return "a projection follows it already"
        if others := [name for name in _OTHERS if name in checkpoint.tensors]:
            return f"{others[0]} says which row, or how much of it, belongs to a token"
        if dtype.name != "F32":
            return f"its projection computes in float32 and takes no factor in {dtype.torch}"
        return None

    def names(self, table: Table) -> tuple[str, ...]:
        """As the two modules call their weights."""
        return _STATIC, "linear.weight"

    def files(self, checkpoint: Checkpoint) -> tuple[str | None, ...]:
        """The second has one of its own."""
        return None, f"{_folder(checkpoint)}/model.safetensors"

    def documents(self, checkpoint: Checkpoint, shape: tuple[int, int], rank: int) -> Documents:
        """A second module in modules.json, and its configuration."""
        first, *rest = read_modules(checkpoint.path)
        folder = _folder(checkpoint)
        package, _, _ = first.entry["type"].rpartition(".")
        # Up to version 5 all modules stood in one package; since then each has a file of its own.
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
        """Without the second module."""
        first, dense, *rest = read_modules(checkpoint.path)
        entries = [first.entry, *(module.entry for module in rest)]
        return {MODULES: _numbered(entries), f"{dense.folder}/config.json": None}


def _folder(checkpoint: Checkpoint) -> str:
    """Where the new module's files go: a name that the directory does not have."""
    taken = {entry.name for entry in checkpoint.path.iterdir()}
    return next(
        name for name in ("1_Dense", *(f"1_Dense_{i}" for i in range(len(taken)))) if name not in taken
    )


def _numbered(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of modules.json, numbered as they now follow; names that are numbers go with them."""
    return [
        {**entry, "idx": i, **({"name": str(i)} if entry.get("name") == str(entry.get("idx")) else {})}
        for i, entry in enumerate(entries)
    ]
