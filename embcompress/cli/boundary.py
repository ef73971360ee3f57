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
        """Run the command line; where its help cannot be printed, it is an error like others."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            say(f"Error: {_told(error)}")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return self._invoke(ctx)
        except EmbcompressError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, MESSAGE, EXIT_CODE)
        except BrokenPipeError:
            ctx.exit(1)  # whoever read our output is gone
        except OSError as error:
            _fail(ctx, _told(error), 1)
        except MemoryError:
            _fail(ctx, _NO_MEMORY, 1)
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            _fail(ctx, _NO_MEMORY, 1)  # usually none is left for the thread's stack

    def _invoke(self, ctx: click.Context) -> Any:
        """Run the command, with every exception that a library made of an interrupt as what it was."""
        try:
            return super().invoke(ctx)
        except (Interrupted, click.exceptions.Exit, click.ClickException):
            raise
        except BaseException as error:
            if is_interrupt(error):
                raise KeyboardInterrupt from error
            raise


def _told(error: OSError) -> str:
    """An error of the system in one line, with its file and what can be done."""
    place = f"{error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "") if error.filename != STDOUT else ""
    return printable(f"{place}{error.strerror or error}{'; ' if remedy else ''}{remedy}")


def _fail(ctx: click.Context, message: str, code: int) -> None:
    say(f"Error: {message}")
    ctx.exit(code)
