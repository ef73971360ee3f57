"""Arm 1: accuracy at a ratio. Factors of the trained table against quantization and offline compression."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from bench import AFTER, BEFORE, CONSTANT_ADAM, Bench, nbytes
from cases import Case
from compressing import (
    Factors,
    factorized,
    narrowed,
    quantized,
    quantized_bytes,
    rank_for,
    relative_error,
    svd,
)
from results import Measurement, Step
from torch import nn

from embcompress.training.records import Recipe

NAME = "compression"
RATIOS = (0.75, 0.9, 0.95, 0.98, 0.99)
_FEW = (0.9, 0.98)
INT4 = round(1 - (150 + 4) / 1200, 6)
"""Ratio of four bits a number and a scale a row, at 300 columns."""

_PLAN: dict[str, dict[str, tuple[float, ...]]] = {
    "word2vec": {
        "svd": (*RATIOS, INT4),
        "online-calr": RATIOS,
        "online-constant": (*RATIOS, INT4),
        "weighted": _FEW,
        "weighted-linear": RATIOS[1:],
        "recommended": RATIOS[1:],
        "offline": (0.9, 0.95, 0.98),
    },
    "minilm": {
        "svd": RATIOS,
        "online-calr": _FEW,
        "online-constant": _FEW,
        "weighted": (0.98,),
        "recommended": _FEW,
        "offline": _FEW,
    },
}
"""Ratios of each method; dense and quantized tables have their own sizes."""

LINEAR_ADAM = replace(CONSTANT_ADAM, schedule="linear")
CALR_ADAM = replace(CONSTANT_ADAM, schedule="calr", schedule_options={"window": 3})


_RECIPES = {
    "svd": None,
    "online-calr": CALR_ADAM,
    "online-constant": CONSTANT_ADAM,
    "weighted": CONSTANT_ADAM,
    "weighted-linear": LINEAR_ADAM,
    "recommended": LINEAR_ADAM,
}
"""How each way of factorizing a trained table is retrained."""
_SMOOTHING = {"weighted": (0.5,), "weighted-linear": (1.0,), "recommended": (0.0, 0.5, 1.0)}
"""Exponents s of a token's weight (count + 1)^s; of several the one that dev chooses before retraining."""
_RATE = {"weighted-linear": 3e-3, "recommended": 3e-3}
"""Learning rates that are not the usual 1e-3; chosen on dev of seeds 0 to 2 of trec6 and snips."""


def steps(case: Case, _earlier: Iterable[Measurement]) -> list[Step]:
    """What is measured in a case, the dense models first."""
    fixed = [Step(NAME, method) for method in ("dense", "int8", "int4")]
    return fixed + [
        Step(NAME, method, ratio, _RATE.get(method, 1e-3))
        for method, ratios in _PLAN[case.start].items()
        for ratio in ratios
    ]


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step. What is not retrained starts from the dense model that had all the epochs."""
    if step.method == "dense":
        return bench.measure(
            step,
            bench.final,
            rank=0,
            table_bytes=nbytes(bench.final.embedding.weight),
            error=0.0,
            epoch=bench.dense.epoch,
            seconds=bench.dense.seconds,
        )
    if step.method in {"int8", "int4"}:
        return _quantized(step, bench, int(step.method[3:]))
    if step.method == "offline":
        return _offline(step, bench)
    source = bench.final if step.method == "svd" else bench.early
    table = source.embedding.weight.detach()
    counts = bench.material.token_counts()
    tried = [
        svd(table, rank_for(table, step.ratio), weights=None if s == 0 else (counts + 1.0) ** s)
        for s in _SMOOTHING.get(step.method, (0.0,))
    ]
    factors = max(tried, key=lambda one: bench.dev_order(factorized(source, one))) if tried[1:] else tried[0]
    return retrained(step, bench, source, factors, _RECIPES[step.method])


def retrained(
    step: Step, bench: Bench, source: nn.Module, factors: Factors, recipe: Recipe | None
) -> Measurement:
    """Put factors in the place of the table of ``source``, retrain unless there is no recipe, and measure."""
    error = relative_error(source.embedding.weight.detach(), factors.table())
    model = factorized(source, factors)
    epoch, seconds = 0, 0.0
    if recipe is not None:
        training = bench.train(model, replace(recipe, learning_rate=step.learning_rate))
        epoch, seconds = training.best.epoch, training.seconds
    return bench.measure(
        step,
        model,
        rank=factors.rank,
        table_bytes=nbytes(factors.left, factors.right),
        error=error,
        epoch=epoch,
        seconds=seconds,
    )


def _quantized(step: Step, bench: Bench, bits: int) -> Measurement:
    table = bench.final.embedding.weight.detach()
    rounded = quantized(table, bits)
    model = copy.deepcopy(bench.final)
    with torch.no_grad():
        model.embedding.weight.copy_(rounded)
    return bench.measure(
        step,
        model,
        rank=0,
        table_bytes=quantized_bytes(table, bits),
        error=relative_error(table, rounded),
        epoch=bench.dense.epoch,
        seconds=0.0,
    )


def _offline(step: Step, bench: Bench) -> Measurement:
    model, factors = narrowed(bench.material, step.ratio)
    start = bench.material.untrained().embedding.weight.detach()
    training = bench.train(model, replace(CONSTANT_ADAM, epochs=BEFORE + AFTER), first=True)
    return bench.measure(
        step,
        model,
        rank=factors.rank,
        table_bytes=nbytes(factors.left),
        error=float(np.float64(relative_error(start, factors.table()))),
        epoch=training.best.epoch,
        seconds=training.seconds,
    )
