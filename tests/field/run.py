"""Every class of transformers, small and random, through every step: ``python tests/field/run.py [CLASS …]``.

Each class that the auto mappings name, can be built small and has a table of tokens is saved, factorized by each
method, expanded, and loaded by ``from_pretrained`` and by ``embcompress.load``; see ``trying``. The exit code is
1 if something went wrong that was not refused.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for ``field``, as in the tests

BATCH = 40
"""Classes that one process tries, so that its memory does not grow with their number."""
SECONDS = 60
"""For a class; a process that needs more is ended."""
MEMORY = 12 << 30
"""Bytes of address space of a process."""
WIDTHS = (52, 7, 10, 8, 16, 8)
"""Columns of the table."""


def classes() -> list[str]:
    """Names of all classes in the auto mappings of transformers."""
    from transformers.models.auto import modeling_auto

    mappings = (value for n, value in vars(modeling_auto).items() if re.fullmatch("MODEL_.*MAPPING_NAMES", n))
    named = (value for mapping in mappings for value in mapping.values())
    return sorted({name for value in named for name in ([value] if isinstance(value, str) else value)})


def work(names: Sequence[str], methods: Sequence[str]) -> None:
    """Try classes in this process; a line of JSON for each goes to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    import transformers
    from field.trying import tried

    import embcompress

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    embcompress.register()
    for name in names:
        signal.alarm(SECONDS)
        found = []
        for method in methods:
            with tempfile.TemporaryDirectory() as folder:
                found.append(dataclasses.asdict(tried(name, method, Path(folder))))
        print(json.dumps(found), flush=True)


def batch(names: Sequence[str], methods: Sequence[str]) -> Iterator[list[dict]]:
    """Try classes in processes of their own; each gives one record a method."""
    left = list(names)
    while left:
        command = [sys.executable, __file__, "--here", "--methods", *methods, "--", *left]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = done.stdout.splitlines()
        yield from map(json.loads, lines)
        left = left[len(lines) :]
        if left:  # the process ended with this one
            slow = done.returncode == -signal.SIGALRM
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            reason = f"took more than {SECONDS} seconds" if slow else f"ended with {done.returncode}: {last}"
            yield [{"name": left.pop(0), "method": "-", "steps": {}, "excluded": reason, "reason": ""}]


def row(cells: Sequence[str]) -> str:
    """A line of the table."""
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def main() -> int:
    """Try what is asked for and print it; 1 if there was a fault."""
    from field.trying import METHODS, STEPS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="all when none is named")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--here", action="store_true", help="in this process, results as JSON")
    asked = parser.parse_args()
    if asked.here:
        work(asked.classes, asked.methods)
        return 0
    names = asked.classes or classes()
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    excluded: dict[str, str] = {}
    totals = {method: collections.Counter() for method in asked.methods}
    print(row(("class", "method", *STEPS)), " reason")
    with ThreadPoolExecutor(asked.jobs) as pool:
        for found in pool.map(lambda names: [*batch(names, asked.methods)], batches):
            for record in (record for records in found for record in records):
                if record["excluded"]:
                    excluded[record["name"]] = record["excluded"]
                    continue
                steps = record["steps"]
                print(row((record["name"], record["method"], *(steps.get(s, "-") for s in STEPS))),
                      f"({record['compared']})", record["reason"], flush=True)  # fmt: skip
                totals[record["method"]].update(f"{step} {answer}" for step, answer in steps.items())
                totals[record["method"]]["tried"] += 1
    print(f"\nnot tried: {len(excluded)}")
    reasons = collections.defaultdict(list)
    for name, reason in excluded.items():
        reasons[reason].append(name)
    for reason, those in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"  {reason}: {', '.join(those[:6])}{f' and {len(those) - 6} more' if len(those) > 6 else ''}")
    print()
    for method, counts in totals.items():
        each = "; ".join(
            f"{step} {counts[f'{step} yes']}"
            + "".join(
                f", {counts[f'{step} {bad}']} {bad}"
                for bad in ("refused", "FAULT")
                if counts[f"{step} {bad}"]
            )
            for step in STEPS
        )
        print(f"{method}: {counts['tried']} tried; {each}")
    return any(answer.endswith("FAULT") for counts in totals.values() for answer in counts)


if __name__ == "__main__":
    sys.exit(main())
