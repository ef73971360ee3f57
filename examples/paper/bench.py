"""A case made ready for measuring: its texts, its dense models, and how a model is trained and measured."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from cases import Case, Material, read_case
from results import Measurement, Step
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.training.devices import runtime
from embcompress.training.loop import State, Trainer
from embcompress.training.metrics import Confusion
from embcompress.training.records import Epoch, Recipe, Watcher
from embcompress.training.scoring import Dataset, scores_of

BEFORE, AFTER = 5, 3
"""Epochs before compression and after it; what is not compressed in between has all of them at once."""

CONSTANT_ADAM = Recipe(epochs=AFTER, batch_size=50, optimizer="adam", learning_rate=1e-3, schedule="constant")
_CPU = runtime("cpu")


@dataclass(frozen=True)
class Training:
    """What a run of training came to.

    Attributes:
        best: the epoch that dev chose.
        seconds: all epochs together.
        early_state: weights that dev chose among the first ``BEFORE`` epochs; empty in a shorter run.
        early: their epoch.
    """

    best: Epoch
    seconds: float
    early_state: State
    early: Epoch


@dataclass(frozen=True)
class Dense:
    """The dense models of a case, from one run of ``BEFORE`` + ``AFTER`` epochs at a constant rate.

    Attributes:
        final: the best epoch of all, for what is not retrained.
        early: the best of the first ``BEFORE``, for what is compressed and retrained: at a constant
            rate they are the whole of a shorter run.
        epoch: the epoch of ``final``.
        seconds: of the run.
    """

    final: State
    early: State
    epoch: int
    seconds: float


class Bench:
    """One case; the dense models are trained once and kept in ``cache``.

    Args:
        case: which.
        data: folder of texts and vectors.
        cache: folder of trained dense models.
    """

    def __init__(self, case: Case, data: Path, cache: Path) -> None:
        self.material: Material = read_case(case, data)
        name = [*map(str, asdict(case).values()), _fingerprint(self.material)]
        self._cache = cache / ("-".join(name) + ".pt")

    @cached_property
    def dense(self) -> Dense:
        """The dense models, trained now if the cache has none."""
        if self._cache.exists():
            return Dense(**torch.load(self._cache, weights_only=True))
        model = self.material.untrained()
        trained = self.train(model, replace(CONSTANT_ADAM, epochs=BEFORE + AFTER), first=True)
        dense = Dense(model.state_dict(), trained.early_state, trained.best.epoch, trained.seconds)
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        staged = self._cache.with_suffix(".part")
        torch.save(asdict(dense), staged)
        os.replace(staged, self._cache)
        return dense

    @cached_property
    def final(self) -> nn.Module:
        """The dense model of all epochs; copy it, do not train it."""
        return self._loaded(self.dense.final)

    @cached_property
    def early(self) -> nn.Module:
        """The dense model to compress and retrain; copy it, do not train it."""
        return self._loaded(self.dense.early)

    def train(self, model: nn.Module, recipe: Recipe, *, first: bool = False) -> Training:
        """Train in place; the model has the weights that dev chose afterwards.

        Args:
            model: what is trained.
            recipe: how; the seed is the case's.
            first: whether it starts from fresh weights; retraining draws other random numbers.
        """
        material = self.material
        seed = material.case.seed + (0 if first else 1000)
        trainer = Trainer(model, material.train, material.dev, replace(recipe, seed=seed), _CPU)
        early: list[tuple[State, Epoch]] = []

        def after_epoch() -> None:
            if len(trainer.history) == BEFORE + 1 and trainer.best is not None:
                early.append((trainer.best_state, trainer.best))

        trainer.run(Watcher(), lambda: False, after_epoch)
        assert trainer.best is not None
        model.load_state_dict(trainer.best_state)
        early_state, early_epoch = early[0] if early else ({}, trainer.best)
        seconds = sum(epoch.seconds for epoch in trainer.history)
        return Training(trainer.best, seconds, early_state, early_epoch)

    def measure(
        self,
        step: Step,
        model: nn.Module,
        *,
        rank: int,
        table_bytes: int,
        error: float,
        epoch: int,
        seconds: float,
    ) -> Measurement:
        """Measure a finished model on dev and, once, on test; see ``Measurement``."""
        material = self.material
        dev_scores, dev = _scored(model, material.dev, material.record.labels)
        _, test = _scored(model, material.test, material.record.labels)
        loss = float(F.cross_entropy(dev_scores, torch.from_numpy(material.dev.labels)))
        return Measurement(
            **asdict(material.case),
            **asdict(step),
            rank=rank,
            table_bytes=table_bytes,
            parameters=sum(p.numel() for p in model.parameters()),
            table_error=error,
            dev_accuracy=dev.accuracy,
            dev_loss=loss,
            test_accuracy=test.accuracy,
            test_f1=test.macro_f1,
            epoch=epoch,
            seconds=seconds,
        )

    def dev_order(self, model: nn.Module) -> tuple[float, float]:
        """What says which of two models is better on dev: accuracy, then loss."""
        scores, dev = _scored(model, self.material.dev, self.material.record.labels)
        return dev.accuracy, -float(F.cross_entropy(scores, torch.from_numpy(self.material.dev.labels)))

    def _loaded(self, state: State) -> nn.Module:
        model = self.material.untrained()
        model.load_state_dict(state)
        return model


def nbytes(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _fingerprint(material: Material) -> str:
    """Eight digits of a hash of the texts as ids: a model learned from others is not taken for this one's."""
    digest = hashlib.sha256(repr(material.record.tokenizer.vocabulary).encode())
    for data in (material.train, material.dev):
        for array in (data.texts.tokens, data.texts.lengths, data.labels):
            digest.update(array.tobytes())
    return digest.hexdigest()[:8]


def _scored(model: nn.Module, data: Dataset, labels: tuple[str, ...]) -> tuple[Tensor, Confusion]:
    scores = scores_of(model, data, _CPU)
    return scores, Confusion.of(labels, data.labels, scores.argmax(dim=1).numpy())
