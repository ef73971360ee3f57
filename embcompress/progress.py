"""How long work tells how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit (rows or bytes) is the stage's own."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback of callers that show none."""


class Steps:
    """Adds up the steps of one stage for a progress callback; may be called from several threads.

    Args:
        progress: whom to tell.
        stage: what is being done.
        total: how much there is to do.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Tell of ``count`` more; a stage that is done again stays at its end."""
        with self._lock:
            self._done = min(self._done + count, self._total)
            self._progress(self._stage, self._done, self._total)
