"""What all workflows that learn share: texts, the run with its snapshots and history, the output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.staging import staged
from embcompress.classifiers.record import ClassifierRecord
from embcompress.classifiers.storage import open_classifier
from embcompress.data.labelled import LabelledTexts, read_csv, split_off
from embcompress.errors import EmbcompressError, Interrupted, UsageError
from embcompress.reports.plots import check_plot, plot_history
from embcompress.training.devices import Runtime, runtime
from embcompress.training.interrupts import Interrupts
from embcompress.training.loop import State, Trainer
from embcompress.training.records import Epoch, Recipe, Watcher
from embcompress.training.scoring import Dataset, scores_of
from embcompress.training.snapshots import Snapshots, fingerprint, snapshot_path
from embcompress.workflows.common import keep_freed_memory


@dataclass(frozen=True)
class Texts:
    """Where labelled texts are, and how to read them.

    Attributes:
        train: CSV file to learn from.
        dev: CSV file that chooses the epoch; None sets a part of ``train`` aside, by the recipe's seed.
        dev_share: that part, between 0 and 1.
        text_column: header of the texts.
        label_column: header of the labels.
        delimiter: between fields; None is a tab in .tsv files and a comma in all others.
    """

    train: Path
    dev: Path | None = None
    dev_share: float = 0.1
    text_column: str = "text"
    label_column: str = "label"
    delimiter: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (self.train,) if self.dev is None else (self.train, self.dev)

    def read(self, seed: int, labels: tuple[str, ...] | None = None) -> tuple[LabelledTexts, LabelledTexts]:
        """The training and the dev texts.

        Args:
            seed: of the split where there is no dev file.
            labels: those that may occur in either; None takes what the training texts hold.
        """
        train = self.read_file(self.train, labels)
        if self.dev is None:
            if not 0 < self.dev_share < 1:
                raise UsageError(f"dev share {self.dev_share}", remedy="give a fraction between 0 and 1")
            return split_off(train, self.dev_share, seed)
        return train, self.read_file(self.dev, labels or tuple(sorted({*train.labels})))

    def read_file(self, path: Path, labels: tuple[str, ...] | None) -> LabelledTexts:
        """One file with these columns; its labels are among ``labels`` unless that is None."""
        return read_csv(
            path,
            text_column=self.text_column,
            label_column=self.label_column,
            delimiter=self.delimiter,
            known_labels=labels,
        )


@dataclass(frozen=True)
class Session:
    """Where and how a run is carried out, none of which changes its outcome on one machine.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        mixed: mixed precision; None decides by the device.
        resume: go on with an interrupted run.
        force: replace an existing output, or what is left of an interrupted run.
        history: file that gets one JSON line an epoch.
        plot: picture of the learning curves (.png, .svg, .pdf); needs ``embcompress[plot]``.
        watcher: is told how training goes.
    """

    device: str = "auto"
    mixed: bool | None = None
    resume: bool = False
    force: bool = False
    history: Path | None = None
    plot: Path | None = None
    watcher: Watcher = field(default_factory=Watcher)

    def runtime(self) -> Runtime:
        """The device and its precision."""
        return runtime(self.device, mixed=self.mixed)

    def check(self, place: Path) -> None:
        """Refuse what would overwrite something, before any work is done.

        Raises:
            UsageError: an unfinished run or a file of the user's is in the way.
        """
        if self.plot is not None:
            check_plot(self.plot)
        if self.resume or self.force:
            return
        if snapshot_path(place).exists():
            raise UsageError(
                f"{place}: an unfinished run waits in {snapshot_path(place).name}",
                remedy="go on with --resume, or begin anew with --force",
            )
        for path in (self.history, self.plot):
            if path is not None and path.exists():
                raise UsageError(f"{path}: exists already", remedy="pass --force to replace it")


USUAL_SESSION: Final = Session()
"""Any device, nothing recorded."""


def dataset(record: ClassifierRecord, data: LabelledTexts) -> Dataset:
    """Texts as a classifier reads them."""
    number = {label: i for i, label in enumerate(record.labels)}
    labels = np.fromiter((number[label] for label in data.labels), np.int64, len(data.labels))
    encoded = record.tokenizer.encode(data.texts, record.max_length)
    return Dataset(encoded, labels, record.tokenizer.padding)


def learn(
    model: nn.Module,
    train: Dataset,
    dev: Dataset,
    recipe: Recipe,
    session: Session,
    place: Path,
    write: Callable[[Path, State], None],
) -> tuple[tuple[Epoch, ...], Epoch, State]:
    """Train ``model`` until the end, or until Ctrl-C.

    Args:
        model: trained in place.
        train: texts to learn from.
        dev: texts that choose the epoch.
        recipe: how to train.
        session: where.
        place: the output of the run; its state is kept beside it.
        write: writes a checkpoint with the given weights to a path, for what is kept at Ctrl-C.

    Returns:
        All epochs, the best of them, and its weights.

    Raises:
        Interrupted: by Ctrl-C; the state and the best weights so far are on disk.
        UsageError: the run to resume is not there, or was another one.
    """
    keep_freed_memory()  # each step makes a gradient as large as the table, and gives it back
    snapshots = Snapshots(place, fingerprint(model, train, dev, recipe))
    trainer = Trainer(model, train, dev, recipe, session.runtime())
    if session.resume:
        snapshots.restore(trainer)
    # Entered before the first step: what comes before changes nothing that could be lost.
    with Interrupts() as interrupts, _history(session, trainer) as watcher:
        finished = trainer.run(watcher, interrupts, lambda: snapshots.save_now_and_then(trainer))
        best = trainer.best
        assert best is not None, "epoch 0 was measured before the first step"
        if not finished:
            snapshots.save(trainer)
            kept = _interrupted(place)
            with staged(kept, force=True) as stage:
                write(stage, trainer.best_state)
            raise Interrupted(
                f"interrupted in epoch {len(trainer.history)} of {recipe.epochs}; the best so far "
                f"(epoch {best.epoch}, dev accuracy {best.dev_accuracy:.2%}) is {kept}",
                remedy="go on with the same command and --resume",
            )
    return tuple(trainer.history), best, trainer.best_state


@dataclass(frozen=True)
class Written:
    """What a written classifier was measured to be.

    Attributes:
        dev_accuracy: share of dev texts whose label it predicts.
        size: bytes of its weight files.
    """

    dev_accuracy: float
    size: int


def check_written(stage: Path, state: State, dev: Dataset, session: Session, factory: str | None) -> Written:
    """Open what was written, compare it with the weights that it should hold, and measure it.

    Raises:
        EmbcompressError: a value is another.
    """
    opened = open_classifier(stage, factory=factory)
    with open_checkpoint(stage) as checkpoint:
        types = {name: info.dtype.torch for name, info in checkpoint.tensors.items() if info.dtype}
    for name, value in opened.model.state_dict().items():
        stored = state[name].to(getattr(torch, types[name])) if name in types else state[name]
        if not torch.equal(value, stored.to(value.dtype)):
            raise EmbcompressError(
                f"{stage.name}: {name} does not read back as it was, so nothing was kept",
                remedy="run again, and look after the disk if it comes back",
            )
    where = session.runtime()
    scores = scores_of(opened.model.to(where.device), dev, where)
    accuracy = (scores.argmax(dim=1) == torch.from_numpy(dev.labels)).double().mean()
    return Written(float(accuracy), opened.size)


def finish(session: Session, place: Path, epochs: tuple[Epoch, ...]) -> None:
    """Draw the curves and take away what an interrupted run had left, once the output is published."""
    snapshot_path(place).unlink(missing_ok=True)
    if session.resume:
        _interrupted(place).unlink(missing_ok=True)
    if session.plot is not None:
        plot_history(epochs, session.plot)


def _interrupted(place: Path) -> Path:
    """Where the best weights of an interrupted run stand, until it is resumed to its end."""
    return place.with_name(f"{place.stem}.interrupted{place.suffix}")


class _Recorder(Watcher):
    """Writes each epoch to a file and passes everything on."""

    def __init__(self, watcher: Watcher, write: Callable[[Epoch], None]) -> None:
        self._watcher, self._write = watcher, write

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        self._watcher.step(epoch, done, total, loss, learning_rate)

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        self._write(epoch)
        self._watcher.epoch(epoch, best=best)


@contextlib.contextmanager
def _history(session: Session, trainer: Trainer) -> Iterator[Watcher]:
    """A watcher that also writes the history; what a resumed run had done is written again first."""
    if session.history is None:
        yield session.watcher
        return
    with session.history.open("w", encoding="utf-8", buffering=1) as file:

        def write(epoch: Epoch) -> None:
            file.write(json.dumps(asdict(epoch)) + "\n")

        for epoch in trainer.history:
            write(epoch)
        yield _Recorder(session.watcher, write)
