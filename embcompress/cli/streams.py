"""Streams that cannot be written to: a full disk behind ``> file``, or a reader that is gone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

import click


class _Patient(io.FileIO):
    """Standard error that never fails: no note or progress line is worth losing an output for."""

    failed = False

    def write(self, data: Any, /) -> int:
        """Write, or drop what cannot be written."""
        try:
            return super().write(data) or 0
        except OSError:
            type(self).failed = True
            return len(data)


def make_stderr_patient() -> None:
    """Let writes to standard error fail silently from here on."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        stream = io.BufferedWriter(_Patient(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(
            stream, sys.stderr.encoding, sys.stderr.errors, line_buffering=True, write_through=True
        )


def say(message: str) -> None:
    """Print an error to standard error, or to standard output if the former is full."""
    click.echo(message, err=True)
    if _Patient.failed:
        try:
            click.echo(message)
        except OSError:
            drop_stdout()


def stdout_is_full() -> bool:
    """Whether standard output holds something that it cannot get rid of; it is then dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        return True
    return False


def drop_stdout() -> None:
    """Send standard output nowhere, since Python would complain again when it flushes at exit."""
    with contextlib.suppress(OSError):  # a stream of a test has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
