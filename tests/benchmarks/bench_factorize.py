"""Time, memory and error of ``embcompress factorize`` on a large checkpoint, beside what else one could do.

    python tests/benchmarks/bench_factorize.py       # 1.96 GB, three rounds: some minutes, 4 GB of disk
    python tests/benchmarks/bench_factorize.py --rows 20000 --runs 1    # a quick look

Makes a safetensors checkpoint with a 250,002×768 float32 table and 24 other matrices (kept in build/bench
for the next time) and runs, as whole processes, alternating, round by round:

* ``torch_script.py svd``: the script a user writes today, with ``torch.linalg.svd``;
* ``torch_script.py svd_lowrank``: the same with ``torch.svd_lowrank``;
* ``cp`` of the file: what moving the bytes costs at least;
* ``embcompress factorize --ratio 0.5``, which also measures the error of what it wrote and syncs it to disk;
  the others do neither, and that difference stands against it here.

Before each run the pending writes are flushed, so that no run pays for the one before it; the input is in the
page cache for all. Figures are medians over the rounds; compare the ratios, not the seconds of two machines.
Writing to the page cache is uneven (``cp`` alone can differ by a factor of five between rounds), so the range
is printed too: give more rounds where it is wide.
The errors are measured by ``big_checkpoint.py`` on the written files, not taken from what a tool says.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from measuring import (
    CACHE,
    EMBCOMPRESS,
    HERE,
    PYTHON,
    Run,
    median_peak_mb,
    median_seconds,
    print_table,
    run,
    seconds_range,
    verdict,
)

COPY, SVD, LOWRANK, OURS = (
    "`cp`",
    "script with `torch.linalg.svd`",
    "script with `torch.svd_lowrank`",
    "embcompress",
)
LEAST_SPEEDUP, MOST_PEAK_MB, MOST_COPIES = 4.0, 250.0, 3.5


def commands(source: Path, target: Path) -> dict[str, tuple[str, ...]]:
    script = str(HERE / "torch_script.py")
    return {
        SVD: (PYTHON, script, "svd", str(source), str(target)),
        LOWRANK: (PYTHON, script, "svd_lowrank", str(source), str(target)),
        COPY: ("cp", str(source), str(target)),
        OURS: (*EMBCOMPRESS, "factorize", str(source), "--ratio", "0.5", "--force", "-q", "-o", str(target)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=250_002, help="rows of the table (default: 250002)")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3)")
    arguments = parser.parse_args()

    CACHE.mkdir(parents=True, exist_ok=True)
    source = CACHE / f"table-{arguments.rows}.safetensors"
    target = CACHE / "output.safetensors"
    helper = str(HERE / "big_checkpoint.py")
    if not source.exists():
        run((PYTHON, helper, "make", str(source), "--rows", str(arguments.rows)))
    run(("cp", str(source), "/dev/null"))  # into the page cache, for all alike

    runs: dict[str, list[Run]] = {name: [] for name in commands(source, target)}
    errors: dict[str, float] = {}
    for _ in range(arguments.runs):
        for name, command in commands(source, target).items():
            os.sync()
            runs[name].append(run(command))
            if name != COPY and name not in errors:  # the same in every round: the methods are deterministic
                measured = json.loads(run((PYTHON, helper, "error", str(source), str(target))).output)
                errors[name], optimum = measured[str(target)], measured["optimum"]
            target.unlink()

    seconds = {name: median_seconds(runs[name]) for name in runs}
    peak = {name: median_peak_mb(runs[name]) for name in runs}
    size = source.stat().st_size / 1e9
    print(f"{size:.2f} GB, table {arguments.rows:,}×768, ratio 0.5, medians of {arguments.runs}:\n")
    print_table(
        ("", "wall s", "least–most", "peak RSS MB", "× `cp`", "× SVD script", "relative error", "/ optimum"),
        [
            (
                name,
                f"{seconds[name]:.2f}",
                seconds_range(runs[name]),
                f"{peak[name]:,.0f}",
                f"{seconds[name] / seconds[COPY]:.2f}",
                f"{seconds[name] / seconds[SVD]:.3f}",
                f"{errors[name]:.6f}" if name in errors else "–",
                f"{errors[name] / optimum:.7f}" if name in errors else "–",
            )
            for name in runs
        ],
    )
    speedup, copies = seconds[SVD] / seconds[OURS], seconds[OURS] / seconds[COPY]
    print_table(
        ("embcompress", "target", "measured", ""),
        [
            (
                "faster than the SVD script",
                f"≥ {LEAST_SPEEDUP:g}×",
                f"{speedup:.2f}×",
                verdict(speedup >= LEAST_SPEEDUP),
            ),
            (
                "peak RSS",
                f"≤ {MOST_PEAK_MB:g} MB",
                f"{peak[OURS]:.0f} MB",
                verdict(peak[OURS] <= MOST_PEAK_MB),
            ),
            ("time in copies", f"≤ {MOST_COPIES:g}", f"{copies:.2f}", verdict(copies <= MOST_COPIES)),
        ],
    )


if __name__ == "__main__":
    main()
