"""Standard streams that may be full, as ``> file`` on a full disk is, or whose reader is gone."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import click

STDOUT, STDERR = "stdout", "stderr"


class _Stream(io.FileIO):
    """A standard stream that fails once at most: Python writes again what is left at exit."""

    def __init__(self, fd: int, label: str) -> None:
        super().__init__(fd, "wb", closefd=False)
        self._label = label
        self.failed = False

    def write(self, data: Any, /) -> int:
        """Write, or drop what cannot be written.

        Raises:
            OSError: for the first time on standard output, with its name. On standard error it never is:
                no note or progress line is worth losing an output for.
        """
        try:
            return len(data) if self.failed else super().write(data) or 0
        except OSError as error:
            self.failed = True
            if self._label == STDOUT:
                error.filename = STDOUT
                raise
            return len(data)


def guard_streams() -> None:
    """Put a :class:`_Stream` below ``sys.stdout`` and ``sys.stderr``."""
    for label in (STDOUT, STDERR):
        old = getattr(sys, label)
        if isinstance(old, io.TextIOWrapper):
            # An ASCII terminal shows ? for a bar, not a traceback.
            errors = "replace" if label == STDOUT else old.errors
            raw = io.BufferedWriter(_Stream(old.fileno(), label))
            setattr(
                sys, label, io.TextIOWrapper(raw, old.encoding, errors, line_buffering=old.line_buffering)
            )


def say(message: str) -> None:
    """Print an error to standard error, or to standard output if the former is full."""
    click.echo(message, err=True)
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if isinstance(raw, _Stream) and raw.failed:
        with contextlib.suppress(OSError):
            click.echo(message)
