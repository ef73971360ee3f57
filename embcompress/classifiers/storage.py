"""Classifiers on disk: a new one written, and one opened with its record and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.checkpoint.safetensors import Safetensors
from embcompress.checkpoint.torchfile import TorchFile
from embcompress.classifiers.base import TABLE
from embcompress.classifiers.building import build
from embcompress.classifiers.record import ClassifierRecord, read_record
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.errors import InputError, UsageError
from embcompress.loading import fill


@dataclass(frozen=True)
class OpenedClassifier:
    """A classifier that is ready to run.

    Attributes:
        record: what it says about itself.
        model: the module with its weights, in float32.
        description: what compression says about it, None where its table is dense.
        size: bytes of its weight files.
    """

    record: ClassifierRecord
    model: nn.Module
    description: Description | None
    size: int


def open_classifier(path: str | Path, *, factory: str | None = None) -> OpenedClassifier:
    """Build the classifier in a checkpoint and load its weights.

    Args:
        path: a checkpoint written by ``train``, ``factorize`` or ``finetune``.
        factory: see ``classifiers.building.build``.

    Raises:
        UsageError: the checkpoint is no classifier, or needs another factory.
        InputError: it is corrupt, or its parts do not fit each other.
    """
    with open_checkpoint(path) as checkpoint:
        record, description, size = read_record(checkpoint), checkpoint.description, checkpoint.size
        _check_rows(checkpoint, len(record.tokenizer.vocabulary))
    model = build(record, factory=factory)
    fill(model, path)
    return OpenedClassifier(record, model, description, size)


def _check_rows(checkpoint: Checkpoint, tokens: int) -> None:
    """Refuse a vocabulary whose ids lead beyond the table.

    Raises:
        InputError: there are more or fewer tokens than rows.
    """
    tables = checkpoint.description.tables if checkpoint.description else ()
    rows = {table.name: table.shape[0] for table in tables}
    if TABLE in checkpoint.tensors and TABLE not in rows:
        rows[TABLE] = checkpoint.tensors[TABLE].shape[0]
    if TABLE in rows and rows[TABLE] != tokens:
        raise InputError(
            f"{checkpoint.path}: token ids go up to {tokens - 1:,}, the table has rows up to "
            f"{rows[TABLE] - 1:,}",
            remedy="vocabulary and table are not of one model: train the classifier again",
        )


def new_format(path: Path) -> str:
    """Name of the format that the suffix of a new file asks for.

    Raises:
        UsageError: none has that suffix.
    """
    for kind in FILE_FORMATS:
        if path.suffix in kind.suffixes:
            return kind.format
    known = ", ".join(suffix for kind in FILE_FORMATS for suffix in kind.suffixes)
    raise UsageError(f"{path}: no format has the suffix {path.suffix!r}", remedy=f"choose from {known}")


def save_new(path: Path, state: Mapping[str, Tensor], record: ClassifierRecord) -> None:
    """Write a dense classifier to ``path``, which does not exist yet; its suffix decides the format."""
    if new_format(path) == Safetensors.format:
        save_file(dict(state), path, metadata={"format": "pt", RECORD_KEY: record.to_json()})
    else:
        assert new_format(path) == TorchFile.format
        torch.save({"state_dict": dict(state), RECORD_KEY: record.to_dict()}, path)
