"""Runs the experiments on Acharya et al. 2019 (arXiv:1811.00641) and keeps every result in a CSV file.

    python examples/paper/run.py --data DIR [--arm compression|schedules|ablations|small|cost|all] [--seeds 5]

DIR holds sst2/, trec6/, snips/ and vectors/. What a result file holds already is not measured again, so a
run that was stopped goes on where it was. All of seed 0 comes first: a run stopped early has every method
with fewer seeds. To use several cores, start one run a network or set (--model, --set); they may share a
folder.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: results and times are of one thread

import ablations
import compression
import schedules
import small
import tables
import typed
from bench import Bench
from results import MODELS, SETS, STARTS, Case, Cost, Measurement, ResultFile, Step

ARMS = {arm.NAME: arm for arm in (compression, schedules, ablations, small, typed)}
_RETRAINED_SETS = ("sst2", "trec6")
"""Sets of the arms that look at retraining; both start from word2vec."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    for seed in range(options.seeds):  # seed 0 chooses the learning rates of the others
        for start, model, texts in itertools.product(options.start, options.model, options.set):
            _measure(Case(texts, model, start, seed), options)
    if options.arm in ("cost", "all"):
        _measure_costs(options)
    tables.render(options.out)


def _measure(case: Case, options: argparse.Namespace) -> None:
    """Do the steps of a case that are still to do."""
    files = {
        arm: ResultFile(options.out / f"{arm}.csv", Measurement)
        for arm in ARMS
        if options.arm in (arm, "all") and _takes(arm, case)
    }
    todo = [step for arm, file in files.items() for step in _missing(arm, case, file.read())]
    if options.method:
        todo = [step for step in todo if step.method in options.method]
    bench = Bench(case, options.data, options.out / "cache") if todo else None
    for step in todo:
        row = ARMS[step.arm].measure(step, bench)
        files[step.arm].append(row)
        print(
            f"{time.strftime('%H:%M:%S')} {row.set:5} {row.model:4} {row.start:8} seed {row.seed} "
            f"{row.arm}: {row.method} {row.ratio:g} lr {row.learning_rate:g}: dev {row.dev_accuracy:.4f} "
            f"test {row.test_accuracy:.4f} (rank {row.rank}, epoch {row.epoch}, {row.seconds:.1f} s)",
            flush=True,
        )


def _takes(arm: str, case: Case) -> bool:
    if arm == typed.NAME or case.start == typed.FRESH:
        return arm == typed.NAME and case.start in (typed.FRESH, "word2vec")
    return arm in (compression.NAME, small.NAME) or (case.set in _RETRAINED_SETS and case.start == "word2vec")


def _missing(arm: str, case: Case, rows: list[Measurement]) -> Iterator[Step]:
    finished = {row.step for row in rows if row.case == case}
    return (step for step in ARMS[arm].steps(case, rows) if step not in finished)


def _measure_costs(options: argparse.Namespace) -> None:
    import cost

    file = ResultFile(options.out / f"{cost.NAME}.csv", Cost)
    measured = {(row.set, row.model) for row in file.read()}
    for texts, model in itertools.product(options.set, options.model):
        if (texts, model) not in measured:
            bench = Bench(Case(texts, model, "word2vec", 0), options.data, options.out / "cache")
            for row in cost.measure(bench):
                file.append(row)
                print(f"{row.set} {row.model} {row.method} {row.ratio:g}: {row.latency_1:.0f} µs", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of sst2/, trec6/, snips/, vectors/")
    parser.add_argument("--arm", choices=[*ARMS, "cost", "all"], default="all")
    parser.add_argument("--set", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--start", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--method", nargs="+", help="methods of the arms to measure now; all by default")
    parser.add_argument("--seeds", type=int, default=5, help="0 to this number, excluded")
    parser.add_argument("--out", type=Path, default=tables.RESULTS, help="folder of the CSV files")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
