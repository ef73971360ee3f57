"""Bringing a compressed model nearer to its original on texts without labels, its teacher.

The loss is that of Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, equation 8) for the last layer, the
squared distance of hidden states, here over their variance; to it the distance 1 - cosine of sentence
vectors is added, and for language models the divergence of the predicted tokens (Hinton et al. 2015,
arXiv:1503.02531, at temperature 1). Both models run without dropout: the student had learned before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from embcompress.data.encoded import Ids, shuffled_batches
from embcompress.errors import UsageError
from embcompress.nn import FactorizedHead, FactorizedPair
from embcompress.training.devices import Runtime
from embcompress.training.likeness import batches_within, differences, measure, most_tokens
from embcompress.training.pretrained import Pretrained, Tokens
from embcompress.training.recovery import Check, DistilRecipe, DistilWatcher

State = dict[str, Tensor]

_CHECKS = 5
"""Times in a run that the texts set aside are looked at."""
_WARM_UP = 0.05
"""Share of the run in which the learning rate rises."""
_CLIP = 1.0
"""Largest norm of the gradient."""
_HELD_OUT_SHARE, _LEAST_HELD_OUT, _MOST_HELD_OUT = 0.02, 32, 500


def held_out(count: int, seed: int) -> tuple[Ids, Ids]:
    """Numbers of the texts to learn from, and of those set aside: 2 %, 32 to 500, at most a fifth."""
    share = min(max(round(count * _HELD_OUT_SHARE), _LEAST_HELD_OUT), _MOST_HELD_OUT, count // 5)
    order = np.random.default_rng((seed, 0)).permutation(count)
    return np.sort(order[share:]), np.sort(order[:share])


def choose_trained(model: nn.Module, what: str) -> State:
    """Leave only ``what`` to be trained; the parameters by name, a tied one under each of its names.

    Raises:
        UsageError: there is nothing of it.
    """
    if what != "all":
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, FactorizedPair) or (what == "norms" and _is_norm(module)):
                module.requires_grad_(True)
        for module in model.modules():  # the bias of a head is none of the table's
            if isinstance(module, FactorizedHead) and module.bias is not None:
                module.bias.requires_grad_(False)
    found = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    if not found:
        raise UsageError(
            "only the factors are to be trained, and the table is held in integers, which stay as they are",
            remedy="choose --train norms or --train all",
        )
    return dict(found)


def _is_norm(module: nn.Module) -> bool:
    """Whether it normalizes: torch's own, or one of the many classes of transformers that do so."""
    return type(module).__name__.endswith(("LayerNorm", "RMSNorm")) or isinstance(module, nn.LayerNorm)


@dataclass(frozen=True)
class Distilled:
    """What a run came to.

    Attributes:
        checks: the first is before training.
        best: that of the weights which are kept.
        state: the trained parameters by name, as they were then.
        steps: optimizer steps.
        finished: whether it came to its end.
    """

    checks: tuple[Check, ...]
    best: Check
    state: State
    steps: int
    finished: bool


class Distiller:
    """One run.

    Args:
        student: trained in place; on the runtime's device afterwards, as is the teacher.
        teacher: the original.
        train: texts to learn from.
        held: texts that choose the best weights.
        recipe: how.
        runtime: where.
    """

    def __init__(
        self,
        student: Pretrained,
        teacher: Pretrained,
        train: Tokens,
        held: Tokens,
        recipe: DistilRecipe,
        runtime: Runtime,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._train, self._held = train, held
        self._recipe, self._runtime = recipe, runtime
        student.model.to(runtime.device)
        teacher.model.to(runtime.device).requires_grad_(False)
        self._named = choose_trained(student.model, recipe.train)
        self._trained = [*{id(p): p for p in self._named.values()}.values()]
        fused = runtime.device.type in {"cpu", "cuda", "mps"}
        self._optimizer = torch.optim.AdamW(self._trained, recipe.highest_rate, weight_decay=0.0, fused=fused)
        self._began = time.monotonic()
        self._step, self._loss, self._seen = 0, 0.0, 0
        self._variance = 1.0
        self._checks: list[Check] = []
        self._best: Check | None = None
        self._state: State = {}

    def run(self, watcher: DistilWatcher, stop: Callable[[], bool]) -> Distilled:
        """Train to the end, or until ``stop`` answers true after a step.

        At about every fifth of the run, and at its end, the texts set aside are looked at.
        """
        self._check(watcher)
        self._began = time.monotonic()
        epoch, finished = 0, True
        while finished and self._share() < 1:
            epoch += 1
            rng = np.random.default_rng((self._recipe.seed, epoch))
            for rows in shuffled_batches(self._train.texts.lengths, self._recipe.batch_size, rng):
                before = self._share()
                rate = self._learn(rows, before)
                share = self._share()
                watcher.step(share, self._loss / self._seen, rate)
                if stop():
                    finished = False
                    break
                if share >= 1:
                    break
                if int(share * _CHECKS) > int(before * _CHECKS):
                    self._check(watcher)
        self._check(watcher)
        assert self._best is not None, "the first check was before the first step"
        return Distilled(tuple(self._checks), self._best, self._state, self._step, finished)

    def _share(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        steps = -(-len(self._train) // self._recipe.batch_size) * self._recipe.most_epochs
        share = self._step / steps
        if self._recipe.minutes is not None:
            share = max(share, (time.monotonic() - self._began) / (60 * self._recipe.minutes))
        return min(share, 1.0)

    def _learn(self, rows: Ids, share: float) -> float:
        """One optimizer step on the texts ``rows``; its learning rate."""
        lengths = self._train.texts.lengths
        tokens, predicted = int(lengths[rows].sum()), max(int((lengths[rows] - 1).sum()), 1)
        for part in batches_within(rows, lengths, most_tokens(self._student)):
            ids, mask = self._train.tensors(part, self._runtime.device)
            with self._runtime.precision():
                with torch.no_grad():
                    wanted = self._teacher(ids, mask)
                found = differences(self._student(ids, mask), wanted, mask)
            loss = found.squares / (tokens * self._variance) + (1 - found.cosines).sum() / len(rows)
            if found.divergence is not None:
                loss = loss + found.divergence / predicted
            loss.backward()  # type: ignore[no-untyped-call]
            self._loss += float(loss.detach()) * len(rows)
        nn.utils.clip_grad_norm_(self._trained, _CLIP)
        rate = self._recipe.highest_rate * min((share + 1e-3) / _WARM_UP, (1 - share) / (1 - _WARM_UP))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        self._seen += len(rows)
        return rate

    def _check(self, watcher: DistilWatcher) -> None:
        """Look at the texts set aside; keep the weights if they are the best so far."""
        measured = measure(self._student, self._teacher, self._held, self._runtime)
        self._variance = measured.variance
        loss = self._loss / self._seen if self._seen else None
        check = Check(self._step, time.monotonic() - self._began, loss, measured.likeness)
        self._loss, self._seen = 0.0, 0
        self._checks.append(check)
        best = self._best is None or check.beats(self._best)
        if best:
            self._best = check
            copies = {id(p): p.detach().to("cpu", copy=True) for p in self._trained}
            self._state = {name: copies[id(p)] for name, p in self._named.items()}
        watcher.check(check, best=best)
