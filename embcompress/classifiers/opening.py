"""Open a classifier of any kind, from the registry of kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from embcompress.classifiers import pretrained, storage
from embcompress.classifiers.opened import OpenedClassifier
from embcompress.classifiers.record import ClassifierRecord
from embcompress.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A registry entry: one way to store classifiers on disk.

    Attributes:
        recognizes: tells whether a path holds this kind.
        record: reads the record of a classifier without its weights.
        open: opens the whole classifier; its second argument is the user's own factory, or None.
    """

    recognizes: Callable[[Path], bool]
    record: Callable[[Path], ClassifierRecord]
    open: Callable[[Path, str | None], OpenedClassifier]


KINDS = (
    Kind(pretrained.is_directory, pretrained.record_of, pretrained.open_directory),
    Kind(lambda _: True, storage.record_of, storage.open_own),  # last, as its errors say what is expected
)
"""The kinds, in the order in which they are tried."""


def open_classifier(path: str | Path, *, factory: str | None = None) -> OpenedClassifier:
    """Build the classifier of a checkpoint and load its weights.

    Args:
        path: a checkpoint written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a sequence classification model, compressed or dense.
        factory: see ``classifiers.building.build``.

    Raises:
        UsageError: the checkpoint is not a classifier, or needs another factory.
        InputError: it is corrupt, its parts do not match, or a weight is NaN or infinite.
    """
    with torch.random.fork_rng([]):  # fresh weights are overwritten; do not advance the caller's generator
        opened = _kind(Path(path)).open(Path(path), factory)
    for name, value in opened.model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: {name} holds values that are not finite", remedy="train the classifier again"
            )
    return opened


def record_of(path: str | Path) -> ClassifierRecord:
    """Read the record of a classifier without its weights; raises the errors of :func:`open_classifier`."""
    return _kind(Path(path)).record(Path(path))


def _kind(path: Path) -> Kind:
    return next(kind for kind in KINDS if kind.recognizes(path))
