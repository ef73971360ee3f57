"""Pretrained word vectors: the registry of their formats, and the one function that reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from embcompress.checkpoint.base import Progress, silent
from embcompress.checkpoint.naming import check_not_pointer
from embcompress.data.vectors.base import Choice, VectorFormat, WordVectors
from embcompress.data.vectors.checkpoint_table import CheckpointTable
from embcompress.data.vectors.glove import GloVe
from embcompress.data.vectors.npy import Npy
from embcompress.data.vectors.stream import read_head
from embcompress.data.vectors.word2vec_binary import Word2VecBinary
from embcompress.data.vectors.word2vec_text import Word2VecText
from embcompress.errors import InputError, UsageError

__all__ = ["VECTOR_FORMATS", "WordVectors", "read_vectors"]

VECTOR_FORMATS: tuple[VectorFormat, ...] = (
    Npy(),
    Word2VecText(),
    Word2VecBinary(),
    CheckpointTable(),
    GloVe(),
)
"""Asked in this order whether they recognize a file; contract tests run over it."""


def read_vectors(
    path: str | Path, wanted: Collection[str] | None = None, *, progress: Progress = silent
) -> WordVectors:
    """Read word vectors of any format, in the order of the file.

    Args:
        path: GloVe or word2vec text, word2vec binary (each plain or gzip), a NumPy matrix NAME.npy
            beside NAME.vocab.txt, or a checkpoint with its tokenizer.
        wanted: keep these tokens only. One that the file does not hold takes the first token whose
            lower-case form it is. None keeps everything.
        progress: told the bytes of the file that are read.

    Returns:
        The kept tokens, as they were wanted, and their vectors.

    Raises:
        UsageError: there is no such file, what belongs to it is missing, or no wanted token is in it.
        InputError: the file is corrupt or of an unknown format.
    """
    path = Path(path)
    if not path.is_file() and not path.is_dir():
        what = "is no regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy="give a file of word vectors or a checkpoint")
    head = b"" if path.is_dir() else read_head(path)
    check_not_pointer(head, path)
    kind = next((kind for kind in VECTOR_FORMATS if kind.recognizes(path, head)), None)
    if kind is None:
        raise InputError(
            f"{path}: is no file of word vectors that is known here",
            remedy=f"give {', '.join(kind.name for kind in VECTOR_FORMATS)}",
        )
    choice = Choice(wanted)
    matrix = kind.read(path, choice, progress)
    tokens = choice.tokens
    if not tokens and wanted is None:
        raise InputError(f"{path}: names no tokens at all", remedy="download it again")
    if not tokens:
        some = "".join(f", {token[:40]!r}" for token in sorted(wanted or ())[:3])
        raise UsageError(
            f"{path}: none of its {choice.seen:,} tokens is one of the {len(wanted or ()):,} wanted{some}",
            remedy="give vectors of the same language, whose tokens are words",
        )
    return WordVectors(tokens, matrix)
