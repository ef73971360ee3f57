"""The settings of a training run, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from embcompress.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; the command line's help says when to use each.

    Attributes:
        epochs: passes over the texts, at least 1.
        batch_size: texts per step.
        optimizer: registry name.
        learning_rate: highest rate of the schedule; None for the optimizer's default.
        schedule: registry name.
        schedule_options: settings of the schedule by name.
        weight_decay: L2 penalty (decoupled for AdamW).
        clip: largest norm of the gradient; None does not clip.
        patience: epochs without a better dev result before training stops; None never stops early.
        only_factors: train only the factors of a compressed table.
        seed: random seed of shuffling and dropout.

    Raises:
        UsageError: a number is outside its range.
    """

    epochs: int = 8
    batch_size: int = 50
    optimizer: str = "adam"
    learning_rate: float | None = None
    schedule: str = "linear"
    schedule_options: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float | None = None
    patience: int | None = None
    only_factors: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % 1):
                raise UsageError(f"{name} {value}", remedy="give a whole number from 1 on")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip {self.clip}", remedy="give a norm above 0, or leave it out")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed}", remedy="give a whole number from 0 to 2^63 - 1")


@dataclass(frozen=True)
class Epoch:
    """The measurements of one epoch; epoch 0 is the model before training.

    Attributes:
        epoch: number of the epoch.
        loss: mean cross-entropy of the training texts while the model changed, None for epoch 0.
        dev_loss: mean cross-entropy on dev.
        dev_accuracy: fraction of dev texts whose label is predicted.
        learning_rate: the highest of its steps, None for epoch 0.
        seconds: duration, including the dev texts.
    """

    epoch: int
    loss: float | None
    dev_loss: float
    dev_accuracy: float
    learning_rate: float | None
    seconds: float

    def beats(self, other: Epoch) -> bool:
        """Whether dev accuracy is higher, or equal with a lower dev loss; never if that is not finite."""
        if not (math.isfinite(self.dev_loss) and math.isfinite(other.dev_loss)):
            return math.isfinite(self.dev_loss) > math.isfinite(other.dev_loss)
        return (self.dev_accuracy, -self.dev_loss) > (other.dev_accuracy, -other.dev_loss)

    def to_dict(self) -> dict[str, float | None]:
        """The fields, ready for JSON, where numbers that are not finite become null."""
        return {k: v if v is None or math.isfinite(v) else None for k, v in asdict(self).items()}


class Watcher:
    """Receives the progress of a training run; the base class ignores it."""

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        """Called after step ``done`` of ``total`` of the whole run; ``loss`` is the epoch's mean so far."""

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        """Called after each epoch; ``best`` says whether it is the best so far."""

    def warn(self, text: str) -> None:
        """Called when something went wrong but training continues."""
