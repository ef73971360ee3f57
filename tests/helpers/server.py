"""A process that has its modules loaded and answers requests, one line of JSON each way.

Starting Python with torch takes seconds, so that tests that need a process of their own share one and work in
forks of it.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import embcompress


class Server:
    """A Python program that answers each line on its stdin with a line on its stdout.

    It ends with its stdin, so with the process that asks.
    """

    def __init__(self, program: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it; ``program`` is what follows ``python`` on the command line."""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, *program],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(embcompress.__file__).parents[1]),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        atexit.register(self._close)

    def ask(self, request: object) -> Any:
        """The answer to ``request``; both are what JSON holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise AssertionError(self._errors.read())
        return json.loads(answer)

    def _close(self) -> None:
        with self._errors, self._process:
            pass
