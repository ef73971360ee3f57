"""Every kind of classifier that can be opened, and the one that a path is."""

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
    """A registry entry: classifiers that are kept on disk in one way.

    Attributes:
        recognizes: whether a path is one of them.
        record: what it says about itself, with its weights left alone.
        open: the whole of it; ``factory`` is the user's own, None where none is given.
    """

    recognizes: Callable[[Path], bool]
    record: Callable[[Path], ClassifierRecord]
    open: Callable[[Path, str | None], OpenedClassifier]


KINDS = (
    Kind(pretrained.is_directory, pretrained.record_of, pretrained.open_directory),
    Kind(lambda _: True, storage.record_of, storage.open_own),  # last, since its errors say what is expected
)
"""The first that recognizes a path has it."""


def open_classifier(path: str | Path, *, factory: str | None = None) -> OpenedClassifier:
    """Build the classifier in a checkpoint and load its weights.

    Args:
        path: a checkpoint written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a model for sequence classification, compressed or dense.
        factory: see ``classifiers.building.build``.

    Raises:
        UsageError: the checkpoint is no classifier, or needs another factory.
        InputError: it is corrupt, or its parts do not fit each other.
    """
    with torch.random.fork_rng([]):  # fresh weights, which are overwritten, cost no random numbers
        opened = _kind(Path(path)).open(Path(path), factory)
    for name, value in opened.model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: {name} holds values that are not finite", remedy="train the classifier again"
            )
    return opened


def record_of(path: str | Path) -> ClassifierRecord:
    """What a classifier says about itself; see :func:`open_classifier`, whose errors it raises."""
    return _kind(Path(path)).record(Path(path))


def _kind(path: Path) -> Kind:
    return next(kind for kind in KINDS if kind.recognizes(path))
