"""The command line: parse, call a workflow, show its result; the one place errors become exit codes.

Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embcompress.errors import EmbcompressError, printable
from embcompress.version import __version__

if TYPE_CHECKING:
    from embcompress.reports.record import Report
    from embcompress.reports.results import ExpandResult, FactorizeResult
    from embcompress.reports.terminal import TerminalProgress

F = TypeVar("F", bound=Callable[..., Any])

_INTERRUPTED = 130
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere with -o",
    errno.EDQUOT: "free some of the quota, or write elsewhere with -o",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write elsewhere with -o",
    errno.EACCES: "see its permissions, or write elsewhere with -o",
    errno.EPERM: "see its permissions, or write elsewhere with -o",
    errno.EROFS: "write elsewhere with -o",
}


class Boundary(click.Group):
    """A group in which every expected error becomes one line on stderr and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command inside the error boundary."""
        try:
            return super().invoke(ctx)
        except EmbcompressError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; no unfinished output was left", _INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output left; Python would complain once more while flushing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)
            remedy = _REMEDIES.get(error.errno or 0, "")
            _fail(ctx, printable(f"{place}{reason}{'; ' if remedy else ''}{remedy}"), 1)
        except MemoryError:
            _fail(ctx, "out of memory; close other programs or take a larger machine", 1)


def _fail(ctx: click.Context, message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    ctx.exit(code)


def parse_size(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> int | None:
    """A number of bytes from text such as ``25MB``, ``1.5GiB`` or ``4000000``; an option callback.

    Raises:
        click.BadParameter: the text is no size.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*((?:[kmg]i?)?)b?\s*", value.lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is no size; write 25MB, 1.5GiB or a number of bytes", ctx, param)
    return int(float(match[1]) * _UNITS[match[2]])


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="embcompress")
def cli() -> None:
    """Make the embedding tables of saved models small.

    Reads a .safetensors file, a PyTorch checkpoint or a Hugging Face directory; never runs code
    from it.

    Exit codes: 0 done, 1 failed, 2 usage, 3 input unsafe or corrupt, 4 target not reachable, 130
    interrupted.
    """


_source = click.argument("path", type=click.Path(path_type=Path, readable=False))
_output = click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write.")
_force = click.option("--force", is_flag=True, help="Replace an existing output.")
_keys = click.option("--key", "keys", multiple=True, metavar="NAME", help="Table to take; repeats.")


def _output_options(command: F) -> F:
    """The options every command shares."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Print each stage with its time to stderr."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout."),
    ):
        command = option(command)
    return command


@cli.command()
@_source
@click.option("--rank", type=click.IntRange(min=1), help="Target: components kept.")
@click.option(
    "--ratio", type=float, help="Target: fraction of the table's bytes removed, 0.9 = ten times smaller."
)
@click.option("--energy", type=float, help="Target: share of the squared singular values kept.")
@click.option("--max-error", type=float, help="Target: largest relative Frobenius error.")
@click.option(
    "--max-size", callback=parse_size, metavar="SIZE", help="Target: size of the written model, e.g. 25MB."
)
@_output
@_keys
@click.option("--all", "all_tables", is_flag=True, help="Take every token table.")
@click.option(
    "--dtype", help="Type of the factors: float32, float16, bfloat16 or float64.  [default: the table's]"
)
@click.option(
    "--split-scale",
    type=click.Choice(["left", "even", "right"]),
    default="left",
    show_default=True,
    help="Where the singular values go.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@_force
@_output_options
def factorize(path: Path, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Write a smaller copy of the checkpoint PATH, its embedding table replaced by two factors.

    Give exactly one target. Without -o the output stands beside the input, named after the target.
    """
    from embcompress import workflows

    with _progress(quiet=quiet, verbose=verbose) as progress:
        result = workflows.factorize(path, progress=progress, **options)
    _show(result, as_json=as_json, quiet=quiet)


@cli.command()
@_source
@click.option(
    "--against", type=click.Path(path_type=Path), help="Original to measure a compressed PATH against."
)
@_keys
@_output_options
def report(
    path: Path, *, against: Path | None, keys: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Show where the bytes of the checkpoint PATH are and what each ratio would cost."""
    from embcompress import workflows

    with _progress(quiet=quiet, verbose=verbose) as progress:
        result = workflows.report(path, against=against, keys=keys, progress=progress)
    _show(result, as_json=as_json, quiet=quiet)


@cli.command()
@_source
@_output
@_force
@_output_options
def expand(
    path: Path, *, output: Path | None, force: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Write a copy of the compressed checkpoint PATH with dense tables again."""
    from embcompress import workflows

    with _progress(quiet=quiet, verbose=verbose) as progress:
        result = workflows.expand(path, output=output, force=force, progress=progress)
    _show(result, as_json=as_json, quiet=quiet)


def _progress(*, quiet: bool, verbose: bool) -> AbstractContextManager[TerminalProgress]:
    from embcompress.reports.terminal import TerminalProgress

    return TerminalProgress(bars=not quiet, verbose=verbose)


def _show(result: Report | FactorizeResult | ExpandResult, *, as_json: bool, quiet: bool) -> None:
    """Notes to stderr, the result to stdout as JSON or as a person reads it."""
    for note in () if quiet else result.notes:
        click.echo(f"note: {printable(note, 2000)}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    elif not quiet:
        from embcompress.reports.terminal import show

        show(result)


def main() -> None:
    """Entry point of the ``embcompress`` command."""
    # OpenBLAS threads spin for 20 ms after each product, on the cores where the input is hashed and
    # copied meanwhile; 2**4 cycles is the shortest they can. It must be set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows a ? for a bar, not a traceback
    cli(prog_name="embcompress")
