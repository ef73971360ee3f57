"""Runs the experiments on Acharya et al. 2019 (arXiv:1811.00641) and keeps every result in a CSV file.

    python examples/paper/run.py --data DIR [--arm compression|schedules|ablations|cost|all] [--seeds 5]

DIR holds sst2/, trec6/, snips/ and vectors/. What a result file holds already is not measured again, so a
run that was stopped goes on where it was. All of seed 0 comes first: a run stopped early has every method
with fewer seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import ablations
import compression
import cost
import schedules
import tables
import torch
from bench import Bench
from cases import MODELS, SETS, STARTS, Case
from results import Cost, Measurement, ResultFile, Step

ARMS = {arm.NAME: arm for arm in (compression, schedules, ablations)}
_RETRAINED_SETS = ("sst2", "trec6")
"""Sets of the arms that look at retraining; both start from word2vec."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h

Queue = SimpleQueue  # of Measurement


@dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Attributes:
        case: where.
        steps: what.
        data: folder of texts and vectors.
        cache: folder of dense models.
    """

    case: Case
    steps: tuple[Step, ...]
    data: Path
    cache: Path


def main() -> None:
    options = _options()
    _settle()
    arms = [*ARMS, "cost"] if options.arm == "all" else [options.arm]
    files = {arm: ResultFile(options.out / f"{arm}.csv", Measurement) for arm in arms if arm in ARMS}
    done: dict[Case, list[Measurement]] = {}
    for row in itertools.chain.from_iterable(file.read() for file in files.values()):
        done.setdefault(row.case, []).append(row)
    queue: Queue = get_context("spawn").SimpleQueue()
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), _start_process, (queue,)) as pool:
        # Seed 0 chooses the learning rates of the others, so these wait for it.
        for seeds in (range(1), range(1, options.seeds)):
            cases = [Case(*rest, seed) for seed in seeds for rest in _cases(options)]
            jobs = [_job(case, files, done, options) for case in cases]
            _work(pool, [job for job in jobs if job.steps], queue, files, done)
    if "cost" in arms:
        _measure_costs(options)
    tables.render(options.out)


def _cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    for start, model, texts in itertools.product(options.start, options.model, options.set):
        yield texts, model, start


def _job(
    case: Case,
    files: dict[str, ResultFile[Measurement]],
    done: dict[Case, list[Measurement]],
    options: argparse.Namespace,
) -> Job:
    """The steps of a case that are still to do."""
    steps = []
    for arm in files:
        if arm == compression.NAME or (case.set in _RETRAINED_SETS and case.start == "word2vec"):
            earlier = done.get(Case(case.set, case.model, case.start, 0), [])
            steps += ARMS[arm].steps(case, earlier)
    finished = {row.step for row in done.get(case, [])}
    return Job(case, tuple(s for s in steps if s not in finished), options.data, options.out / "cache")


def _work(
    pool: ProcessPoolExecutor,
    jobs: Iterable[Job],
    queue: Queue,
    files: dict[str, ResultFile[Measurement]],
    done: dict[Case, list[Measurement]],
) -> None:
    """Give jobs to the processes and write what comes back; this process alone writes."""
    futures = [pool.submit(_do, job) for job in jobs]
    for row in _arriving(queue, futures):
        files[row.arm].append([row])
        done.setdefault(row.case, []).append(row)
        print(
            f"{time.strftime('%H:%M:%S')} {row.set:5} {row.model:4} {row.start:8} seed {row.seed} "
            f"{row.arm}: {row.method} {row.ratio:g} lr {row.learning_rate:g}: dev {row.dev_accuracy:.4f} "
            f"test {row.test_accuracy:.4f} (rank {row.rank}, epoch {row.epoch}, {row.seconds:.1f} s)",
            flush=True,
        )
    for future in futures:
        future.result()


def _arriving(queue: Queue, futures: list[Future[None]]) -> Iterator[Measurement]:
    """Rows as they are measured, until all futures are done."""
    while True:
        last = all(future.done() for future in futures)
        while not queue.empty():
            yield queue.get()
        if last:
            return
        time.sleep(0.2)


_results: Queue


def _start_process(queue: Queue) -> None:
    global _results
    _results = queue
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _settle()


def _end_with(parent: int) -> None:
    """End this process when the one that gives it work has been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _settle() -> None:
    """One thread; and what is freed stays with the process, where the C library can be told so.

    A gradient as large as a table is made at every step. glibc gives such memory back at once, and the
    page faults of the next one took up to two thirds of a step.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _do(job: Job) -> None:
    bench = Bench(job.case, job.data, job.cache)
    for step in job.steps:
        _results.put(ARMS[step.arm].measure(step, bench))


def _measure_costs(options: argparse.Namespace) -> None:
    file = ResultFile(options.out / "cost.csv", Cost)
    measured = {(row.set, row.model) for row in file.read()}
    for texts, model in itertools.product(options.set, options.model):
        if (texts, model) not in measured:
            rows = cost.measure(Case(texts, model, "word2vec", 0), options.data)
            file.append(rows)
            for row in rows:
                print(f"{row.set} {row.model} {row.method} {row.ratio:g}: {row.latency_1:.0f} µs", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of sst2/, trec6/, snips/, vectors/")
    parser.add_argument("--arm", choices=[*ARMS, "cost", "all"], default="all")
    parser.add_argument("--set", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--start", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seeds", type=int, default=5, help="0 to this number, excluded")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
