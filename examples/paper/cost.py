"""Arm 4: what each form of the table costs a sentence: numbers, bytes, operations, time."""

from __future__ import annotations

import copy
import io
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ablations import TokenByToken
from bench import nbytes
from cases import Case, Material, read_case
from compressing import factorized, folded, quantize, rank_for, svd
from results import Cost
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

NAME = "cost"
RATIOS = (0.9, 0.98)
BATCH = 64
_ROUNDS, _BATCH_ROUNDS = 1000, 200


@dataclass(frozen=True)
class Form:
    """A classifier with its table in one form.

    Attributes:
        method: name of the form.
        model: ready for evaluation.
        ratio: fraction of the table's bytes removed that was asked for, 0 where none was.
        rank: components, 0 where there are none.
        table_flops: operations of the embedding for one sentence.
        width: numbers a token (DAN: a sentence) that the network reads.
    """

    method: str
    model: nn.Module
    ratio: float
    rank: int
    table_flops: int
    width: int


def measure(case: Case, data: Path) -> list[Cost]:
    """All forms side by side. The network is untrained: what it has learned costs nothing."""
    material = read_case(case, data)
    length = round(float(material.train.texts.lengths.mean()))
    rng = np.random.default_rng(case.seed)
    tokens = torch.from_numpy(rng.choice(material.train.texts.tokens, (BATCH, length)))
    forms = _forms(material, length)
    alone, batched = _latencies(forms, tokens[:1], _ROUNDS), _latencies(forms, tokens, _BATCH_ROUNDS)
    return [
        Cost(
            set=case.set,
            model=case.model,
            method=form.method,
            ratio=form.ratio,
            rank=form.rank,
            length=length,
            parameters=sum(value.numel() for value in form.model.state_dict().values()),
            table_bytes=sum(
                nbytes(value)
                for name, value in form.model.state_dict().items()
                if name.startswith("embedding.")
            ),
            file_bytes=_file_bytes(form.model),
            table_flops=form.table_flops,
            flops=form.table_flops + _network_flops(material, form.width, length),
            counted_flops=_counted(form.model, tokens[:1]),
            latency_1=alone[i],
            latency_64=batched[i] / BATCH,
        )
        for i, form in enumerate(forms)
    ]


def _forms(material: Material, length: int) -> list[Form]:
    dense = material.untrained()
    table = dense.embedding.weight.detach()
    width = table.shape[1]
    is_bag = material.case.model == "dan"
    forms = [Form("dense", dense, 0.0, 0, 0, width)]
    for ratio in RATIOS:
        factors = svd(table, rank_for(table, ratio))
        rank, model = factors.rank, factorized(dense, factors)
        product = 2 * rank * width
        forms.append(Form("svd", model, ratio, rank, product * (1 if is_bag else length), width))
        if is_bag:
            slow = factorized(dense, factors)
            slow.embedding = TokenByToken(slow.embedding)
            forms.append(Form("token by token", slow, ratio, rank, product * length, width))
        forms.append(Form("folded", folded(model, material), ratio, rank, 0, rank))
    rounded = material.untrained()
    rounded.embedding = Quantized(table, material.record.tokenizer.padding, is_bag=is_bag)
    # A conversion and a multiplication a number.
    forms.append(Form("int8", rounded, 0.0, 0, 2 * width * length, width))
    for form in forms:
        form.model.eval()
    return forms


class Quantized(nn.Module):
    """A table of int8 codes with a scale a row; rows are made floats when they are looked up.

    Args:
        table: V×d.
        padding: id of the row that a mean leaves out.
        is_bag: whether texts are averaged, as in a DAN.
    """

    def __init__(self, table: Tensor, padding: int, *, is_bag: bool) -> None:
        super().__init__()
        codes, scales = quantize(table, 8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self._padding, self._is_bag = padding, is_bag

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors (B×L×d), or their means (B×d)."""
        vectors = self.codes[tokens] * self.scales[tokens]
        if not self._is_bag:
            return vectors
        inside = (tokens != self._padding)[..., None]
        return (vectors * inside).sum(dim=1) / inside.sum(dim=1)


def _network_flops(material: Material, width: int, length: int) -> int:
    """Matrix products behind the embedding, for one sentence; biases and activations are not counted."""
    hidden, labels = material.record.architecture.hidden, len(material.record.labels)
    if material.case.model == "lstm":
        return 2 * (length * 4 * hidden[0] * (width + hidden[0]) + hidden[0] * labels)
    sizes = (width, *hidden, labels)
    return 2 * sum(a * b for a, b in itertools.pairwise(sizes))


@torch.no_grad()
def _counted(model: nn.Module, tokens: Tensor) -> int:
    """Operations that PyTorch counts in one pass; without data, because the CPU's fused LSTM hides them."""
    lengths = torch.full((len(tokens),), tokens.shape[1], device="meta")
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(tokens.to("meta"), lengths)
    return int(counter.get_total_flops())


@torch.inference_mode()
def _latencies(forms: list[Form], tokens: Tensor, rounds: int) -> list[float]:
    """Median microseconds of a pass of each form; they take turns, so that all meet the same noise."""
    lengths = torch.full((len(tokens),), tokens.shape[1])
    taken: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds):
        for times, form in zip(taken, forms, strict=True):
            clock = time.perf_counter()
            form.model(tokens, lengths)
            times.append(time.perf_counter() - clock)
    return [statistics.median(times) * 1e6 for times in taken]


def _file_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())
