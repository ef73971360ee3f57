"""How a classifier is trained, and what training reports; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from embcompress.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the command line's help says what each setting is good for.

    Attributes:
        epochs: passes over the texts, at least 1.
        batch_size: texts per step.
        optimizer: registry name.
        learning_rate: highest rate of the schedule; None for the optimizer's usual one.
        schedule: registry name.
        schedule_options: settings of the schedule by name.
        weight_decay: L2 penalty (decoupled for AdamW).
        clip: largest norm of the gradient; None for no limit.
        patience: epochs without a better dev result before training stops; None to never stop early.
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


TRAIN_RECIPE = Recipe()
"""How a new classifier is trained unless the user says otherwise."""

FINETUNE_RECIPE = Recipe(epochs=3, learning_rate=3e-3)
"""How a compressed classifier is retrained unless the user says otherwise: what measured best at large
ratios, see examples/paper/RESULTS.md."""

CALR_RECIPE = replace(FINETUNE_RECIPE, schedule="calr", schedule_options={"decay": 0.5, "window": 3})
"""The same with CALR, in one window as the authors retrain. With their decay, 0.1, hardly anything moves
after the first epoch; of what was tried with CALR, this lost least on texts held out of three sets, see
examples/paper/RESULTS.md."""

PRETRAINED_RECIPE = Recipe(epochs=3, batch_size=32, optimizer="adamw", learning_rate=1e-4, clip=1.0)
"""The same for a model of a Hugging Face directory. On all-MiniLM-L6-v2, trained on TREC-6 to 93.4 % on dev,
then with a table ten times smaller (45.8 %), rates of 2e-5, 5e-5, 1e-4 and 2e-4 came to 87.6, 88.5, 89.4 and
89.4 %; large models want the lower ones."""


@dataclass(frozen=True)
class Epoch:
    """The measurements of one epoch; epoch 0 is the model before training.

    Attributes:
        epoch: number.
        loss: mean cross-entropy on the training texts while the model changed, None for epoch 0.
        dev_loss: mean cross-entropy on dev.
        dev_accuracy: fraction of dev texts whose label is predicted.
        learning_rate: the highest of its steps, None for epoch 0.
        seconds: time it took, including measuring on dev.
    """

    epoch: int
    loss: float | None
    dev_loss: float
    dev_accuracy: float
    learning_rate: float | None
    seconds: float

    def beats(self, other: Epoch) -> bool:
        """Whether it is more accurate on dev, or as accurate with a lower dev loss.

        An epoch whose dev loss is not finite never beats one whose dev loss is.
        """
        if not (math.isfinite(self.dev_loss) and math.isfinite(other.dev_loss)):
            return math.isfinite(self.dev_loss) > math.isfinite(other.dev_loss)
        return (self.dev_accuracy, -self.dev_loss) > (other.dev_accuracy, -other.dev_loss)

    def to_dict(self) -> dict[str, float | None]:
        """The fields, ready for JSON; what is not finite becomes null, since JSON has no word for it."""
        return {k: v if v is None or math.isfinite(v) else None for k, v in asdict(self).items()}


class Watcher:
    """Receives the progress of a training run; the base class ignores it."""

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        """Called after step ``done`` of ``total`` of the whole run; ``loss`` is the epoch's mean so far."""

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        """Called after each epoch; ``best`` says whether it is the best so far."""

    def warn(self, text: str) -> None:
        """When something went wrong that does not stop training."""
