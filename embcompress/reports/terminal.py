"""Results for people to read, with rich. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from embcompress.errors import printable
from embcompress.reports.results import ExpandResult, FactorizeResult, TableResult
from embcompress.reports.units import counted, human_bytes, human_error
from embcompress.reports.verification import Verification, VerifiedTable
from embcompress.training.recovery import Likeness

_PATIENCE = 1.0
"""Seconds of work before a progress bar appears."""
_PIPE_WIDTH = 200
"""Columns if stdout is not a terminal, so that nothing is wrapped or cut in a file."""


class Bar:
    """A bar with the time left; it disappears when it stops.

    Args:
        console: where it is drawn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, text: str, done: float, total: float, *, begun: int = 0) -> None:
        """Draw the bar.

        Args:
            text: what is shown before it.
            done: how much is done.
            total: how much there is to do.
            begun: how much was done before the bar was first drawn, which the time left leaves out.
        """
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        if self._task is None:
            self._task = self._progress.add_task("", total=total, completed=begun)
        self._progress.update(self._task, completed=done, description=text)

    def renew(self) -> None:
        """Start another bar below the last one."""
        self._task = None

    def stop(self) -> None:
        """Remove the bar, so that others can print; the next :meth:`show` starts a new one."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


class Lines:
    """Shows a training run on stderr: lines, and on a terminal a bar below them.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._bar = Bar(self._console)

    def warn(self, text: str) -> None:
        """Print a warning."""
        if not self._quiet:
            self._console.print(f"warning: {safe(text)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class TerminalProgress:
    """The progress callback of a terminal: bars for work that takes over a second.

    Args:
        bars: whether bars may be shown; they never are where stderr is no terminal.
        verbose: also print each stage with its time when it is done.
    """

    def __init__(self, *, bars: bool, verbose: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = bars and self._console.is_terminal
        self._verbose = verbose
        self._began = time.monotonic()
        self._stage = ""
        self._stage_began = self._began
        self._bar = Bar(self._console)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show a step of ``stage``; see ``progress.Progress``."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_began = stage, now
            self._bar.renew()
        if self._bars and now - self._began > _PATIENCE:
            self._bar.show(escape(printable(stage, 40)), done, total)
        if done >= total:  # others may print now
            self._bar.stop()
        if self._verbose and done >= total:
            self._console.print(f"{escape(printable(stage))}: {now - self._stage_began:.2f} s")

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


@functools.singledispatch
def show(result: object) -> None:
    """Print the result of a command; a function is registered for each type of result."""
    raise TypeError(f"no function shows a {type(result).__name__}")


@show.register
def _(result: FactorizeResult) -> None:
    console = stdout()
    # Rows and columns are weighted alike in all tables, so all have the same errors.
    headers = ("table", "V × d", "dtype", "method", "bytes", "rank", *dict(_errors(result.tables[0])))
    print_table(console, headers, [_factorized(new) for new in result.tables])
    if (weighting := result.tables[0].weighting) is not None:
        console.print(f"rows weighted by {safe(weighting)}")
    if (metric := result.tables[0].metric) is not None:
        console.print(f"metric: what of a row matters to the model, by {safe(metric)}")
    for new in result.tables:
        if new.rivals:
            of = f" of {safe(new.name)}" if len(result.tables) > 1 else ""
            console.print(f"predicted errors in the same bytes{of}: {_ranked(new.rivals)}")
    saved = 1 - result.size_after / result.size_before
    console.print(
        f"\nmodel {human_bytes(result.size_before)} → {human_bytes(result.size_after)} ({saved:.1%} smaller)"
    )
    if result.check is not None:
        print_likeness(console, (f"{result.check.texts:,} texts", result.check))
    if result.written:
        console.print(f"wrote [bold]{safe(result.output)}[/]; the error is measured on the written bytes")
    else:
        console.print(f"dry run, nothing written; the output would be {safe(result.output)}")


def _factorized(new: TableResult) -> tuple[str, ...]:
    """The cells of a table that was factorized, one for each header; ties are below its name."""
    return (
        f"[bold]{safe(new.name)}[/]" + (f"\n  also {safe(', '.join(new.ties))}" if new.ties else ""),
        shape_text(new.shape),
        new.dtype if new.dtype == new.stored_dtype else f"{new.dtype} → {new.stored_dtype}",
        safe(new.method),
        f"{human_bytes(new.bytes_before)} → {human_bytes(new.bytes_after)}",
        "–" if new.rank is None else str(new.rank),
        *(cell for _, cell in _errors(new)),
    )


def _errors(new: TableResult) -> list[tuple[str, str]]:
    """Headers and cells of a table's errors: first the one that counts, then the one predicted for it."""
    found = [("unweighted" if new.weighting else "plain" if new.metric else "error", new.relative_error)]
    if new.weighting:
        found.insert(0, ("weighted error", new.weighted_error))
    if new.metric:
        found.insert(0, ("error in the metric", new.metric_error))
    cells = [(header, _measured(error)) for header, error in found]
    cells.insert(1, ("predicted", human_error(new.predicted_error)))
    return cells


@show.register
def _(result: ExpandResult) -> None:
    console = stdout()
    console.print(f"dense again: [bold]{safe(', '.join(result.tables))}[/]")
    console.print(f"model {human_bytes(result.size_before)} → {human_bytes(result.size_after)}")
    console.print(f"wrote [bold]{safe(result.output)}[/]")


@show.register
def _(result: Verification) -> None:
    console = stdout()
    for difference in result.differences:
        console.print(safe(difference.line, 2000))
    if result.differences:
        return
    for table in result.tables:
        console.print(f"[bold]{safe(table.name)}[/]\n  {_verified(table)}")
    if result.against is not None and result.tensors:
        console.print(
            f"{counted(result.tensors, 'other tensor')}, byte for byte those of {safe(result.against)}"
        )
    if result.against is not None:
        console.print(f"{result.others:,} files, settings and other entries as expected")
    if result.unchecked:
        console.print(f"not checked: {safe(', '.join(result.unchecked))}")
    if result.is_complete:
        console.print(f"[bold]{safe(result.path)}[/] is as it was written")
    else:
        console.print(f"what was compared of [bold]{safe(result.path)}[/] is as it should be")


def _verified(table: VerifiedTable) -> str:
    """What was checked of a table, in one line."""
    matched = f" match{'es its' if table.parts == 1 else ' their'} SHA-256" if table.sealed else ""
    said = [f"{safe(table.method)}, {counted(table.parts, 'part')}{matched}"]
    if table.measured_error is not None:
        ending = "after training, by its record" if table.trained else "as recorded"
        said.append(f"error {human_error(table.measured_error)} {ending}")
    if table.measured_weighted_error is not None:
        said.append(f"weighted {human_error(table.measured_weighted_error)}")
    return ", ".join(said)


def stdout() -> Console:
    """Where results go. Lines are not broken, so that a path longer than the terminal can be copied."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_table(
    console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], *, padding: int = 2
) -> None:
    """Print a table without borders, its first column aligned left, the others right.

    If the terminal is too narrow, each cell gets a line of its own below the first cell of its row, so
    that no figure is cut.

    Args:
        console: where to print.
        headers: of the columns.
        rows: the cells, as markup; a row may end early.
        padding: spaces on both sides of a cell.
    """
    table = Table(box=None, padding=(0, padding), pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    boundless = console.options.update(max_width=sys.maxsize)
    if console.measure(table, options=boundless).maximum <= console.width:
        console.print(table)
        return
    if headers[0]:
        console.print(f"[dim]{headers[0]}[/]")
    widest = max(map(len, headers[1:]))
    for first, *others in rows:
        console.print(first)
        for name, cell in zip(headers[1:], others, strict=False):
            console.print(f"    [dim]{name:<{widest}}[/]  {cell}")


def print_likeness(console: Console, *found: tuple[str, Likeness]) -> None:
    """Print a table with a row for each likeness."""
    causal = found[0][1].perplexity is not None
    headers = ("", "cosine", "neighbours kept", "hidden error", *(("perplexity",) if causal else ()))
    rows = [
        (
            name,
            f"{one.cosine:.4f}",
            f"{one.neighbours:.1%}",
            f"{one.error:.4f}",
            *(() if one.perplexity is None else (f"{one.perplexity:.2f}",)),
        )
        for name, one in found
    ]
    print_table(console, headers, rows)
    original = found[0][1].teacher_perplexity
    if original is not None:
        console.print(f"perplexity of the original: {original:.2f}")


def shape_text(shape: tuple[int, int]) -> str:
    """(V, d) with thousands separators."""
    return f"{shape[0]:,} × {shape[1]:,}"


def _ranked(errors: Mapping[str, float]) -> str:
    """Methods and their errors, the best first."""
    (best, *others) = sorted(errors, key=lambda name: errors[name])
    rest = "".join(f" · {safe(name)} {human_error(errors[name])}" for name in others)
    return f"[bold]{safe(best)} {human_error(errors[best])}[/] (best){rest}"


def _measured(value: float | None) -> str:
    return "–" if value is None else human_error(value)


def safe(value: object, limit: int = 500) -> str:
    """Text from a file or the user, without control characters and markup."""
    return escape(printable(str(value), limit))
