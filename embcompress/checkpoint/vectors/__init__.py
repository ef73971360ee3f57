"""Files of word vectors: GloVe and word2vec text, word2vec binary, and NumPy matrices."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import AS_IT_IS, Checkpoint, Reading
from embcompress.checkpoint.vectors.compressed import CompressedVectors
from embcompress.checkpoint.vectors.file import VectorFile
from embcompress.progress import Progress, silent

__all__ = ["open_vectors"]


def open_vectors(path: Path, progress: Progress = silent, reading: Reading = AS_IT_IS) -> Checkpoint | None:
    """Open a file of word vectors, dense or compressed; None if ``path`` holds something else.

    Args:
        path: an existing file.
        progress: called while a dense file is read.
        reading: what to take of the file.

    Raises:
        UsageError: a file that belongs to the vectors is missing, or a state dict is chosen.
        InputError: the file is corrupt.
    """
    if CompressedVectors.recognizes(path):
        return CompressedVectors.open_as(path, reading)
    if not VectorFile.recognizes(path):
        return None
    reading.check_one(path)
    return VectorFile.open(path, progress)
