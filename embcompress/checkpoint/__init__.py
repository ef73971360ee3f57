"""Checkpoints on disk: opened, read by rows and written anew; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory import Directory
from embcompress.checkpoint.files import FILE_FORMATS, open_file
from embcompress.errors import UsageError

FORMATS: tuple[type[Checkpoint], ...] = (*FILE_FORMATS, Directory)
"""Every format; contract tests run over it."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint of any format for reading; use it as a context manager.

    Args:
        path: a .safetensors or PyTorch file, or a Hugging Face directory.

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
    return open_file(path)
