"""The training loop: shuffled batches, one optimizer step each; the best epoch on dev is kept.

A run can stop after any step and resume to bitwise the same model (on a CPU). Its state holds weights,
moments, schedule, random state and position; the batches of an epoch follow from the seed and the
epoch's number.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from embcompress.data.encoded import Ids, shuffled_batches
from embcompress.errors import UsageError
from embcompress.nn import FactorizedPair
from embcompress.training.devices import Runtime
from embcompress.training.optimizers import optimizer_for
from embcompress.training.records import Epoch, Recipe, Watcher
from embcompress.training.resumed import (
    check_count,
    check_keys,
    check_number,
    check_optimizer,
    check_random,
    check_settings,
    check_tensors,
    records_from,
)
from embcompress.training.schedules import Run, schedule_for
from embcompress.training.scoring import Dataset, accuracy_of, scores_of, tensors_of

State = dict[str, Tensor]

_MOVING = ("last_epoch", "_step_count", "_last_lr")
"""What changes in the state of a schedule."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse unknown names and invalid settings before anything is read.

    Raises:
        UsageError: with the choices.
    """
    _optimizer_and_schedule(recipe, [nn.Parameter(torch.zeros(1))], 1)


def _optimizer_and_schedule(
    recipe: Recipe, trained: list[nn.Parameter], steps: int
) -> tuple[Optimizer, LRScheduler]:
    optimizer = optimizer_for(recipe.optimizer)
    highest = optimizer.learning_rate if recipe.learning_rate is None else recipe.learning_rate
    built = optimizer.build(trained, highest, recipe.weight_decay)
    run = Run(highest, steps, recipe.epochs)
    return built, schedule_for(recipe.schedule).build(built, run, recipe.schedule_options)


class Trainer:
    """One training run.

    Args:
        model: model to train, in place; it is moved to the runtime's device.
        train: training texts.
        dev: texts that choose the epoch.
        recipe: settings of the training.
        runtime: device and precision.
    """

    def __init__(
        self, model: nn.Module, train: Dataset, dev: Dataset, recipe: Recipe, runtime: Runtime
    ) -> None:
        self._model = model.to(runtime.device)
        self._train, self._dev = train, dev
        self._recipe, self._runtime = recipe, runtime
        self._steps = -(-len(train) // recipe.batch_size)
        if recipe.only_factors:
            _freeze_all_but_factors(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        self._trained = trained
        self._optimizer, self._schedule = _optimizer_and_schedule(recipe, trained, self._steps)
        self._random: Tensor | None = None
        self._step, self._rate = 0, 0.0
        # Of the current epoch:
        self._loss_sum, self._seen, self._seconds, self._highest = 0.0, 0, 0.0, 0.0
        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_state: State = {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if it does not stop early."""
        return self._steps * self._recipe.epochs

    def run(self, watcher: Watcher, stop: Callable[[], bool], save: Callable[[], None]) -> bool:
        """Train to the end, or until ``stop`` returns true after a step.

        Args:
            watcher: is notified of steps and epochs.
            stop: called after each step.
            save: called after each epoch, when :meth:`state_dict` may be saved.

        Returns:
            Whether the run is complete; the best weights are then ``best_state``.
        """
        with self._own_random_numbers():
            if not self.history:
                self._close_epoch(watcher)
            while len(self.history) <= self._recipe.epochs and not self._patience_is_out():
                epoch = len(self.history)
                for batch in self._batches(epoch)[self._step - (epoch - 1) * self._steps :]:
                    clock = time.monotonic()
                    self._learn(batch)
                    self._seconds += time.monotonic() - clock
                    self._seen += len(batch)
                    mean = self._loss_sum / self._seen
                    watcher.step(epoch, self._step, self.total_steps, mean, self._rate)
                    if stop():
                        return False
                self._close_epoch(watcher)
                self._random = torch.get_rng_state()
                save()
        return True

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Use a random generator of our own, which resumes where it stopped; the caller's is unchanged."""
        device = self._runtime.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(self._recipe.seed)
            if device.type == "cuda":
                torch.cuda.manual_seed(self._recipe.seed)
            if self._random is not None:
                torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()

    def _batches(self, epoch: int) -> list[Ids]:
        rng = np.random.default_rng((self._recipe.seed, epoch))
        return shuffled_batches(self._train.texts.lengths, self._recipe.batch_size, rng)

    def _learn(self, rows: Ids) -> None:
        """Make one optimizer step on the texts ``rows``."""
        self._model.train()
        tokens, lengths, labels = tensors_of(self._train, rows, self._runtime.device)
        with self._runtime.precision():
            loss = F.cross_entropy(self._model(tokens, lengths).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._recipe.clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self._recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._rate = float(self._schedule.get_last_lr()[0])
        self._highest = max(self._highest, self._rate)
        self._schedule.step()
        self._loss_sum += loss.item() * len(rows)
        self._step += 1

    def _close_epoch(self, watcher: Watcher) -> None:
        """Measure on dev, keep the weights if they are the best so far, and reset the sums."""
        clock = time.monotonic()
        scores = scores_of(self._model, self._dev, self._runtime)
        epoch = Epoch(
            epoch=len(self.history),
            loss=self._loss_sum / self._seen if self._seen else None,
            dev_loss=float(F.cross_entropy(scores, torch.from_numpy(self._dev.labels))),
            dev_accuracy=accuracy_of(scores, self._dev),
            learning_rate=self._highest if self._seen else None,
            seconds=self._seconds + time.monotonic() - clock,
        )
        self._loss_sum, self._seen, self._seconds, self._highest = 0.0, 0, 0.0, 0.0
        self.history.append(epoch)
        best = self.best is None or epoch.beats(self.best)
        if best:
            self.best = epoch
            self.best_state = _copied(self._model.state_dict())
        watcher.epoch(epoch, best=best)

    def _patience_is_out(self) -> bool:
        patience = self._recipe.patience
        return (
            patience is not None and self.best is not None and len(self.history) > self.best.epoch + patience
        )

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` can resume the run."""
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": self._random,
            "step": self._step,
            "rate": self._rate,
            "loss_sum": self._loss_sum,
            "seen": self._seen,
            "seconds": self._seconds,
            "highest": self._highest,
            "history": [asdict(epoch) for epoch in self.history],
            "best": None if self.best is None else self.best.epoch,
            "best_state": self.best_state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the state of another trainer with the same arguments.

        Raises:
            ValueError: it is not such a state; nothing was changed.
        """
        self._check(state)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._random = state["random"]
        self._step, self._rate = state["step"], state["rate"]
        self._loss_sum, self._seen = state["loss_sum"], state["seen"]
        self._seconds, self._highest = state["seconds"], state["highest"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = None if state["best"] is None else self.history[state["best"]]
        self.best_state = state["best_state"]

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse what cannot be the state of a run with the same arguments: its file may be a stranger's.

        Raises:
            ValueError: with the entry.
        """
        check_keys(state, self.state_dict().keys(), "the state")
        history = records_from(Epoch, state["history"], self._recipe.epochs + 1, "history")
        step = check_count(state["step"], 0, self.total_steps, "step")
        if history:
            check_count(step, (len(history) - 1) * self._steps, len(history) * self._steps, "step")
            check_count(state["best"], 0, len(history) - 1, "best")
        elif step or state["best"] is not None:
            raise ValueError("there are steps without an epoch")
        check_count(state["seen"], 0, len(self._train), "seen")
        for name in ("rate", "loss_sum", "seconds", "highest"):
            check_number(state[name], name)
        check_random(state["random"])
        model = self._model.state_dict()
        check_tensors(state["model"], model, "model")
        check_tensors(state["best_state"], model if history else {}, "best_state")
        parameter = nn.Parameter(torch.zeros(1))
        stepped, _ = _optimizer_and_schedule(self._recipe, [parameter], 1)
        parameter.grad = torch.ones(1)
        stepped.step()
        check_optimizer(state["optimizer"], self._optimizer, stepped)
        own = self._schedule.state_dict()
        schedule = check_settings(state["schedule"], own, _MOVING, "schedule")
        check_count(schedule["last_epoch"], 0, self.total_steps, "schedule: last_epoch")
        check_count(schedule["_step_count"], 0, self.total_steps + 1, "schedule: _step_count")
        rates = schedule["_last_lr"]
        if not isinstance(rates, list) or len(rates) != len(self._optimizer.param_groups):
            raise ValueError("schedule: _last_lr is no rate a group")
        for rate in rates:
            check_number(rate, "schedule: _last_lr")


def _copied(state: Mapping[str, Tensor]) -> State:
    """A copy on the CPU that later steps do not change; tensors that share memory still do."""
    copies: dict[object, Tensor] = {}
    copied: State = {}
    for name, value in state.items():
        # Compare shapes too: a view may begin where its tensor does. Empty tensors have no address.
        memory = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        if memory not in copies:
            copies[memory] = value.detach().to("cpu", copy=True)
        copied[name] = copies[memory]
    return copied


def _freeze_all_but_factors(model: nn.Module) -> None:
    """Freeze everything but the floats of factors.

    Raises:
        UsageError: there are none.
    """
    model.requires_grad_(False)
    pairs = [module for module in model.modules() if isinstance(module, FactorizedPair)]
    for pair in pairs:
        pair.lookup.requires_grad_(True)
        if pair.projection is not None:
            pair.projection.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        what = "only integers, which stay as they are" if pairs else "none"
        raise UsageError(
            f"only the factors are to be trained, and the model has {what}",
            remedy="train all of it" if pairs else "factorize it first, or train all of it",
        )
