"""Ctrl-C at any moment ends a command in one line, also while libraries are being imported.

Python raises KeyboardInterrupt wherever it happens to be. During an import it often comes back as another
exception (dataclasses make a RuntimeError of it, NumPy an ImportError), or a library goes on without the
module that it could not import. So the first Ctrl-C during an import waits until the import is done; a
second one does not. What is raised in a destructor would be printed and forgotten, and is repeated.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 130
MESSAGE = "interrupted; no unfinished output was left"

_PAUSE = 0.02
"""Seconds after which an interrupt that could not be raised is tried again."""

_IMPORTING = "<frozen importlib._bootstrap>"
"""File name of the frames of Python's import system."""

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
        if lost.exc_value is not None and is_interrupt(lost.exc_value, noted=False):
            signal.setitimer(signal.ITIMER_REAL, _PAUSE)
        elif not _noted:
            default(lost)

    sys.unraisablehook = unraisable
    signal.signal(signal.SIGALRM, lambda _, frame: _interrupt(frame))
    signal.signal(signal.SIGINT, _strike)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block, for steps that must not be left half done.

    Handlers are exchanged and no signals blocked: a thread that does not block them would take them, and
    Python runs the handler in the main thread all the same. Does nothing outside the main thread: only
    there can handlers be set and is KeyboardInterrupt raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGALRM):  # the second repeats the first
            handlers[number] = signal.signal(number, lambda now, _: came.append(now)) or signal.SIG_DFL
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def ignore() -> None:
    """From now on nothing is left to interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def came() -> bool:
    """Whether a signal was noted: it may have come too late to be raised, or been lost."""
    return bool(_noted)


def is_interrupt(error: BaseException, *, noted: bool = True) -> bool:
    """Whether an exception is an interrupt, or what a library made of one.

    Args:
        error: the exception.
        noted: whether any exception counts once a signal was noted: the cause may be lost.
    """
    return (noted and bool(_noted)) or any(isinstance(one, KeyboardInterrupt) for one in _chain(error))


def _strike(number: int, frame: FrameType | None) -> None:
    _noted.append(number)
    if len(_noted) > 1:
        raise KeyboardInterrupt
    _interrupt(frame)


def _interrupt(frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or try again in a moment if ``frame`` is within an import."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            signal.setitimer(signal.ITIMER_REAL, _PAUSE)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


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
