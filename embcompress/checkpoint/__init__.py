"""Open checkpoints, read them in blocks of rows, and write edited copies. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import AS_IT_IS, Checkpoint, Reading
from embcompress.checkpoint.directory.checkpoint import Directory
from embcompress.checkpoint.files import FILE_FORMATS, open_file
from embcompress.checkpoint.vectors import open_vectors
from embcompress.errors import UsageError
from embcompress.progress import Progress, silent
from embcompress.storage.rawio import naming

__all__ = ["FORMATS", "Reading", "open_checkpoint"]

FORMATS: tuple[type[Checkpoint], ...] = (*FILE_FORMATS, Directory)
"""Every model format; the contract tests run over it. Formats of word vectors are in ``VECTOR_FORMATS``
(``checkpoint/vectors/registry.py``): their files hold one table and are never part of a directory."""


def open_checkpoint(path: str | Path, progress: Progress = silent, reading: Reading = AS_IT_IS) -> Checkpoint:
    """Open a checkpoint of any format for reading; use it as a context manager.

    Args:
        path: a .safetensors, PyTorch or ONNX file, a Hugging Face directory, or a file of word vectors.
        progress: called while a file that has no index is read from end to end.
        reading: what to take of a PyTorch file.

    Raises:
        UsageError: there is nothing at ``path``, or no weights in the directory; or it holds no state dict
            of the chosen name.
        InputError: the checkpoint is corrupt, unsafe or of an unknown format.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy="give a checkpoint file or directory")
    with naming(path):
        if path.is_dir():
            return Directory.open_as(path, reading)
        return open_vectors(path, progress, reading) or open_file(path, reading)
