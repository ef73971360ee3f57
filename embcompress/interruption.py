"""Ctrl-C at any moment ends a command in one line, also while libraries are being imported.

Python raises KeyboardInterrupt wherever it happens to be. During an import it often comes back as another
exception: dataclasses make a RuntimeError of it, NumPy an ImportError, and C++ may lose the cause. What is
raised in a destructor is printed and forgotten. So the signal itself is noted.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

EXIT_CODE = 130
MESSAGE = "interrupted; no unfinished output was left"

_AGAIN = 0.05
"""Seconds after which an interrupt that was lost is repeated."""

_noted: list[int] = []
"""The signals that came; a list, since a handler must take no lock."""


def watch() -> None:
    """From now on, note every SIGINT before KeyboardInterrupt is raised, until :func:`ignore`.

    A signal that is ignored stays ignored: Ctrl-C in the foreground must not end a background job.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    default = sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if not _noted:
            default(lost)
        elif lost.exc_value is not None and is_interrupt(lost.exc_value, noted=False):
            _repeat()

    signal.signal(signal.SIGINT, _strike)
    sys.unraisablehook = unraisable


def _strike(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - every handler gets both
    _noted.append(number)
    raise KeyboardInterrupt


def _repeat() -> None:
    """Send the signal again a moment later, when the destructor that it was raised in is left."""
    import threading

    again = threading.Timer(_AGAIN, signal.raise_signal, (signal.SIGINT,))
    again.daemon = True
    again.start()


def ignore() -> None:
    """From now on nothing is left to interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_interrupt(error: BaseException, *, noted: bool = True) -> bool:
    """Whether an exception is an interrupt, or what a library made of one.

    Args:
        error: the exception.
        noted: whether any exception counts once a signal was noted: the cause may be lost.
    """
    return (noted and bool(_noted)) or any(isinstance(one, KeyboardInterrupt) for one in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """An exception, and all those that it was raised from or while handling."""
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is other for other in chain):
            chain.append(one)
            waiting += [one.__cause__, one.__context__]
    return chain
