"""Options that several commands share, and the terminal that every command talks to."""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from embcompress.choices import (
    AUTO,
    CLASSIFIER_SPLIT,
    DEFAULT_DEVICE,
    DEFAULT_QUOTING,
    DEFAULT_SPLIT,
    DEVICES,
    DTYPES,
    ENCODING,
    MAX_LENGTH,
    METHODS,
    QUOTINGS,
    SCREENED,
    SMOOTHING,
    SPLITS,
    TEXT_COLUMN,
    TEXT_FORMATS,
)
from embcompress.cli.streams import STDOUT
from embcompress.errors import EmbcompressError, printable

if TYPE_CHECKING:
    from embcompress.reports.terminal import TerminalProgress

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> int | None:
    """A number of bytes from text such as ``25MB``, ``1.5GiB`` or ``4000000``; an option callback.

    Raises:
        click.BadParameter: the text is not a size.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*((?:[kmg]i?)?)b?\s*", value.lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write 25MB, 1.5GiB or a byte count", ctx, param)
    return int(float(match[1]) * _UNITS[match[2]])


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that adds ``options`` in the order in which help shows them."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


ANY_PATH = click.Path(path_type=Path)
INPUT = click.Path(path_type=Path, readable=False)
"""A file or directory that a command reads; the workflow says what is wrong with it."""

source = click.argument("path", type=INPUT)
output = click.option("-o", "--output", type=ANY_PATH, help="Where to write.")
force = click.option("--force", is_flag=True, help="Replace an existing output.")
resume = click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
keys = click.option(
    "--key", "keys", multiple=True, metavar="NAME", help="Table to use; may be given several times."
)
reading = together(
    click.option(
        "--weights-only",
        is_flag=True,
        help="Drop what is neither weights nor plain data in a PyTorch file; of a whole module or a "
        "TorchScript archive take the state dict.",
    ),
    click.option(
        "--state",
        metavar="NAME",
        help="State dict to take of a PyTorch file that holds several, such as ema.",
    ),
)
"""What to take of a file of PyTorch that holds more than one state dict."""

device = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default=DEFAULT_DEVICE,
    show_default=True,
    help="Where to compute.",
)


def max_length(least: int) -> Callable[[F], F]:
    """--max-length, from ``least`` on."""
    return click.option(
        "--max-length",
        type=click.IntRange(min=least),
        default=MAX_LENGTH,
        show_default=True,
        help="Tokens read of a text.",
    )


text_column = click.option(
    "--text-column",
    default=TEXT_COLUMN,
    show_default=True,
    help="Header or key of the texts in a .csv or .jsonl; with --no-header a number.",
)


def with_text_format(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options that say how texts are written, as one argument ``text_format``."""

    @functools.wraps(command)
    def run(
        *args: Any,
        kind: str | None,
        header: bool | None,
        quoting: str,
        encoding: str,
        delimiter: str | None,
        **options: Any,
    ) -> None:
        from embcompress.data.text_format import TextFormat

        command(*args, text_format=TextFormat(kind, header, quoting, encoding, delimiter), **options)

    return together(
        click.option(
            "--text-format",
            "kind",
            type=click.Choice(TEXT_FORMATS),
            help="How texts are written.  [default: what suffix and first line show]",
        ),
        click.option(
            "--header/--no-header", default=None, help="Whether a .csv names its columns.  [default: it does]"
        ),
        click.option(
            "--quoting",
            type=click.Choice(QUOTINGS),
            default=DEFAULT_QUOTING,
            show_default=True,
            help="Whether quotes in a .csv enclose fields, or are characters like any other.",
        ),
        click.option(
            "--delimiter",
            help="Between the fields of a .csv.  [default: a tab in .tsv files, else a comma]",
        ),
        click.option(
            "--encoding",
            default=ENCODING,
            show_default=True,
            help="Character encoding of the texts, such as cp1252 or utf-16.",
        ),
    )(run)


