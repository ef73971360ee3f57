"""Arm 4: a table 50 to 400 times smaller. Codes of all words against integers of the words that are kept."""

from __future__ import annotations

from collections.abc import Iterable

from bench import LINEAR, Bench
from results import Case, Measurement, Step

NAME = "small"
RATIOS = (0.98, 0.99, 0.995)
_PLAN = {
    "pq, all alike": RATIOS,
    "pq": (*RATIOS, 0.9975),
    "screen+int4": RATIOS,
    "compress": RATIOS,
    "screen+int4, retrained": RATIOS,
    "svd in the metric, retrained": (0.98,),
}
"""Ratios of each method."""

_RETRAINED = {
    "compress": (None, True),
    "screen+int4, retrained": ("screen+int4", False),
    "svd in the metric, retrained": ("svd", True),
}
"""Method of what is retrained, and whether it takes the metric; dev chooses the weights of tokens."""

_RATE = 3e-3
"""Highest learning rate, that of ``compress``."""


def steps(case: Case, _earlier: Iterable[Measurement]) -> list[Step]:
    """What is measured in a case: first the dense model, then what is not retrained."""
    found = [Step(NAME, method, ratio, _RATE) for method, ratios in _PLAN.items() for ratio in ratios]
    return [Step(NAME, "dense"), *found] if case.start == "word2vec" else []


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step. What is not retrained starts from the dense model that had all the epochs."""
    if step.method == "dense":
        return bench.measure_dense(step)
    if step.method in _RETRAINED:
        method, metric = _RETRAINED[step.method]
        return bench.measure_compressed(step, LINEAR, method=method, metric=metric, smoothing=None)
    train = bench.texts.train
    if step.method == "pq":
        return bench.measure_factorized(step, "pq", corpus=train, smoothing=1, metric=train)
    if step.method == "screen+int4":
        return bench.measure_factorized(step, "screen+int4", corpus=train)
    return bench.measure_factorized(step, "pq")
