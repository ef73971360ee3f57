"""Classifiers on disk: write a new one, and open one with its record and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.classifiers.base import MODULE, TABLE
from embcompress.classifiers.building import build
from embcompress.classifiers.opened import OpenedClassifier
from embcompress.classifiers.record import ClassifierRecord, read_record
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.errors import InputError, UsageError
from embcompress.loading.load import fill
from embcompress.nn.outline import outlined_for

_WRITTEN = (Safetensors, TorchFile)
"""Formats in which new classifiers can be written."""


def record_of(path: Path) -> ClassifierRecord:
    """The record of a classifier; see :func:`fitting_record` for the errors it raises."""
    with open_checkpoint(path) as checkpoint:
        return fitting_record(checkpoint)


def open_own(path: Path, factory: str | None) -> OpenedClassifier:
    """Open the classifier in a checkpoint written by ``train``, ``factorize`` or ``finetune``.

    Args:
        path: the checkpoint.
        factory: see ``classifiers.building.build``.

    Raises:
        UsageError: the checkpoint is not a classifier, or needs another factory.
        InputError: it is corrupt, or its parts do not match.
    """
    with open_checkpoint(path) as checkpoint:
        record, description, size = fitting_record(checkpoint), checkpoint.description, checkpoint.size
    model = build(record, factory=factory)
    fill(model, path)
    return OpenedClassifier(record, model, description, size)


def fitting_record(checkpoint: Checkpoint) -> ClassifierRecord:
    """The record of a classifier, compared with the stored tensors before any memory is allocated.

    Raises:
        UsageError: the checkpoint is not a classifier.
        InputError: its record cannot be read, or belongs to another model.
    """
    record = read_record(checkpoint)
    if record.architecture.name == MODULE:
        return record  # only the user's code knows which tensors to expect
    stored = checkpoint.dense_shapes
    remedy = "the record and the weights belong to different models: train the classifier again"
    try:
        with outlined_for(len(stored), f"{checkpoint.path}: the classifier record"):
            expected = {name: tuple(value.shape) for name, value in build(record).state_dict().items()}
    except UsageError as error:  # the file contradicts itself; the user's request is fine
        raise InputError(f"{checkpoint.path}: {error.message}", remedy=remedy) from None
    rows, tokens = stored.get(TABLE, ())[:1], len(record.tokenizer.vocabulary)
    if rows and rows != (tokens,):
        raise InputError(
            f"{checkpoint.path}: token ids go up to {tokens - 1:,}, the table has rows up to {rows[0] - 1:,}",
            remedy=remedy,
        )
    for name in {**expected, **stored}:
        if stored.get(name) != expected.get(name):
            found = f"is {list(stored[name])}" if name in stored else "is missing"
            wanted = list(expected[name]) if name in expected else "that there is none"
            raise InputError(
                f"{checkpoint.path}: {name} {found}, the classifier record says {wanted}", remedy=remedy
            )
    return record


def new_format(path: Path) -> str:
    """Name of the format that belongs to the suffix of a new file.

    Raises:
        UsageError: no format has that suffix.
    """
    for kind in _WRITTEN:
        if path.suffix in kind.suffixes:
            return kind.format
    known = ", ".join(suffix for kind in _WRITTEN for suffix in kind.suffixes)
    raise UsageError(f"{path}: no format has the suffix {path.suffix!r}", remedy=f"choose from {known}")


def save_new(path: Path, state: Mapping[str, Tensor], record: ClassifierRecord) -> None:
    """Write a dense classifier to ``path``, which does not exist yet; its suffix selects the format."""
    if new_format(path) == Safetensors.format:
        stored, aliases = _distinct(state)
        metadata = {**aliases, "format": "pt", RECORD_KEY: record.to_json()}
        path.write_bytes(save(stored, metadata))  # save_file would make it readable for its owner only
    else:
        assert new_format(path) == TorchFile.format
        torch.save({"state_dict": dict(state), RECORD_KEY: record.to_dict()}, path)


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and aliases for a format without shared memory, noted as ``save_model`` does."""
    first: dict[object, str] = {}
    aliases = {}
    for name, value in state.items():
        memory = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        if first.setdefault(memory, name) != name:
            aliases[name] = first[memory]
    return {name: state[name].contiguous() for name in first.values()}, aliases
