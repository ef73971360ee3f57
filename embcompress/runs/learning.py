"""One training run: the loop with its snapshots and history, and a check of what it wrote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers.opening import open_classifier
from embcompress.compression.outputs import BAD_DISK
from embcompress.errors import EmbcompressError
from embcompress.reports.plots import plot_history
from embcompress.rows import keep_freed_memory
from embcompress.runs.sessions import Session
from embcompress.runs.unfinished import carry_out, forget, keep_best
from embcompress.training.loop import State, Trainer
from embcompress.training.records import Epoch, Recipe, Watcher
from embcompress.training.scoring import Dataset, accuracy_of, scores_of
from embcompress.training.snapshots import Snapshots, fingerprint


@dataclass(frozen=True)
class Learned:
    """What training came to.

    Attributes:
        epochs: one entry an epoch, the first before training.
        best: the epoch that is kept.
        state: its weights.
    """

    epochs: tuple[Epoch, ...]
    best: Epoch
    state: State


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        model: changed in place.
        train: texts to learn from.
        dev: texts that choose the epoch.
        recipe: how it is trained.
        place: the output; what is kept of an unfinished run is written next to it.
        sources: files of the model it starts from, whose permissions that keeps.
    """

    model: nn.Module
    train: Dataset
    dev: Dataset
    recipe: Recipe
    place: Path
    sources: tuple[Path, ...] = ()


def learn(task: Task, session: Session, write: Callable[[Path, Learned], object]) -> Learned:
    """Train until the end, or until Ctrl-C.

    Args:
        task: what is trained.
        session: where it computes, and what it records.
        write: writes a checkpoint to a path; used for the best weights so far at Ctrl-C.

    Raises:
        Interrupted: by Ctrl-C; the state and the best weights so far are on disk.
        UsageError: there is no run to resume, or it is a different one.
    """
    keep_freed_memory()  # each step allocates a gradient as large as the table, and frees it
    begun_with = fingerprint(
        {"the starting model": task.model},
        {"the training texts": task.train, "the dev texts": task.dev},
        task.recipe,
    )
    trainer = Trainer(task.model, task.train, task.dev, task.recipe, session.runtime())

    def train(stop: Callable[[], bool], save: Callable[[], None]) -> str | None:
        with _history(session, trainer) as watcher:
            if trainer.run(watcher, stop, save):
                return None
        learned = _learned(trainer)
        return f"interrupted in epoch {len(learned.epochs)} of {task.recipe.epochs}; " + _keep(
            task.place, learned, write
        )

    snapshots = Snapshots(task.place, begun_with, task.sources)
    carry_out(trainer, snapshots, train, session.watcher, resume=session.resume)
    return _learned(trainer)


def _learned(trainer: Trainer) -> Learned:
    assert trainer.best is not None, "epoch 0 is measured before the first step"
    return Learned(tuple(trainer.history), trainer.best, trainer.best_state)


def _keep(place: Path, learned: Learned, write: Callable[[Path, Learned], object]) -> str:
    """Write the best weights of an interrupted run; returns what to tell the user."""
    if learned.best.epoch == 0:
        return "no epoch is better than the start yet"
    kept = keep_best(place, lambda stage: write(stage, learned))
    best = learned.best
    return f"the best so far (epoch {best.epoch}, dev accuracy {best.dev_accuracy:.2%}) is {kept}"


@dataclass(frozen=True)
class Written:
    """What was measured of a written classifier.

    Attributes:
        dev_accuracy: share of dev texts whose label it predicts, 0 to 1.
        size: bytes of its weight files.
    """

    dev_accuracy: float
    size: int


def check_read_back(stage: Path, values: State, found: State) -> None:
    """Compare a model that was read from what was written with the weights that it should hold.

    Args:
        stage: what was written.
        values: these weights by their names in the files.
        found: those of the model, by the same names.

    Raises:
        EmbcompressError: a value differs.
    """
    with open_checkpoint(stage) as checkpoint:
        types = {name: info.dtype.torch for name, info in checkpoint.tensors.items() if info.dtype}
    for name, value in values.items():
        here = found.get(name)
        if here is None:
            continue  # integers of a right factor; the factor itself is compared in floats
        stored = value.to(getattr(torch, types[name])) if name in types else value
        if not torch.equal(here, stored.to(here.dtype)):
            raise EmbcompressError(
                f"{stage.name}: {name} does not read back as it was written; nothing was kept",
                remedy=BAD_DISK,
            )


def check_written(stage: Path, values: State, dev: Dataset, session: Session, factory: str | None) -> Written:
    """Open a written classifier, compare its weights with ``values``, and measure it on ``dev``.

    Raises:
        EmbcompressError: a value differs.
    """
    opened = open_classifier(stage, factory=factory)
    check_read_back(stage, values, opened.stored_state(opened.model.state_dict()))
    where = session.runtime()
    scores = scores_of(opened.model.to(where.device), dev, where)
    return Written(accuracy_of(scores, dev), opened.size)


def finish(session: Session, place: Path, epochs: tuple[Epoch, ...]) -> None:
    """Delete what was kept of the run, and draw its learning curves, once the output is published."""
    forget(place)
    if session.plot is not None:
        plot_history(epochs, session.plot)


class _Recorder(Watcher):
    """Writes each epoch to a file and passes everything on."""

    def __init__(self, watcher: Watcher, write: Callable[[Epoch], None]) -> None:
        self._watcher, self._write = watcher, write

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        self._watcher.step(epoch, done, total, loss, learning_rate)

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        self._write(epoch)
        self._watcher.epoch(epoch, best=best)

    def warn(self, text: str) -> None:
        self._watcher.warn(text)


@contextlib.contextmanager
def _history(session: Session, trainer: Trainer) -> Iterator[Watcher]:
    """A watcher that also writes the history file; epochs from before a resume are written again first."""
    if session.history is None:
        yield session.watcher
        return
    with session.history.open("w", encoding="utf-8", buffering=1) as file:

        def write(epoch: Epoch) -> None:
            file.write(json.dumps(epoch.to_dict()) + "\n")

        for epoch in trainer.history:
            write(epoch)
        yield _Recorder(session.watcher, write)
