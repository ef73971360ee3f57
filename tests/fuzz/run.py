"""Coverage-guided fuzzing of the readers with atheris: ``python tests/fuzz/run.py [TARGET …] [--seconds N]``.

Each target runs in a process of its own, begins with its corpus and with what earlier runs found under
``build/fuzz``, and stops at the first input that breaks it, which is left there. Such an input goes into
the corpus, made as small as can be, together with the change that mends the reader.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"

LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=2048", "-print_final_stats=1")
"""Seconds and memory that an input may take, and its length: readers must be modest, whatever a file says."""

INSTRUMENTED = ("embcompress", "json", "zipfile", "gzip", "csv", "ast", "numpy.lib._format_impl")
"""Whose branches guide the fuzzer."""


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=[*INSTRUMENTED], enable_loader_override=False):
        from targets import CORPUS, TARGETS

    warnings.simplefilter("error")  # one would be a line on stderr that nobody wrote
    target = TARGETS[name]
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    # In memory where there is such a place: a disk makes each of a million small writes wait.
    shared = Path("/dev/shm")  # noqa: S108 - a new folder is made in it
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:

        def run(data: bytes) -> None:
            target(data, Path(folder))

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            return target.mutate(data, most, seed, atheris.Mutate) if target.mutate else b""

        options = [f"-max_total_time={seconds}", f"-artifact_prefix={found}-", *LIMITS]
        atheris.Setup(
            [sys.argv[0], *options, str(found), str(CORPUS / name)],
            run,
            **({"custom_mutator": mutate} if target.mutate else {}),
        )
        atheris.Fuzz()


def main() -> int:
    """Fuzz the targets that are named, or all, one after another; 1 if one of them broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all when none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--here", action="store_true", help="in this process, one target")
    asked = parser.parse_args()
    if asked.here:
        fuzz(asked.targets[0], asked.seconds)
    from targets import TARGETS  # not before: what is imported already cannot be instrumented

    broken = []
    for name in asked.targets or TARGETS:
        print(f"== {name}", flush=True)
        command = [sys.executable, __file__, name, "--here", "--seconds", str(asked.seconds)]
        if subprocess.run(command, check=False).returncode:
            broken.append(name)
    print(f"broken: {', '.join(broken)}; see {FOUND.relative_to(ROOT)}" if broken else "nothing found")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
