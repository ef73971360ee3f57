"""Small labelled texts and classifiers for tests, and a training run that can be watched and stopped."""

from __future__ import annotations

import contextlib
import copy
import io
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import contents
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from embcompress.classifiers import CLASSIFIERS
from embcompress.classifiers.base import Architecture
from embcompress.classifiers.building import build
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.record import ClassifierRecord
from embcompress.classifiers.storage import save_new
from embcompress.data.encoded import Encoded
from embcompress.data.tokenizing import Words
from embcompress.errors import EmbcompressError, InputError, UsageError
from embcompress.loading.swapping import swap
from embcompress.training.devices import Runtime
from embcompress.training.loop import Trainer
from embcompress.training.records import Epoch, Recipe, Watcher
from embcompress.training.scoring import Dataset

V, D, LABELS = 30, 4, ("no", "so", "yes")
CPU = Runtime(torch.device("cpu"))
WIDTHS = {"dan": (12, 8), "lstm": (5,)}
"""Small hidden layers; a classifier that joins the registry gets its own until it has some here."""


class Strike(Watcher):
    """Presses Ctrl-C after a step."""

    def __init__(self, at):
        self.at = at

    def step(self, *arguments):
        if arguments[1] == self.at:
            signal.raise_signal(signal.SIGINT)


def words(count: int = V) -> Words:
    return Words(("<pad>", "<unk>", *(f"w{i}" for i in range(count - 2))))


def record(name: str = "dan", *, tokens: int = V, **changes: Any) -> ClassifierRecord:
    """The record of a small classifier without dropout; ``changes`` are made to its architecture."""
    hidden = WIDTHS.get(name, CLASSIFIERS[name].hidden)
    architecture = Architecture(name, **{"dimension": D, "hidden": hidden, "dropout": 0.0, **changes})
    return ClassifierRecord(architecture, words(tokens), LABELS, 9)


def fresh(kind: ClassifierRecord, seed: int = 0) -> nn.Module:
    """The module of a record with random weights that follow from ``seed``."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build(kind)


def factorized(kind: ClassifierRecord, seed: int = 0) -> nn.Module:
    """A fresh classifier whose table is held as factors of rank 2."""
    model = fresh(kind, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        swap(model, "embedding.weight", 2)
    return model


def dataset(rows: Sequence[Sequence[int]], labels: Sequence[int], padding: int = 0) -> Dataset:
    return Dataset(Encoded.of([list(row) for row in rows]), np.array(labels, np.int64), padding)


def random_texts(count: int, seed: int, *, longest: int = 8) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, V, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


def separable(count: int, seed: int) -> Dataset:
    """Noise with some tokens that only texts of one label have: 3 to 5, 6 to 8 or 9 to 11."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    rows = [[*rng.integers(12, V, 3), *rng.integers(3, 6, 2) + 3 * label] for label in labels]
    return dataset([rng.permutation(row)[: 4 + row[0] % 2].tolist() for row in rows], labels.tolist())


def rows_of(data: Dataset) -> list[list[int]]:
    """The ids of each text."""
    ids = iter(data.texts.tokens.tolist())
    return [[next(ids) for _ in range(length)] for length in data.texts.lengths]


