"""The registry of single-file formats; a new one is a file beside this one and a line here."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.onnx import OnnxFile
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.errors import InputError

FILE_FORMATS: list[type[Checkpoint]] = [Safetensors, TorchFile, OnnxFile]
"""Asked in this order whether they recognize a file."""


def open_file(path: Path) -> Checkpoint:
    """Open one weight file with the format that recognizes it.

    Raises:
        InputError: no format does, or the file is broken or unsafe.
    """
    for kind in FILE_FORMATS:
        if kind.recognizes(path):
            return kind.open(path)
    raise InputError(
        f"{path}: is no checkpoint that is known here",
        remedy="give a .safetensors, PyTorch or ONNX file, word vectors, or a Hugging Face directory",
    )
