"""A classifier that is ready to run, whatever kind of checkpoint it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from embcompress.checkpoint.description import Description
from embcompress.classifiers.record import ClassifierRecord


@dataclass(frozen=True)
class OpenedClassifier:
    """A classifier that is ready to run.

    Attributes:
        record: how texts become scores.
        model: the module with its weights, in float32; called as ``Classifier.forward`` is.
        description: the record of compression, None if its table is dense.
        size: bytes of its weight files.
        stored_state: converts the state dict of ``model``, or part of it, to the names in its weight files.
        notes: what the user should know, one sentence each.
    """

    record: ClassifierRecord
    model: nn.Module
    description: Description | None
    size: int
    stored_state: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    notes: tuple[str, ...] = ()
