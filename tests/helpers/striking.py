"""Press Ctrl-C at a moment of a real command, once Python itself has started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DRIVER = r"""
import os, signal, sys, time

from embcompress.__main__ import main

delay = float(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # what shells start in the background ignores it
command, began = os.getpid(), time.monotonic()
if delay >= 0 and os.fork() == 0:
    os.closerange(0, 3)  # whoever reads what the command says must not wait for this process
    time.sleep(delay)
    if os.getppid() == command:  # else it has ended
        os.kill(command, signal.SIGINT)
    os._exit(0)
try:
    main()
finally:
    from embcompress import interruption

    os.write(2, f"\n{time.monotonic() - began} {len(interruption._noted)}".encode())
"""


@dataclass(frozen=True)
class Struck:
    """How a command ended.

    Attributes:
        code: exit code.
        noted: whether it was struck before its end.
        stderr: what it said.
        seconds: from the first line of its ``main`` to the last, without the start and the end of Python.
    """

    code: int
    noted: bool
    stderr: str
    seconds: float


def strike(folder: Path, arguments: tuple[str, ...], delay: float = -1) -> Struck:
    """Run a command in ``folder``, and send it a SIGINT ``delay`` seconds after ``main`` began, or never."""
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, str(delay), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said, _, ours = run.stderr.rpartition("\n")
    seconds, noted = ours.split()
    # A session of training has a handler of its own, and says so by its exit code.
    return Struck(run.returncode, noted != "0" or run.returncode == 130, said, float(seconds))
