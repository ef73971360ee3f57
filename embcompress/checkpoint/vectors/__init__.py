"""Word vectors in files of their own: GloVe and word2vec text, word2vec binary, NumPy matrices."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.vectors.compressed import CompressedVectors
from embcompress.checkpoint.vectors.file import VectorFile
from embcompress.progress import Progress, silent

__all__ = ["open_vectors"]


def open_vectors(path: Path, progress: Progress = silent) -> Checkpoint | None:
    """Open a file of word vectors, dense or compressed; None where ``path`` is a file of something else.

    Args:
        path: an existing file.
        progress: told while a dense file is read.

    Raises:
        UsageError: a file that belongs to it is missing.
        InputError: it is corrupt.
    """
    if CompressedVectors.recognizes(path):
        return CompressedVectors.open(path)
    return VectorFile.open(path, progress) if VectorFile.recognizes(path) else None
