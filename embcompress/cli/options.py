"""Options that several commands share, and how every command shows what it did."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from embcompress.errors import printable

if TYPE_CHECKING:
    from embcompress.reports.terminal import TerminalProgress

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


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


_FILE = click.Path(path_type=Path)

source = click.argument("path", type=click.Path(path_type=Path, readable=False))
output = click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write.")
force = click.option("--force", is_flag=True, help="Replace an existing output.")
keys = click.option("--key", "keys", multiple=True, metavar="NAME", help="Table to take; repeats.")


def output_options(command: F) -> F:
    """The options every command shares."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Print each stage with its time to stderr."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout."),
    ):
        command = option(command)
    return command


def targets(command: F) -> F:
    """The options that say how small a table is to become; exactly one of the first five is given."""
    for option in reversed((
        click.option("--rank", type=click.IntRange(min=1), help="Target: components kept."),
        click.option(
            "--ratio",
            type=float,
            help="Target: fraction of the table's bytes removed, 0.9 = ten times smaller.",
        ),
        click.option("--energy", type=float, help="Target: share of the squared singular values kept."),
        click.option("--max-error", type=float, help="Target: largest relative Frobenius error."),
        click.option(
            "--max-size",
            callback=parse_size,
            metavar="SIZE",
            help="Target: size of the written model, e.g. 25MB.",
        ),
        click.option(
            "--method",
            default="svd",
            show_default=True,
            help="How: svd, pq, lplr, int8, int4, int3, screen, screen+METHOD, or auto for the one that is "
            "foretold to lose least.",
        ),
        click.option(
            "--dtype",
            help="Type of the factors: float32, float16, bfloat16 or float64.  [default: the table's]",
        ),
        click.option(
            "--split-scale",
            type=click.Choice(["left", "even", "right"]),
            default="left",
            show_default=True,
            help="Where the singular values go.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def weighting(command: F) -> F:
    """The options that say how much each token counts."""
    for option in reversed((
        click.option("--weights", type=_FILE, help="Token counts: .csv, .tsv, .txt or .npy."),
        click.option("--corpus", type=_FILE, help="Texts to count tokens in: .csv or .txt."),
        click.option(
            "--text-column", default="text", show_default=True, help="Header of the texts of a .csv."
        ),
        click.option(
            "--smoothing",
            type=float,
            default=0.5,
            show_default=True,
            help="Exponent s of a token's weight (count+1)^s; 0 weighs all alike.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


class Result(Protocol):
    """What every workflow returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """The result, ready for JSON."""


def progress(*, quiet: bool, verbose: bool) -> AbstractContextManager[TerminalProgress]:
    """The bars on stderr of a command's work."""
    from embcompress.reports.terminal import TerminalProgress

    return TerminalProgress(bars=not quiet, verbose=verbose)


def show(result: Result, *, as_json: bool, quiet: bool, screen: str = "terminal") -> None:
    """Notes to stderr, the result to stdout as JSON or as a person reads it.

    Args:
        result: what a workflow returned.
        as_json: as one JSON object.
        quiet: nothing, unless it is asked for as JSON.
        screen: the module of ``reports`` that shows it to a person.
    """
    for note in () if quiet else result.notes:
        click.echo(f"note: {printable(note, 2000)}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    elif not quiet:
        importlib.import_module(f"embcompress.reports.{screen}").show(result)
