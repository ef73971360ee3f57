"""Checkpoints on disk: opened, read by rows and written anew; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.checkpoint import Directory
from embcompress.checkpoint.files import FILE_FORMATS, open_file
from embcompress.checkpoint.vectors import open_vectors
from embcompress.errors import UsageError
from embcompress.progress import Progress, silent

FORMATS: tuple[type[Checkpoint], ...] = (*FILE_FORMATS, Directory)
"""Every format of models; contract tests run over it. Those of word vectors are ``VECTOR_FORMATS``
(``checkpoint/vectors/registry.py``); they hold one table and are never a part of a directory."""


def open_checkpoint(path: str | Path, progress: Progress = silent) -> Checkpoint:
    """Open a checkpoint of any format for reading; use it as a context manager.

    Args:
        path: a .safetensors, PyTorch or ONNX file, a Hugging Face directory, or a file of word vectors.
        progress: told where a file must be read as a whole before anything is known of it.

    Raises:
        UsageError: there is nothing at ``path``, or no weights in the directory.
        InputError: the checkpoint is corrupt, unsafe or of an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        return Directory.open(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy="give a checkpoint file or directory")
    return open_vectors(path, progress) or open_file(path)