targets = together(
    click.option("--rank", type=click.IntRange(min=1), help="Target: components kept."),
    click.option(
        "--ratio", type=float, help="Target: fraction of the table's bytes removed, 0.9 = ten times smaller."
    ),
    click.option("--energy", type=float, help="Target: share of the squared singular values kept."),
    click.option("--max-error", type=float, help="Target: largest relative Frobenius error."),
    click.option(
        "--max-size",
        callback=parse_size,
        metavar="SIZE",
        help="Target: size of the written model, e.g. 25MB.",
    ),
)
"""How small a table is to become; exactly one is given."""


def method(default: str | None, usual: str) -> Callable[[F], F]:
    """--method, with its default and what help says of that."""
    return click.option(
        "--method",
        default=default,
        help=f"How: {', '.join((*METHODS, SCREENED))}, or {AUTO} for the one with the smallest predicted "
        f"error.  [default: {usual}]",
    )


factors = together(
    click.option(
        "--dtype",
        help=f"Type of the factors: {', '.join(DTYPES[:-1])} or {DTYPES[-1]}.  [default: the table's]",
    ),
    click.option(
        "--split-scale",
        type=click.Choice(SPLITS),
        help=f"Which factor carries the singular values.  [default: {CLASSIFIER_SPLIT} for classifiers of "
        f"train, else {DEFAULT_SPLIT}]",
    ),
)
"""How factors are stored."""

weighting = together(
    click.option(
        "--weights",
        type=ANY_PATH,
        metavar="auto|none|FILE",
        help="Token counts: .csv, .tsv, .txt or .npy. They, and those of --corpus, are mixed with what the "
        "model's vocabulary suggests. auto takes that alone; none, or none+FILE, leaves it out.",
    ),
    click.option("--corpus", type=ANY_PATH, help="Texts to count tokens in: .csv, .jsonl or .txt."),
    text_column,
    with_text_format,
    click.option(
        "--smoothing",
        type=float,
        default=SMOOTHING,
        show_default=True,
        help="Exponent s of a token's weight (count+1)^s; 0 weighs all alike.",
    ),
)
"""How much each token counts."""


class Result(Protocol):
    """What every workflow returns."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """The result, ready for JSON."""


@dataclass(frozen=True)
class Terminal:
    """How a command talks: progress and notes to stderr, its result to stdout.

    Attributes:
        as_json: print the result as one JSON object.
        quiet: print nothing but errors, and the JSON object if it is asked for.
        verbose: print each stage with its time.
    """

    as_json: bool
    quiet: bool
    verbose: bool

    def progress(self) -> AbstractContextManager[TerminalProgress]:
        """The bars of a command's work."""
        from embcompress.reports.terminal import TerminalProgress

        return TerminalProgress(bars=not self.quiet, verbose=self.verbose)

    def show(self, result: Result, view: str = "terminal") -> None:
        """Print the notes and the result.

        Args:
            result: what a workflow returned.
            view: the module of ``reports`` that shows it to a person.

        Raises:
            EmbcompressError: standard output cannot be written to; what the workflow wrote stands.
        """
        try:
            self._print(result, view)
        except BrokenPipeError:
            raise
        except OSError as error:
            written = getattr(result, "output", None) if getattr(result, "written", True) else None
            stands = "" if written is None else f"; the output is complete: {written}"
            raise EmbcompressError(
                f"{STDOUT}: {error.strerror or error}, so the result is not shown{stands}"
            ) from None

    def _print(self, result: Result, view: str) -> None:
        for note in () if self.quiet else result.notes:
            click.echo(f"note: {printable(note, 2000)}", err=True)
        if self.as_json:
            click.echo(json.dumps(result.to_dict(), indent=2))
        elif not self.quiet:
            importlib.import_module(f"embcompress.reports.{view}").show(result)


def with_terminal(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options --json, -q and -v as one argument ``terminal``."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
        command(*args, terminal=Terminal(as_json, quiet, verbose), **options)

    return together(
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print each stage with its time to stderr."),
    )(run)
