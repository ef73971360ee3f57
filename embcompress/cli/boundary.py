"""The one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from embcompress.cli.streams import drop_stdout, say, stdout_is_full
from embcompress.errors import EmbcompressError, printable

_INTERRUPTED = 130
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
            drop_stdout()
            say(f"Error: stdout: {error.strerror or error}")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return super().invoke(ctx)
        except EmbcompressError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; no unfinished output was left", _INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output is gone; Python would complain again when it flushes.
            drop_stdout()
            ctx.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)
            remedy = _REMEDIES.get(error.errno or 0, "")
            if not place and stdout_is_full():
                place, remedy = "stdout: ", ""
            _fail(ctx, printable(f"{place}{reason}{'; ' if remedy else ''}{remedy}"), 1)
        except MemoryError:
            _fail(ctx, _NO_MEMORY, 1)
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            _fail(ctx, _NO_MEMORY, 1)  # usually none is left for the thread's stack


def _fail(ctx: click.Context, message: str, code: int) -> None:
    say(f"Error: {message}")
    ctx.exit(code)
