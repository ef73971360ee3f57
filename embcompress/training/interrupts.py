"""Delay Ctrl-C to the end of a training step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """A context in which the first Ctrl-C is only recorded; a second one interrupts at once.

    Call it to learn whether Ctrl-C was pressed. Only the main thread receives signals, so in others it
    does nothing.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._old: object = None
        self._entered = False

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._pressed

    def __enter__(self) -> Interrupts:
        # Leave an ignored signal ignored: Ctrl-C in the foreground must not end a background job.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._old = signal.signal(signal.SIGINT, self._press)
            self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered:
            # None means a handler that was not set from Python and cannot be restored.
            signal.signal(signal.SIGINT, self._old or signal.SIG_DFL)  # type: ignore[arg-type]

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
