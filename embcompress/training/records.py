"""What is asked of training, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from embcompress.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; see the command line's help for what each is good for.

    Attributes:
        epochs: passes over the texts, at least 1.
        batch_size: texts a step.
        optimizer: registry name.
        learning_rate: highest rate of the schedule; the optimizer's usual one when None.
        schedule: registry name.
        schedule_options: settings of the schedule by name.
        weight_decay: L2 penalty (decoupled for AdamW).
        clip: largest norm of the gradient; None leaves it.
        patience: epochs without a better dev result before it stops; None never stops early.
        only_factors: train the factors of a compressed table and nothing else.
        seed: of shuffling and dropout.

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
    """What one epoch came to; epoch 0 is the model before training.

    Attributes:
        epoch: number.
        loss: mean cross-entropy of the training texts while the model changed, None for epoch 0.
        dev_loss: mean cross-entropy on dev.
        dev_accuracy: share of dev texts whose label is predicted.
        learning_rate: the highest of its steps, None for epoch 0.
        seconds: time it took, the dev set included.
    """

    epoch: int
    loss: float | None
    dev_loss: float
    dev_accuracy: float
    learning_rate: float | None
    seconds: float

    def beats(self, other: Epoch) -> bool:
        """More accurate on dev; among equals the lower dev loss. A loss that is no number never does."""
        if not (math.isfinite(self.dev_loss) and math.isfinite(other.dev_loss)):
            return math.isfinite(self.dev_loss) > math.isfinite(other.dev_loss)
        return (self.dev_accuracy, -self.dev_loss) > (other.dev_accuracy, -other.dev_loss)

    def to_dict(self) -> dict[str, float | None]:
        """The fields, ready for JSON, which has no word for what is not finite but null."""
        return {k: v if v is None or math.isfinite(v) else None for k, v in asdict(self).items()}


class Watcher:
    """Is told how training goes; the base class does nothing with it."""

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        """After step ``done`` of ``total`` of the whole run; ``loss`` is the epoch's mean so far."""

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        """After each epoch."""

    def warn(self, text: str) -> None:
        """When something went wrong that training does not end for."""
