"""The settings of a recovery without labels, and what it reports; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from embcompress.errors import UsageError


@dataclass(frozen=True)
class Part:
    """A registry entry: which part of a model is trained.

    Attributes:
        name: registry name.
        learning_rate: default learning rate.
        description: one line for help texts.
    """

    name: str
    learning_rate: float
    description: str


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part("factors", 1e-3, "the floats that replace the table"),
        Part("norms", 3e-4, "these and the weights of all normalizing layers"),
        Part("all", 5e-5, "everything"),
    )
}
"""Every choice of ``--train`` by name."""

USUAL_EPOCHS = 3
"""Default passes over the texts, if neither ``epochs`` nor ``minutes`` is given."""


@dataclass(frozen=True)
class DistilRecipe:
    """The settings for training a compressed model to match its original.

    Attributes:
        train: registry name of the part to train.
        epochs: passes over the texts; None for ``USUAL_EPOCHS``, or without limit if ``minutes`` is given.
        minutes: training time after which the run ends, whatever the number of passes.
        learning_rate: highest learning rate; None for the default of the trained part.
        batch_size: texts per step.
        max_length: number of tokens of a text that are read.
        seed: random seed for the choice of held-out texts and for shuffling.

    Raises:
        UsageError: a value is outside its range.
    """

    train: str = "all"
    epochs: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None
    batch_size: int = 32
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train not in PARTS:
            raise UsageError(f"train {self.train!r}", remedy=f"choose from {', '.join(PARTS)}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and (value < least or value % 1):
                raise UsageError(f"{name} {value}", remedy=f"give a whole number from {least} on")
        for name in ("minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} {value}", remedy="give a finite number above 0")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed}", remedy="give a whole number from 0 to 2^63 - 1")

    @property
    def highest_rate(self) -> float:
        """The highest learning rate; after warm-up, the rate falls from it to 0."""
        return PARTS[self.train].learning_rate if self.learning_rate is None else self.learning_rate

    @property
    def most_epochs(self) -> float:
        """Most passes over the texts; infinite if only the time is limited."""
        if self.epochs is not None:
            return self.epochs
        return USUAL_EPOCHS if self.minutes is None else math.inf


@dataclass(frozen=True)
class Likeness:
    """How closely two models match on some texts.

    Attributes:
        texts: number of texts.
        error: squared distance of the last hidden states over their variance: 0 if the models agree,
            1 if the mean would do as well.
        cosine: mean cosine of the sentence vectors (means of a text's last hidden states).
        neighbours: fraction of each text's five nearest others that are the same in both models.
        teacher_perplexity: perplexity of the original language model; None for other models.
        perplexity: perplexity of the compressed language model; None for other models.
        divergence: mean Kullback–Leibler divergence of the predicted tokens, in nats; None for other models.
    """

    texts: int
    error: float
    cosine: float
    neighbours: float
    teacher_perplexity: float | None = None
    perplexity: float | None = None
    divergence: float | None = None

    @property
    def loss(self) -> float:
        """The quantity that training minimizes and that chooses the best weights."""
        return self.error + (1 - self.cosine) + (self.divergence or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        """The fields, ready for JSON, where numbers that are not finite become null."""
        return {k: v if v is None or math.isfinite(v) else None for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Check:
    """The measurements of a run at one moment.

    Attributes:
        step: optimizer steps so far.
        seconds: training time so far; for the first check, its own duration.
        loss: mean loss of the training texts since the last check; None before training.
        held_out: likeness on the held-out texts.
    """

    step: int
    seconds: float
    loss: float | None
    held_out: Likeness

    def beats(self, other: Check) -> bool:
        """Whether the student is closer to the teacher; never if the loss is not finite."""
        mine, theirs = self.held_out.loss, other.held_out.loss
        if not (math.isfinite(mine) and math.isfinite(theirs)):
            return math.isfinite(mine) > math.isfinite(theirs)
        return mine < theirs

    def to_dict(self) -> dict[str, object]:
        """The fields, ready for JSON."""
        loss = self.loss if self.loss is None or math.isfinite(self.loss) else None
        return {**asdict(self), "loss": loss, "held_out": self.held_out.to_dict()}


class DistilWatcher:
    """Receives the progress of a recovery run; the base class ignores it."""

    def step(self, share: float, loss: float, learning_rate: float) -> None:
        """Called after a step; ``share`` of the run is done, ``loss`` is the mean since the last check."""

    def check(self, check: Check, *, best: bool) -> None:
        """Called after each check; ``best`` says whether it is the best so far."""

    def warn(self, text: str) -> None:
        """Called when something went wrong but training continues."""
