"""Arm 5: a table 50 to 400 times smaller. Codes of all words against integers of the words that are kept."""

from __future__ import annotations

from collections.abc import Iterable

from bench import LINEAR, Bench
from results import Case, Measurement, Step

NAME = "small"
RATIOS = (0.98, 0.99, 0.995)
PLAN = {
    "pq, all alike": RATIOS,
    "pq": (*RATIOS, 0.9975),
    "lplr": RATIOS,
    "svd": (0.98, 0.99),
    "screen+int4": RATIOS,
    "compress": RATIOS,
    "compress after 8 epochs": (0.99, 0.995),
    "screen+int4, retrained": RATIOS,
    "svd in the metric, retrained": (0.98,),
}
"""Ratios of each method."""

MEANINGS = {
    "dense": "the uncompressed model, 8 epochs",
    "pq, all alike": "trellis-coded rows, all rows and columns counting alike, not retrained",
    "pq": "rows weighted by count + 1, columns by how much they move the scores, not retrained",
    "lplr": "low-rank factors of a few bits a number, weighted in the same way, not retrained",
    "svd": "factors of float32, weighted in the same way, not retrained",
    "screen+int4": "the most frequent words with 4 bits a number, all others alike, not retrained",
    "compress": "5 epochs, what embcompress compress does, with 3 epochs of Adam, 3e-3 to 0",
    "compress after 8 epochs": "the same on the dense model, so 3 epochs more",
    "screen+int4, retrained": "5 epochs, compress --method screen+int4 --no-metric",
    "svd in the metric, retrained": "5 epochs, compress --method svd",
}

_RETRAINED = {
    "compress": (None, True),
    "compress after 8 epochs": (None, True),
    "screen+int4, retrained": ("screen+int4", False),
    "svd in the metric, retrained": ("svd", True),
}
"""Method of what is retrained, and whether it takes the metric; dev chooses the weights of tokens."""

_RATE = 3e-3
"""Highest learning rate, that of ``compress``."""


def steps(case: Case, _earlier: Iterable[Measurement]) -> list[Step]:
    """What is measured in a case: first the dense model, then what is not retrained."""
    found = [Step(NAME, method, ratio, _RATE) for method, ratios in PLAN.items() for ratio in ratios]
    return [Step(NAME, "dense"), *found] if case.start == "word2vec" else []


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step. What is not retrained starts from the dense model that had all the epochs."""
    if step.method == "dense":
        return bench.measure_dense(step)
    if step.method in _RETRAINED:
        method, metric = _RETRAINED[step.method]
        source = bench.final if step.method.endswith("after 8 epochs") else bench.early
        options = {"method": method, "metric": metric, "smoothing": None, "source": source}
        return bench.measure_compressed(step, LINEAR, **options)
    if step.method == "pq, all alike":
        return bench.measure_factorized(step, "pq")
    train = bench.texts.train
    options = {} if step.method == "screen+int4" else {"metric": train, "smoothing": 1}
    return bench.measure_factorized(step, step.method, corpus=train, **options)
