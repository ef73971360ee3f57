"""Arm 3: where S goes, what is retrained, and when the right factor is multiplied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bench import CONSTANT_ADAM, Bench, nbytes
from cases import Case
from compressing import factorized, folded, rank_for, relative_error, svd
from compression import CALR_ADAM
from results import Measurement, Step
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.methods.base import SPLITS

NAME = "ablations"
RATIO = 0.98
_SPLIT = {f"S {split}": split for split in SPLITS}
_CALR_RATES = (1e-3, 1e-2)


def steps(case: Case, _earlier: Iterable[Measurement]) -> list[Step]:
    """What is measured; "S left" is the form that all others are changes of."""
    methods = [*_SPLIT, "only factors", "folded"]
    if case.model == "dan":
        methods.append("token by token")
    found = [Step(NAME, method, RATIO) for method in methods]
    # The paper's own form: CALR, and S with the right factor.
    return found + [Step(NAME, f"S right, CALR from {rate:g}", RATIO, rate) for rate in _CALR_RATES]


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step: three epochs of Adam, at a constant rate unless the step is about CALR."""
    table = bench.early.embedding.weight.detach()
    factors = svd(table, rank_for(table, step.ratio), split=_split(step))
    model = factorized(bench.early, factors)
    stored = [factors.left, factors.right]
    if step.method == "folded":
        model, stored = folded(model, bench.material), [factors.left]
    elif step.method == "token by token":
        model.embedding = TokenByToken(model.embedding)
    usual = CALR_ADAM if "CALR" in step.method else CONSTANT_ADAM
    recipe = replace(usual, learning_rate=step.learning_rate, only_factors=step.method == "only factors")
    training = bench.train(model, recipe)
    return bench.measure(
        step,
        model,
        rank=factors.rank,
        table_bytes=nbytes(*stored),
        error=relative_error(table, factors.table()),
        epoch=training.best.epoch,
        seconds=training.seconds,
    )


def _split(step: Step) -> str:
    return "right" if "CALR" in step.method else _SPLIT.get(step.method, "left")


class TokenByToken(nn.Module):
    """The mean of token vectors, each of them multiplied by the right factor first: a DAN's other way.

    Args:
        embedding: factorized, with an ``nn.EmbeddingBag`` as lookup.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.left, self.right = embedding.left, nn.Parameter(embedding.right.detach().T.contiguous())
        self._padding = embedding.padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        """The means (B×d) of texts (B×L) over the tokens that are no padding."""
        vectors = F.linear(F.embedding(tokens, self.left, padding_idx=self._padding), self.right)
        inside = (tokens != self._padding)[..., None]
        return (vectors * inside).sum(dim=1) / inside.sum(dim=1)
