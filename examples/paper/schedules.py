"""Arm 2: how the learning rate moves, and which optimizer follows it, under one budget of epochs.

Every pair is tuned over the same grid of four rates around its usual one, by the dev accuracy of seed 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bench import BEFORE, CALR, CONSTANT, Bench
from results import Case, Measurement, Step

NAME = "schedules"
RATIO = 0.98
PAIRS = (
    ("adam", "calr"),
    ("sgd", "calr"),
    ("adam", "clr"),
    ("adam", "cosine"),
    ("adam", "linear"),
    ("adam", "constant"),
    ("adagrad", "constant"),
    ("rmsprop", "constant"),
    ("adadelta", "constant"),
    ("sgd", "constant"),
)
_USUAL = {"adam": 1e-3, "sgd": 0.1, "adagrad": 1e-2, "rmsprop": 1e-3, "adadelta": 1.0}
GRID = (0.3, 1.0, 3.0, 10.0)
"""Rates that are tried, as multiples of the usual one."""
SCRATCH = "scratch"
"""First part of the name of a method that trains a dense model from the start, as training's counterpart."""


def steps(case: Case, earlier: Iterable[Measurement]) -> list[Step]:
    """Seed 0 tries the whole grid, the others the rate that was best there."""
    methods = [("retrain", RATIO)]
    if (case.set, case.model) == ("sst2", "lstm"):
        methods.append((SCRATCH, 0.0))
    found = []
    for kind, ratio in methods:
        for optimizer, schedule in PAIRS:
            method = f"{kind} {optimizer} {schedule}"
            rates = [_USUAL[optimizer] * scale for scale in GRID]
            if case.seed > 0:
                rates = [chosen_rate(case, method, earlier)]
            found += [Step(NAME, method, ratio, float(f"{rate:.6g}")) for rate in rates]
    return found


def chosen_rate(case: Case, method: str, earlier: Iterable[Measurement]) -> float:
    """The rate with the best dev accuracy of seed 0; among equals the one of lower dev loss."""
    tried = [m for m in earlier if m.case == replace(case, seed=0) and (m.arm, m.method) == (NAME, method)]
    return max(tried, key=lambda m: (m.dev_accuracy, -m.dev_loss)).learning_rate


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step."""
    kind, optimizer, schedule = step.method.split()
    recipe = replace(CONSTANT, optimizer=optimizer, schedule=schedule)
    if kind == SCRATCH:
        return bench.measure_new(step, bench.new, replace(recipe, epochs=BEFORE))
    options = CALR.schedule_options if schedule == "calr" else {}
    return bench.measure_compressed(step, replace(recipe, schedule_options=options))
