"""Train a compressed model to match its original, the teacher, on texts without labels.

The loss follows Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, equation 8) for the last layer: the
squared distance of hidden states, here over their variance. To it are added the distance 1 - cosine of
sentence vectors and, for language models, the divergence of the predicted tokens (Hinton et al. 2015,
arXiv:1503.02531, at temperature 1). Both models run without dropout, since the student is already trained.

Where only the first layers are trained, the states after them are compared instead, as in block
reconstruction (Li et al. 2021, BRECQ, arXiv:2102.05426). The layers above stay those of the teacher, so what
is learned from texts of one kind also holds for others, and steps take a fraction of the time. Tokens drawn
from the whole vocabulary take the place of some in the texts (see ``mixing``), for the same reason.

A run can stop after any step and resume to bitwise the same weights (on a CPU, and without a time limit):
only the order of the texts is random, and it follows from the seed and the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embcompress.data.encoded import Ids, shuffled_batches
from embcompress.data.shares import Shares
from embcompress.errors import UsageError
from embcompress.nn import FactorizedHead, FactorizedPair
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokens import Tokens
from embcompress.training.devices import Runtime
from embcompress.training.likeness import batches_within, differences, measure, most_tokens, state_errors
from embcompress.training.mixing import Mixture
from embcompress.training.recovery import Check, DistilRecipe, DistilWatcher
from embcompress.training.resumed import (
    check_count,
    check_keys,
    check_number,
    check_optimizer,
    check_tensors,
    records_from,
)

State = dict[str, Tensor]

_CHECKS = 5
"""Number of checks on the held-out texts during a run."""
_WARM_UP = 0.05
"""Fraction of the run in which the learning rate rises."""
_CLIP = 1.0
"""Largest norm of the gradient."""
_FIRST_SHARE = 1 / 6
"""Share of the layers that are the first ones."""
_HELD_OUT_SHARE, _LEAST_HELD_OUT, _MOST_HELD_OUT = 0.02, 32, 500


def held_out(count: int, seed: int) -> tuple[Ids, Ids]:
    """Indices of the training texts and of the held-out ones: 2 %, 32 to 500, but at most a fifth."""
    share = min(max(round(count * _HELD_OUT_SHARE), _LEAST_HELD_OUT), _MOST_HELD_OUT, count // 5)
    order = np.random.default_rng((seed, 0)).permutation(count)
    return np.sort(order[share:]), np.sort(order[:share])


def first_layers(student: Pretrained) -> tuple[nn.Module, ...]:
    """The layers that are trained where the first ones are: a sixth of all.

    Raises:
        UsageError: it is not known which modules of the model are its layers.
    """
    if not student.layers:
        raise UsageError(
            f"{student.path}: which of its modules are layers is not known", remedy="choose --train all"
        )
    return student.layers[: max(1, round(len(student.layers) * _FIRST_SHARE))]


def choose_trained(student: Pretrained, what: str) -> State:
    """Freeze everything but ``what``; return the trained parameters by name, tied ones under every name.

    Raises:
        UsageError: the model has no such parameters.
    """
    model = student.model
    if what == "first":
        for layer in student.layers[len(first_layers(student)) :]:
            layer.requires_grad_(False)
    elif what != "all":
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, FactorizedPair) or (what == "norms" and _is_norm(module)):
                module.requires_grad_(True)
        for module in model.modules():  # the bias of a head is not part of the table
            if isinstance(module, FactorizedHead) and module.bias is not None:
                module.bias.requires_grad_(False)
    found = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    if not found:
        raise UsageError(
            "only the factors are to be trained, and there are none: integers stay as they are, and factors "
            "of a native form are layers like others",
            remedy="choose --train norms or --train all",
        )
    return dict(found)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: torch's LayerNorm, or one of the many classes of transformers."""
    return type(module).__name__.endswith(("LayerNorm", "RMSNorm")) or isinstance(module, nn.LayerNorm)


@dataclass(frozen=True)
class Distilled:
    """The result of a run.

    Attributes:
        checks: all checks; the first is before training, the last of an interrupted run is where it stopped.
        best: the check whose weights are kept.
        state: the trained parameters by name, as they were at that check.
        steps: optimizer steps.
    """

    checks: tuple[Check, ...]
    best: Check
    state: State
    steps: int

    @property
    def changed(self) -> bool:
        """Whether training improved anything."""
        return self.best is not self.checks[0]


