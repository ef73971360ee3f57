"""Progress callbacks for work that takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; each stage counts in its own unit (rows or bytes)."""


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""


class Steps:
    """Counts the steps of one stage and reports the sum to a progress callback; thread-safe.

    Args:
        progress: the callback.
        stage: name of the stage.
        total: steps of the whole stage.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Report ``count`` more steps; the sum never exceeds the total, even if a stage is repeated."""
        with self._lock:
            self._done = min(self._done + count, self._total)
            self._progress(self._stage, self._done, self._total)