def side_by_side(rows: Sequence[Sequence[int]], padding: int = 0, more: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and lengths as a classifier takes them, filled up one by one."""
    widest = max(map(len, rows)) + more
    filled = [[*row, *[padding] * (widest - len(row))] for row in rows]
    return torch.tensor(filled), torch.tensor([len(row) for row in rows])


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def through_a_file(state: Any) -> Any:
    """What is left of a state after saving, and loading data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


TEXTS = [*random_texts(9, 0), [7], [3, 0, 0, 5]]  # the last holds the padding id itself


@torch.no_grad()
def scores(model: nn.Module, rows: Sequence[Sequence[int]] = TEXTS, **how: Any) -> Tensor:
    """What a classifier makes of texts side by side."""
    return model.eval()(*side_by_side(rows, **how))


def saved(
    folder: Path, kind: ClassifierRecord, suffix: str = ".pt", *, seed: int = 0, name: str = "model"
) -> tuple[Path, nn.Module]:
    """A file with fresh weights, and the module they are from."""
    model, path = fresh(kind, seed), folder / f"{name}{suffix}"
    save_new(path, model.state_dict(), kind)
    return path, model


def low_rank(model: nn.Module, rank: int) -> nn.Module:
    """A copy with the best table of that rank, by torch's own SVD."""
    other = copy.deepcopy(model)
    u, s, vh = torch.linalg.svd(other.embedding.weight.detach().double(), full_matrices=False)
    other.embedding.weight.data.copy_(u[:, :rank] * s[:rank] @ vh[:rank])
    return other


def refused(path: Path, kind: type[EmbcompressError], *says: str, **how: Any) -> None:
    """Opening ends in one line of ``kind`` that holds all of ``says``; nothing on disk changes."""
    before = contents(path.parent)
    with pytest.raises(EmbcompressError) as caught:
        open_classifier(path, **how)
    assert type(caught.value) is kind, caught.value
    assert caught.value.exit_code == {UsageError: 2, InputError: 3}[kind]
    assert caught.value.remedy
    line = str(caught.value)
    assert line.isprintable()
    for part in says:
        assert part in line
    assert contents(path.parent) == before


class Log(Watcher):
    """Remembers what it was told; calls ``then`` after each epoch."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.done, self.rates, self.steps = 0, [], []
        self.epochs: list[Epoch] = []
        self.best: list[bool] = []
        self._then = then

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        self.done = done
        self.rates.append(learning_rate)
        self.steps.append((epoch, done, total, loss))

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        self.epochs.append(epoch)
        self.best.append(best)
        self._then()


def run(trainer: Trainer, *, stop_after: int | None = None, log: Log | None = None) -> bool:
    """Train to the end, or as if Ctrl-C had come after step ``stop_after`` of the whole run."""
    log = log or Log()
    return trainer.run(log, lambda: log.done == stop_after, lambda: None)


def trained(
    model: nn.Module, train: Dataset, dev: Dataset, recipe: Recipe, log: Log | None = None
) -> Trainer:
    """A trainer that has come to its end."""
    trainer = Trainer(model, train, dev, recipe, CPU)
    assert run(trainer, log=log)
    return trainer


def timeless(history: Sequence[Epoch]) -> list[Epoch]:
    """The epochs without the seconds they took."""
    return [replace(epoch, seconds=0.0) for epoch in history]


TRAIN, DEV = separable(23, 0), separable(17, 1)
# 15 steps
RECIPE = Recipe(epochs=3, batch_size=5, optimizer="adam", learning_rate=0.1, schedule="calr", seed=1)
DAN = record("dan", dropout=0.3)
LSTM = record("lstm", dropout=0.3, hidden=(5, 5), bidirectional=True)


def trainer(start=0, make=lambda start: fresh(DAN, start), **settings):
    """One that has not begun; ``start`` decides its first weights."""
    return Trainer(make(start), TRAIN, DEV, replace(RECIPE, **settings), CPU)


def equal(one, other):
    """Whether two runs came to the same: history but for seconds, best and last weights to the bit."""
    return (
        timeless(one.history) == timeless(other.history)
        and one.best.epoch == other.best.epoch
        and same(one.best_state, other.best_state)
        and same(one.state_dict()["model"], other.state_dict()["model"])
    )


@dataclass(frozen=True)
class Step:
    """What an optimizer was about to do."""

    rate: float
    norm: float


@contextlib.contextmanager
def optimizer_steps() -> Iterator[list[Step]]:
    """Every step of any optimizer meanwhile, with the norm of all gradients it uses."""
    seen: list[Step] = []

    def note(optimizer: Optimizer, *_: object) -> None:
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        seen.append(Step(optimizer.param_groups[0]["lr"], norm))

    hook = register_optimizer_step_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


class Scripted(nn.Module):
    """Trains one number; on dev, its scores in epoch e are the margins ``script[e]``, one a text."""

    def __init__(self, script: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self._script = iter(script)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        if self.training:
            return torch.stack([self.number, -self.number]).expand(len(tokens), 2)
        margins = torch.tensor(next(self._script))
        return torch.stack([margins, torch.zeros_like(margins)], dim=1)


def dev_result(margins: Sequence[float]) -> tuple[float, float]:
    """Accuracy and loss of ``Scripted`` on texts of label 0."""
    losses = F.softplus(-torch.tensor(margins, dtype=torch.float64))
    return sum(m > 0 for m in margins) / len(margins), float(losses.mean())
