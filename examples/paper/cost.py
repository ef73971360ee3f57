"""Arm 4: what each form of the table costs a sentence: numbers, bytes, operations, time."""

from __future__ import annotations

import copy
import io
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from ablations import folded
from bench import MAX_LENGTH, Bench, opened, read_rows, words
from networks import DAN, DAN_UNITS, LSTM, LSTM_UNITS
from results import Cost
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import embcompress

NAME = "cost"
RATIOS = (0.9, 0.98)
BATCH = 64
PASSES = 1000
"""Timed passes of a sentence alone; of a batch a fifth of them."""


@dataclass(frozen=True)
class Form:
    """A classifier with its table in one form.

    Attributes:
        method: name of the form.
        model: ready for evaluation.
        table_flops: operations of the embedding for one sentence.
        width: numbers a token (DAN: a sentence) that the network reads.
        ratio: fraction of the table's bytes removed that was asked for, 0 where none was.
        rank: components, 0 where there are none.
    """

    method: str
    model: nn.Module
    table_flops: int
    width: int
    ratio: float = 0.0
    rank: int = 0


def measure(bench: Bench, passes: int = PASSES) -> list[Cost]:
    """All forms side by side, each timed ``passes`` times."""
    record = opened(bench.final)[1]
    texts = _ids(bench, record["tokenizer"]["vocabulary"])
    length = round(statistics.fmean(map(len, texts)))
    every = torch.tensor([*itertools.chain.from_iterable(texts)])
    drawn = torch.randint(len(every), (BATCH, length), generator=torch.Generator().manual_seed(0))
    tokens = every[drawn]
    with bench.scratch() as folder:
        forms = [*_forms(bench, Path(folder), length)]
    alone, batched = _latencies(forms, tokens[:1], passes), _latencies(forms, tokens, -(-passes // 5))
    labels = len(record["labels"])
    return [
        Cost(
            set=bench.case.set,
            model=bench.case.model,
            method=form.method,
            ratio=form.ratio,
            rank=form.rank,
            length=length,
            parameters=sum(value.numel() for value in form.model.state_dict().values()),
            table_bytes=sum(value.nbytes for value in form.model.embedding.state_dict().values()),
            file_bytes=_file_bytes(form.model),
            table_flops=form.table_flops,
            flops=form.table_flops + _network_flops(bench.case.model, form.width, length, labels),
            counted_flops=_counted(form.model, tokens[:1]),
            latency_1=alone[i],
            latency_64=batched[i] / BATCH,
        )
        for i, form in enumerate(forms)
    ]


def _ids(bench: Bench, vocabulary: list[str]) -> list[list[int]]:
    """Token ids of each training text."""
    number = {token: i for i, token in enumerate(vocabulary)}
    texts = (words(row["text"]) for row in read_rows(bench.texts.train))
    return [[number[word] for word in text[:MAX_LENGTH] if word in number] for text in texts]


def _forms(bench: Bench, folder: Path, length: int) -> Iterator[Form]:
    is_dan, dense = bench.case.model == "dan", bench.final
    width = opened(dense)[0]["embedding.weight"].shape[1]
    yield Form("dense", module(bench.case.model, dense), 0, width)
    for ratio in RATIOS:
        small = folder / f"{ratio}.safetensors"
        rank = embcompress.factorize(dense, ratio=ratio, output=small).tables[0].rank or 0
        product = 2 * rank * width  # multiplied once a sentence by a DAN, which takes the mean first
        once = product if is_dan else product * length
        yield Form("svd", module(bench.case.model, dense, small), once, width, ratio, rank)
        if is_dan:
            slow = module("dan", dense, small, bag=False)
            yield Form("token by token", slow, product * length, width, ratio, rank)
        network = module(bench.case.model, folded(dense, small, folder / f"folded-{ratio}.safetensors"))
        yield Form("folded", network, 0, rank, ratio, rank)
    integers = folder / "int8.safetensors"
    embcompress.factorize(dense, method="int8", ratio=0.5, output=integers)
    # A conversion and a multiplication a number.
    yield Form("int8", module(bench.case.model, dense, integers), 2 * width * length, width)


def module(model: str, dense: Path, small: Path | None = None, **options: bool) -> nn.Module:
    """The classifier at ``dense`` as a module, with the table of ``small`` if that is given."""
    state = opened(dense)[0]
    tokens, dimension = state["embedding.weight"].shape
    kind = DAN if model == "dan" else LSTM
    network = kind(tokens, len(state["output.bias"]), padding=0, dimension=dimension, **options)
    if small is None:
        network.load_state_dict(state)
    else:
        embcompress.load(network, small)
    return network.eval()


def _network_flops(model: str, width: int, length: int, labels: int) -> int:
    """Matrix products behind the embedding, for one sentence; biases and activations are not counted."""
    if model == "lstm":
        return 2 * (length * 4 * LSTM_UNITS * (width + LSTM_UNITS) + LSTM_UNITS * labels)
    return 2 * sum(a * b for a, b in itertools.pairwise((width, *DAN_UNITS, labels)))


@torch.no_grad()
def _counted(model: nn.Module, tokens: Tensor) -> int:
    """Operations that PyTorch counts in one pass; without data, because the CPU's fused LSTM hides them."""
    lengths = torch.full((len(tokens),), tokens.shape[1], device="meta")
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(tokens.to("meta"), lengths)
    return int(counter.get_total_flops())


@torch.inference_mode()
def _latencies(forms: list[Form], tokens: Tensor, passes: int) -> list[float]:
    """Median microseconds of a pass of each form; they take turns, so that all meet the same noise."""
    lengths = torch.full((len(tokens),), tokens.shape[1])
    taken: list[list[float]] = [[] for _ in forms]
    for _ in range(passes):
        for times, form in zip(taken, forms, strict=True):
            clock = time.perf_counter()
            form.model(tokens, lengths)
            times.append(time.perf_counter() - clock)
    return [statistics.median(times) * 1e6 for times in taken]


def _file_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())
