"""The one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from embcompress.cli.streams import STDOUT, say
from embcompress.errors import EmbcompressError, Interrupted, printable
from embcompress.interruption import EXIT_CODE, MESSAGE, is_interrupt

_NO_MEMORY = "out of memory; close other programs or use a larger machine"
_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere with -o",
    errno.EDQUOT: "free some of the quota, or write elsewhere with -o",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write elsewhere with -o",
    errno.EACCES: "check its permissions, or write elsewhere with -o",
    errno.EPERM: "check its permissions, or write elsewhere with -o",
    errno.EROFS: "write elsewhere with -o",
}


class Boundary(click.Group):
    """A group in which every expected error becomes one line on stderr and its exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line and exit, as any click command does; with errors as told here."""
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        kwargs["standalone_mode"] = False  # else click would say "Aborted!" and end with 1
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except BaseException as error:
            ending = _ending(error)
            if ending is None:
                raise
            message, code = ending
            say(message)
        sys.exit(code if isinstance(code, int) else 0)


def _ending(error: BaseException) -> tuple[str, int] | None:
    """What is said about an error, and the exit code; None for one that nobody expects."""
    # Whatever a library makes of an interrupt is one, but for what says how to go on after it.
    if is_interrupt(error) and not isinstance(error, Interrupted | SystemExit):
        return f"Error: {MESSAGE}", EXIT_CODE
    if isinstance(error, EmbcompressError):
        return f"Error: {error}", error.exit_code
    if isinstance(error, OSError):
        return f"Error: {_told(error)}", 1
    # Where no thread can be started, usually no memory is left for its stack.
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        return f"Error: {_NO_MEMORY}", 1
    return None


def _told(error: OSError) -> str:
    """An error of the system in one line, with its file and what can be done."""
    place = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "") if error.filename != STDOUT else ""
    return printable(f"{place}{error.strerror or error}{'; ' if remedy else ''}{remedy}")
