"""The registry of single-file formats. A new format is one file here and one line in ``FILE_FORMATS``."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.base import AS_IT_IS, Checkpoint, Reading
from embcompress.checkpoint.onnx import OnnxFile
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.errors import InputError

FILE_FORMATS: list[type[Checkpoint]] = [Safetensors, TorchFile, OnnxFile]
"""Asked in this order whether they recognize a file."""


def open_file(path: Path, reading: Reading = AS_IT_IS) -> Checkpoint:
    """Open one weight file with the first format that recognizes it.

    Raises:
        UsageError: a state dict is chosen in a format that holds one.
        InputError: no format does, or the file is broken or unsafe.
    """
    for kind in FILE_FORMATS:
        if kind.recognizes(path):
            return kind.open_as(path, reading)
    raise InputError(
        f"{path}: is not a known checkpoint",
        remedy="give a .safetensors, PyTorch or ONNX file, word vectors, or a Hugging Face directory",
    )
