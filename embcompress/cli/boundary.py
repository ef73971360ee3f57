"""The one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import click

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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return self._invoke(ctx)
        except EmbcompressError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, MESSAGE, EXIT_CODE)
        except BrokenPipeError:
            # Whoever read our output is gone; Python would complain again when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)
            remedy = _REMEDIES.get(error.errno or 0, "")
            _fail(ctx, printable(f"{place}{reason}{'; ' if remedy else ''}{remedy}"), 1)
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


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    ctx.exit(code)
