"""Static models of sentence-transformers, to be compared: texts are means of the rows of their tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.directory.modules import read_modules, static_modules
from embcompress.data.encoded import batches_of
from embcompress.data.static_tokens import static_encoding
from embcompress.errors import UsageError
from embcompress.loading.static import static_embedding
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokens import Tokens, tokens_for

_ALIKE = {"StaticEmbedding", "WordEmbeddings", "Pooling", "Normalize"}
"""Modules whose part in a text's vector is known: the mean of rows, and a length that cosines ignore."""


class StaticRows(nn.Module):
    """The rows of tokens, in the form of the outputs of a transformers model."""

    def __init__(self, embedding: nn.Module, columns: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.config = SimpleNamespace(hidden_size=columns)

    @property
    def base_model(self) -> StaticRows:
        """The model itself, as it has no head."""
        return self

    def forward(self, input_ids: Tensor, **_: Any) -> tuple[Tensor]:
        """The rows (B×L×d) of token ids (B×L)."""
        return (self.embedding(input_ids),)


def open_static(path: Path) -> Pretrained | None:
    """Open the static model in a directory, dense or compressed; None for other models.

    Raises:
        UsageError, InputError: it cannot be read.
    """
    if not path.is_dir() or not static_modules(path):
        return None
    embedding = static_embedding(path)
    with open_checkpoint(path) as checkpoint:
        size, described = checkpoint.size, checkpoint.description
    native = described is not None and any(table.native for table in described.tables)
    kinds = [module.kind for module in read_modules(path)]
    if native:
        del kinds[1]
    others = [kind for kind in kinds if kind not in _ALIKE]
    notes = (f"{path}: the means of rows are compared, before {', '.join(others)}",) if others else ()
    model = StaticRows(embedding, embedding.embedding_dim).eval()
    return Pretrained(path, model, False, embedding.num_embeddings, dict, size, notes)


def static_tokens(model: Pretrained, texts: Iterable[str], max_length: int) -> Tokens:
    """Encode the distinct texts as a static model reads them; those without a known token are left out.

    Raises:
        UsageError: the directory has no tokenizer that is known here.
        InputError: the tokenizer cannot be read, or belongs to another model.
    """
    with open_checkpoint(model.path) as checkpoint:
        encode = static_encoding(checkpoint)
    if encode is None:
        raise UsageError(f"{model.path}: has no tokenizer", remedy="put the model's tokenizer.json there")
    found: list[list[int]] = []
    for batch in batches_of(dict.fromkeys(texts)):
        part = encode(batch)
        starts = zip(part.starts, part.lengths, strict=True)
        found += [part.tokens[start : start + min(n, max_length)].tolist() for start, n in starts if n]
    return tokens_for(model, found, 0)