class Distiller:
    """One distillation run.

    Args:
        student: model to train, in place; it is moved to the runtime's device, as is the teacher.
        teacher: the original.
        train: training texts.
        held: held-out texts that choose the best weights.
        recipe: settings of the training, settled.
        runtime: device and precision.
        shares: how often each token is drawn that is mixed into the texts (V), relative to the others; None
            for all alike.
    """

    def __init__(
        self,
        student: Pretrained,
        teacher: Pretrained,
        train: Tokens,
        held: Tokens,
        recipe: DistilRecipe,
        runtime: Runtime,
        shares: Shares | None = None,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._train, self._held = train, held
        self._recipe, self._runtime = recipe, runtime
        student.model.to(runtime.device)
        teacher.model.to(runtime.device).requires_grad_(False)
        assert recipe.train is not None, "the recipe is settled"
        assert recipe.mixture is not None
        self._named = choose_trained(student, recipe.train)
        # The last of the layers after which states are compared, in both models; None for their outputs.
        last = len(first_layers(student)) - 1 if recipe.train == "first" else None
        self._last = None if last is None else (student.layers[last], teacher.layers[last])
        shares = np.ones(student.vocabulary) if shares is None else shares
        self._mixture = Mixture(shares, train.special, recipe.mixture, recipe.seed)
        self._trained = [*{id(p): p for p in self._named.values()}.values()]
        self._optimizer = self._optimizer_of(self._trained)
        self._spent = 0.0  # seconds of training before the last stop
        self._began: float | None = None  # start of the current stretch of training, None between stretches
        self._step, self._loss, self._seen = 0, 0.0, 0
        self._variance = 1.0
        self._looked = 0  # fifths of the run that were done at the last check
        self._checks: list[Check] = []
        self._best: Check | None = None
        self._state: State = {}

    def _optimizer_of(self, parameters: Sequence[Tensor]) -> torch.optim.AdamW:
        fused = self._runtime.device.type in {"cpu", "cuda", "mps"}
        return torch.optim.AdamW([*parameters], weight_decay=0.0, fused=fused)  # each step sets its rate

    def run(self, watcher: DistilWatcher, stop: Callable[[], bool], save: Callable[[], None]) -> bool:
        """Train to the end, or until ``stop`` returns true after a step.

        The held-out texts are checked after about every fifth of the run, and at its end.

        Args:
            watcher: is notified of steps and checks.
            stop: called after each step.
            save: called after each step, when :meth:`state_dict` may be saved.

        Returns:
            Whether the run is complete.
        """
        self._began = time.monotonic()
        if not self._checks:
            self._keep(self._look(), watcher)
            self._began = time.monotonic()
        batches = self._batches()
        while (share := self._share()) < 1:
            if int(share * _CHECKS) > self._looked:
                self._keep(self._look(), watcher)
                self._looked, share = int(share * _CHECKS), self._share()
            rate = self._learn(next(batches), share)
            watcher.step(self._share(), self._loss / self._seen, rate)
            if stop():
                self._spent, self._began = self._seconds(), None
                return False
            save()
        if self._seen:
            self._keep(self._look(), watcher)
        return True

    @property
    def highest_rate(self) -> float:
        """The highest learning rate; known after the first check."""
        return self._recipe.highest_rate(self._checks[0].held_out.error)

    @property
    def result(self) -> Distilled:
        """The result at the last check."""
        assert self._best is not None, "the first check was before the first step"
        return Distilled(tuple(self._checks), self._best, self._state, self._step)

    def stopped(self, watcher: DistilWatcher) -> Distilled:
        """Check once more where the run was stopped, and return the result so far.

        This check is not part of the run's state: a resumed run continues as if it had not happened.
        """
        last, check = self.result, self._look()
        best = check.beats(last.best)
        watcher.check(check, best=best)
        kept = (check, self._copied()) if best else (last.best, last.state)
        return Distilled((*last.checks, check), *kept, self._step)

    def _epoch_steps(self) -> int:
        return -(-len(self._train) // self._recipe.batch_size)

    def _batches(self) -> Iterator[Ids]:
        """The batches from the next step on, for any number of epochs."""
        while True:
            epoch, step = divmod(self._step, self._epoch_steps())
            rng = np.random.default_rng((self._recipe.seed, 1 + epoch))
            yield from shuffled_batches(self._train.texts.lengths, self._recipe.batch_size, rng)[step:]

    def _seconds(self) -> float:
        """Seconds of training so far, without the pauses while the run was stopped."""
        return self._spent + (0.0 if self._began is None else time.monotonic() - self._began)

    def _share(self) -> float:
        """Fraction of the run that is done, by steps or by time, whichever is larger."""
        share = self._step / (self._epoch_steps() * self._recipe.most_epochs)
        if self._recipe.minutes is not None:
            share = max(share, self._seconds() / (60 * self._recipe.minutes))
        return min(share, 1.0)

    def _learn(self, rows: Ids, share: float) -> float:
        """Make one optimizer step on the texts ``rows``; return its learning rate."""
        lengths = self._train.texts.lengths
        for number, part in enumerate(batches_within(rows, lengths, most_tokens(self._student))):
            ids, mask = self._train.tensors(part, self._runtime.device)
            ids = self._mixture(ids, self._step, number)
            with self._runtime.precision():
                loss = self._loss_of(ids, mask, lengths[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            self._loss += float(loss.detach()) * len(rows)
        nn.utils.clip_grad_norm_(self._trained, _CLIP)
        rate = self.highest_rate * min((share + 1e-3) / _WARM_UP, (1 - share) / (1 - _WARM_UP))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._seen += len(rows)
        return rate

    def _loss_of(self, ids: Tensor, mask: Tensor, lengths: Ids) -> Tensor:
        """The loss on some of a step's texts, of which all have these ``lengths``."""
        tokens, predicted = int(lengths.sum()), max(int((lengths - 1).sum()), 1)
        if self._last is not None:
            with torch.no_grad():
                states = self._teacher.states_after(self._last[1], ids, mask)
            own = self._student.states_after(self._last[0], ids, mask)
            return state_errors(own, states, mask).sum() / tokens
        with torch.no_grad():
            wanted = self._teacher(ids, mask)
        found = differences(self._student(ids, mask), wanted, mask)
        loss = found.squares / (tokens * self._variance) + (1 - found.cosines).sum() / len(lengths)
        return loss if found.divergence is None else loss + found.divergence / predicted

    def _look(self) -> Check:
        """Measure on the held-out texts."""
        measured = measure(self._student, self._teacher, self._held, self._runtime)
        self._variance = measured.variance  # of the teacher on fixed texts, so it never changes
        loss = self._loss / self._seen if self._seen else None
        return Check(self._step, self._seconds(), loss, measured.likeness)

    def _keep(self, check: Check, watcher: DistilWatcher) -> None:
        """Record a check, keep the weights if they are the best so far, and reset the mean loss."""
        self._loss, self._seen = 0.0, 0
        self._checks.append(check)
        best = self._best is None or check.beats(self._best)
        if best:
            self._best, self._state = check, self._copied()
        watcher.check(check, best=best)

    def _copied(self) -> State:
        """A copy of the trained parameters on the CPU; tied ones stay tied."""
        copies = {id(p): p.detach().to("cpu", copy=True) for p in self._trained}
        return {name: copies[id(p)] for name, p in self._named.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state from which :meth:`load_state_dict` can resume the run."""
        return {
            "trained": nn.ParameterList(self._trained).state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
            "seconds": self._seconds(),
            "loss": self._loss,
            "seen": self._seen,
            "variance": self._variance,
            "looked": self._looked,
            "checks": [asdict(check) for check in self._checks],
            "best": None if self._best is None else self._checks.index(self._best),
            "best_state": self._state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to the state of another run with the same arguments.

        Raises:
            ValueError: it is not such a state; nothing was changed.
        """
        checks = self._check(state)
        nn.ParameterList(self._trained).load_state_dict(state["trained"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]
        self._spent, self._began = state["seconds"], None
        self._loss, self._seen = state["loss"], state["seen"]
        self._variance, self._looked = state["variance"], state["looked"]
        self._checks = checks
        self._best = None if state["best"] is None else self._checks[state["best"]]
        self._state = state["best_state"]

    def _check(self, state: Mapping[str, Any]) -> list[Check]:
        """Refuse what cannot be the state of a run with the same arguments: its file may be a stranger's.

        Returns:
            Its checks.

        Raises:
            ValueError: with the entry.
        """
        check_keys(state, self.state_dict().keys(), "the state")
        checks = records_from(Check, state["checks"], _CHECKS + 2, "checks")
        if checks:
            check_count(state["best"], 0, len(checks) - 1, "best")
        elif state["best"] is not None:
            raise ValueError("there is a best check, and no check")
        steps = self._epoch_steps() * self._recipe.most_epochs
        check_count(state["step"], 0, steps, "step")
        check_count(state["seen"], 0, steps * self._recipe.batch_size, "seen")
        check_count(state["looked"], 0, _CHECKS, "looked")
        for name in ("seconds", "loss", "variance"):
            check_number(state[name], name)
        check_tensors(state["trained"], nn.ParameterList(self._trained).state_dict(), "trained")
        check_tensors(state["best_state"], self._named if checks else {}, "best_state")
        parameter = nn.Parameter(torch.zeros(1, device=self._runtime.device))
        stepped = self._optimizer_of([parameter])
        parameter.grad = torch.ones_like(parameter)
        stepped.step()
        check_optimizer(state["optimizer"], self._optimizer, stepped)
        return checks
