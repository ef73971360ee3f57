"""The registry of learning-rate schedules: CALR, and PyTorch's own for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, CyclicLR, LinearLR, LRScheduler

from embcompress.errors import UsageError, check_choice
from embcompress.training.calr import CALR

Options = Mapping[str, float]
"""Settings that the user gave, by name; missing ones have their defaults."""

NO_OPTIONS: Final[Options] = MappingProxyType({})


@dataclass(frozen=True)
class Run:
    """What a schedule needs to know about a training run.

    Attributes:
        max_lr: the highest learning rate.
        iterations_per_epoch: optimizer steps per epoch.
        epochs: number of epochs.
    """

    max_lr: float
    iterations_per_epoch: int
    epochs: int

    def __post_init__(self) -> None:
        if not (self.max_lr > 0 and math.isfinite(self.max_lr)):
            raise UsageError(f"learning rate {self.max_lr}", remedy="choose a finite number above 0")
        for name in ("iterations_per_epoch", "epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="give at least 1")

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.iterations_per_epoch


@dataclass(frozen=True)
class Schedule:
    """A registry entry: how the learning rate moves during a run.

    Attributes:
        name: registry name.
        description: one line for help texts.
        options: names of its settings, each with one line for help texts.
        make: makes the scheduler from checked options; the optimizer's own learning rate is ignored.
    """

    name: str
    description: str
    options: Mapping[str, str]
    make: Callable[[Optimizer, Run, Options], LRScheduler]

    def build(self, optimizer: Optimizer, run: Run, options: Options = NO_OPTIONS) -> LRScheduler:
        """Make a scheduler whose ``step`` is called after each optimizer step of ``run``.

        To resume, build first, then load the state of the optimizer and of the scheduler: making a
        PyTorch scheduler sets the first learning rate, and its next rate depends on the last.

        Raises:
            UsageError: an option is unknown to this schedule or outside its range.
        """
        for name in options:
            if name not in self.options:
                remedy = f"choose from {', '.join(self.options)}" if self.options else "it has no options"
                raise UsageError(f"schedule {self.name} has no option {name!r}", remedy=remedy)
        try:
            return self.make(optimizer, run, options)
        except ValueError as error:  # from CALR, with the value and what is allowed
            raise UsageError(f"schedule {self.name}: {error}") from error


def _calr(optimizer: Optimizer, run: Run, options: Options) -> LRScheduler:
    # A command line may give every number as a float; CALR accepts its counts as integers only.
    exact = {name: int(value) if float(value).is_integer() else value for name, value in options.items()}
    return CALR(optimizer, run.max_lr, run.iterations_per_epoch, **exact)  # type: ignore[arg-type]


def _clr(optimizer: Optimizer, run: Run, options: Options) -> LRScheduler:
    # Smith 2017 (arXiv:1506.01186): the base is 1/3 or 1/4 of the maximum (section 3.3), a step is 2 to 10
    # epochs, and training should end with a cycle (section 3.2). Retraining lasts a few epochs only, so
    # that it ends with a cycle, a step is half an epoch here, as in CALR.
    ratio = options.get("base_ratio", 0.25)
    step_size = options.get("step_size", max(run.iterations_per_epoch / 2, 1.0))
    if not 0 <= ratio <= 1:
        raise ValueError(f"base_ratio is {ratio}, choose a number in [0, 1]")
    if not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size is {step_size}, choose a finite number above 0")
    base = run.max_lr * ratio
    return CyclicLR(
        _starting_at(base, optimizer),
        base_lr=base,
        max_lr=run.max_lr,
        step_size_up=step_size,  # type: ignore[arg-type]  # annotated int, used as float
        cycle_momentum=False,  # not every optimizer has momentum
    )


def _cosine(optimizer: Optimizer, run: Run, _: Options) -> LRScheduler:
    return CosineAnnealingLR(_starting_at(run.max_lr, optimizer), T_max=run.iterations)


def _linear(optimizer: Optimizer, run: Run, _: Options) -> LRScheduler:
    started = _starting_at(run.max_lr, optimizer)
    return LinearLR(started, start_factor=1.0, end_factor=0.0, total_iters=run.iterations)


def _constant(optimizer: Optimizer, run: Run, _: Options) -> LRScheduler:
    return ConstantLR(_starting_at(run.max_lr, optimizer), factor=1.0)


def _starting_at(rate: float, optimizer: Optimizer) -> Optimizer:
    """Set ``rate`` as the one from which PyTorch's schedulers start.

    They use ``initial_lr`` if there is one, and an earlier schedule leaves its own behind.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    return optimizer


SCHEDULES: Mapping[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule(
            "calr",
            "triangles whose upper bound decays each epoch, and restarts (Acharya et al. 2019)",
            {
                "decay": "factor of the upper bound (0.1)",
                "window": "decays before the first restart (5)",
                "restart_window": "decays between later restarts (5)",
                "epochs_per_decay": "epochs between two decays (1)",
                "step_size": "iterations of half a triangle (half an epoch)",
            },
            _calr,
        ),
        Schedule(
            "clr",
            "triangles between two fixed bounds (Smith 2017)",
            {
                "step_size": "iterations of half a triangle (half an epoch)",
                "base_ratio": "the lower bound as a fraction of the upper (0.25)",
            },
            _clr,
        ),
        Schedule("cosine", "half a cosine from the top to 0 over the run (SGDR, 2017)", {}, _cosine),
        Schedule("linear", "a straight line from the top to 0 over the run", {}, _linear),
        Schedule("constant", "always the same", {}, _constant),
    )
}
"""Every schedule by name, as ``choices.SCHEDULES`` lists them; contract tests run over it."""


def schedule_for(name: str) -> Schedule:
    """The schedule registered under ``name``.

    Raises:
        UsageError: there is no such schedule.
    """
    check_choice("schedule", name, SCHEDULES)
    return SCHEDULES[name]
