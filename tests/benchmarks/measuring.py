"""What the benchmarks share: running whole processes, taking medians, printing Markdown tables.

Nothing here imports numpy, and the benchmarks that measure memory import it in child processes only: Linux
counts the memory that a parent holds at the moment of the fork into the child's peak, so a small parent is
what makes a small child measurable.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "bench"
PYTHON = sys.executable
EMBCOMPRESS = (PYTHON, "-m", "embcompress")


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: wall-clock time from the fork to the exit.
        peak_mb: largest resident set, in units of 1e6 bytes.
        output: what it wrote to stdout.
    """

    seconds: float
    peak_mb: float
    output: str


def run(command: Sequence[str]) -> Run:
    """Runs a command to its end and measures it.

    Raises:
        SystemExit: the command failed; a benchmark of a failure would mean nothing.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"exit code {process.returncode} from: {' '.join(command)}")
    return Run(seconds, usage.ru_maxrss * 1024 / 1e6, output)  # Linux gives KiB


def median_seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def seconds_range(runs: Sequence[Run]) -> str:
    seconds = [run.seconds for run in runs]
    return f"{min(seconds):.2f}–{max(seconds):.2f}"


def median_peak_mb(runs: Sequence[Run]) -> float:
    return statistics.median(run.peak_mb for run in runs)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table; the first column is text, the others are set right."""
    print("| " + " | ".join(head) + " |")
    print("|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"
