"""Ctrl-C between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """While it is entered, the first Ctrl-C is only noted; a second one interrupts at once.

    Calling it tells whether there was one. Only the main thread is asked by the system, so
    elsewhere it changes nothing.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._old: object = None
        self._entered = False

    def __call__(self) -> bool:
        """Whether there was one."""
        return self._pressed

    def __enter__(self) -> Interrupts:
        # What is ignored stays so: a background job does not end with the foreground's Ctrl-C.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._old = signal.signal(signal.SIGINT, self._press)
            self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered:
            # None stands for a handler that was not set from Python and cannot be set again.
            signal.signal(signal.SIGINT, self._old or signal.SIG_DFL)  # type: ignore[arg-type]

    def _press(self, _number: int, _frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
