"""How a compressed model is recovered without labels, and what a run reports; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from embcompress.choices import MAX_LENGTH
from embcompress.errors import UsageError, check_choice


@dataclass(frozen=True)
class Part:
    """A registry entry: which part of a model is trained.

    Attributes:
        name: registry name.
        learning_rate: default learning rate.
        by_error: whether that is the rate for a model that has lost everything: it is multiplied by the
            square root of the error before training, at most 1.
        description: one line for help texts.
    """

    name: str
    learning_rate: float
    description: str
    by_error: bool = False


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part("factors", 1e-3, "the floats that replace the table"),
        Part("norms", 3e-4, "those and the weights of all normalization layers"),
        Part("first", 1e-3, "those and the first layers, a sixth of all, by the states after them", True),
        Part("all", 5e-5, "everything"),
    )
}
"""Every choice of ``--train``, by name."""

MIXTURE = 0.5
"""Share of the tokens of an encoder's texts that are replaced by others, the one that measured best."""

USUAL_EPOCHS = 3
"""Default passes over the texts, if neither ``epochs`` nor ``minutes`` is given."""


@dataclass(frozen=True)
class DistilRecipe:
    """How a compressed model learns to behave like the model it was made from.

    Attributes:
        train: registry name of what is trained; None for "first" in encoders and "all" in language models.
        epochs: passes over the texts; None for ``USUAL_EPOCHS``, or with ``minutes`` for as many as
            there is time for.
        minutes: of training; it ends then, however many passes it made.
        learning_rate: the highest; None for the usual one of what is trained.
        mixture: share of the tokens of training texts that are replaced by ones drawn from the vocabulary, as
            frequent as it suggests, so that what is learned also holds for other texts; None for ``MIXTURE``
            in encoders and 0 in language models.
        batch_size: texts a step.
        max_length: tokens that are read of a text.
        seed: of the texts set aside and of shuffling.

    Raises:
        UsageError: a value is outside its range.
    """

    train: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None
    mixture: float | None = None
    batch_size: int = 32
    max_length: int = MAX_LENGTH
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train is not None:
            check_choice("train", self.train, PARTS)
        if self.mixture is not None and not 0 <= self.mixture <= 1:
            raise UsageError(f"mixture {self.mixture}", remedy="give a share from 0 to 1")
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

    def highest_rate(self, error: float) -> float:
        """The highest learning rate; after warm-up, the rate falls from it to 0.

        Args:
            error: of the model before training, as in :class:`Likeness`.
        """
        assert self.train is not None, "the recipe is settled"
        part = PARTS[self.train]
        if self.learning_rate is not None:
            return self.learning_rate
        return part.learning_rate * (math.sqrt(error) if part.by_error and error < 1 else 1.0)

    def settled(self, *, causal: bool, layers: int) -> DistilRecipe:
        """The recipe with what is usual for a model wherever nothing is chosen.

        Args:
            causal: whether the model predicts tokens.
            layers: how many it has, as far as they are known.
        """
        train = self.train or ("first" if layers and not causal else "all")
        mixture = (0.0 if causal else MIXTURE) if self.mixture is None else self.mixture
        return replace(self, train=train, mixture=mixture)

    @property
    def most_epochs(self) -> float:
        """Most passes over the texts; infinite if only the time is limited."""
        if self.epochs is not None:
            return self.epochs
        return USUAL_EPOCHS if self.minutes is None else math.inf


@dataclass(frozen=True)
class Likeness:
    """How alike two models are on some texts.

    Attributes:
        texts: number of texts.
        error: squared distance between the last hidden states over their variance: 0 where the models
            agree, 1 where the mean state would be as good a guess.
        cosine: mean cosine of the sentence vectors, the means of a text's last hidden states.
        neighbours: share of each text's five nearest neighbours that stay the same.
        teacher_perplexity: of the original language model; None for other models.
        perplexity: of the compressed language model.
        divergence: mean Kullback–Leibler divergence of the predicted next tokens, in nats; None likewise.
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
        """The fields, ready for JSON; what is not finite becomes null, since JSON has no word for it."""
        return {k: v if v is None or math.isfinite(v) else None for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Check:
    """The measurements of a run at one moment.

    Attributes:
        step: optimizer steps so far.
        seconds: time since training began; for the first check, the time that the check took.
        loss: mean over the training texts since the check before; None before training.
        held_out: likeness on the texts that were set aside.
    """

    step: int
    seconds: float
    loss: float | None
    held_out: Likeness

    def beats(self, other: Check) -> bool:
        """Whether it is closer to the teacher; a loss that is not a number never is."""
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
        """When something went wrong that does not stop training."""
