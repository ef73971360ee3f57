"""CALR, the Cyclically Annealed Learning Rate, as a scheduler that any PyTorch program can use.

CALR was introduced by Acharya, Goel, Metallinou & Dhillon 2019 (arXiv:1811.00641); this is the version of
the code they released. The learning rate moves in triangles (Smith 2017, arXiv:1506.01186, section
3.1) between a lower and an upper bound. The upper bound decays from epoch to epoch until it would
meet the lower one, and then restarts from the top. The steps, with step size S and the given
rate UB0::

    UB = UB0;  LB = UB0·decay^window
    at the start of each epoch but the first, every epochs_per_decay epochs:
        UB = UB·decay
        if UB <= LB:  UB = UB0;  LB = UB0·decay^5
    at iteration n = 1, 2, …, never set back:
        c = n mod 2S;  lr = LB + (UB - LB)·c/S  if c < S,  else  UB - (UB - LB)·(c - S)/S
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CALR(LRScheduler):
    """Triangles under an upper bound that decays in windows and restarts; call ``step`` after each batch.

    In exact arithmetic ``UB <= LB`` holds after as many decays as the exponent in LB says. This class
    counts decays and never compares the bounds: as floats they miss each other for many settings (such
    as UB0 = 1 and decay = 0.1), and the window would last an epoch longer. So the first window lasts
    ``window`` decays over LB = UB0·decay^window, and every later one ``restart_window`` decays over
    LB = UB0·decay^restart_window. The rate is a closed form of ``last_epoch``: no error accumulates,
    and a resumed run has the same rates as an uninterrupted one.

    Args:
        optimizer: optimizer whose learning rates are set; its own rates are not used.
        max_lr: the upper bound at the start of a window, UB0; one for all parameter groups or one each.
        iterations_per_epoch: calls of ``step`` in an epoch.
        step_size: iterations from the lower bound to the upper, S, which is half a cycle; need not be an
            integer. None means half an epoch, but at least 1, so that an epoch is one cycle however short
            the run; the published experiments used 1000.
        decay: factor of the upper bound. With 1 both bounds are ``max_lr``, and the rate is constant. The
            authors' 0.1 leaves little to be learned after the first epoch of a window; ``finetune`` takes
            0.5, which lost less on held-out texts (see examples/paper/RESULTS.md).
        window: decays in the first window; the authors used 5 for training and 3 for retraining, and so do
            ``train`` and ``finetune``.
        restart_window: decays in each later window; the authors always used 5.
        epochs_per_decay: epochs between two decays.
        last_epoch: index of the last finished iteration, counted from 0, to continue a run without
            a state dict; -1 for a new run.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        iterations_per_epoch: int,
        step_size: float | None = None,
        decay: float = 0.1,
        window: int = 5,
        restart_window: int = 5,
        epochs_per_decay: int = 1,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.max_lrs = _one_per_group(max_lr, len(optimizer.param_groups))
        self.iterations_per_epoch = _count("iterations_per_epoch", iterations_per_epoch)
        self.step_size = (
            max(self.iterations_per_epoch / 2, 1.0)
            if step_size is None
            else _positive("step_size", step_size)
        )
        self.decay = _positive("decay", decay, limit=1.0)
        self.window = _count("window", window)
        self.restart_window = _count("restart_window", restart_window)
        self.epochs_per_decay = _count("epochs_per_decay", epochs_per_decay)
        for group in optimizer.param_groups:  # torch requires it of the optimizer of a continued run
            group.setdefault("initial_lr", group["lr"])
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the next optimizer step, one for each parameter group."""
        lower, upper = self._bounds(self.last_epoch // self.iterations_per_epoch)
        return [
            triangular(self.last_epoch + 1, self.step_size, max_lr * lower, max_lr * upper)
            for max_lr in self.max_lrs
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state dict, and give the optimizer the rates of its next step.

        Other schedulers leave the rates to the optimizer's own state. But making a scheduler sets the rates
        of the first iteration, so they are lost if the optimizer was loaded before.
        """
        super().load_state_dict(state_dict)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _bounds(self, epoch: int) -> tuple[float, float]:
        """(LB, UB) of an epoch counted from 0, as fractions of UB0."""
        decays = epoch // self.epochs_per_decay
        if decays < self.window:
            return self.decay**self.window, self.decay**decays
        since_restart = (decays - self.window) % self.restart_window
        return self.decay**self.restart_window, self.decay**since_restart


def triangular(iteration: int, step_size: float, lower: float, upper: float) -> float:
    """Smith's triangular policy (arXiv:1506.01186, section 3.1): ``lower`` at 0, ``upper`` at S."""
    position = iteration % (2 * step_size)
    # Divide first: the rounded quotients are at most 1, so no rate falls below 0.
    if position < step_size:
        return lower + (upper - lower) * (position / step_size)
    return upper - (upper - lower) * ((position - step_size) / step_size)


def _one_per_group(max_lr: float | Sequence[float], groups: int) -> list[float]:
    """``max_lr`` as one rate per parameter group."""
    rates = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * groups
    if len(rates) != groups:
        raise ValueError(
            f"max_lr has {len(rates)} values for {groups} parameter groups, give one for each or a single one"
        )
    return [_positive("max_lr", rate) for rate in rates]


def _positive(name: str, value: float, limit: float = math.inf) -> float:
    """``value`` as a plain float, so that a state dict can hold it whatever type the caller used."""
    number = float(value)
    if not (0 < number <= limit and math.isfinite(number)):
        allowed = "a finite number above 0" if limit == math.inf else f"a number in (0, {limit:g}]"
        raise ValueError(f"{name} is {value}, choose {allowed}")
    return number


def _count(name: str, value: int) -> int:
    """``value`` as a plain int of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} is {value}, choose a whole number of at least 1")
    return number
