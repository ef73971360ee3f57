"""Results as a person reads them, with rich. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from embcompress.errors import printable
from embcompress.reports.record import CompressedTable, DenseTable, Report
from embcompress.reports.results import ExpandResult, FactorizeResult

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48
_PATIENCE = 1.0
"""Seconds of work before a progress bar appears."""
_PIPE_WIDTH = 200
"""Columns when stdout is no terminal: nothing is wrapped or cut for a file."""


class TerminalProgress:
    """The progress callback of a terminal: bars for work over a second, nothing elsewhere.

    Args:
        bars: whether bars may be shown at all.
        verbose: also print each stage with its time when it is done.
    """

    def __init__(self, *, bars: bool, verbose: bool) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = bars and self._console.is_terminal
        self._verbose = verbose
        self._began = time.monotonic()
        self._stage = ""
        self._stage_began = self._began
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take a step of ``stage``; see ``checkpoint.base.Progress``."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_began, self._task = stage, now, None
        if self._bars and now - self._began > _PATIENCE:
            self._draw(done, total)
        if done >= total and self._progress is not None:  # the terminal is another's now
            self._progress.stop()
            self._progress = None
        if self._verbose and done >= total:
            self._console.print(f"{escape(printable(stage))}: {now - self._stage_began:.2f} s")

    def _draw(self, done: int, total: int) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        if self._task is None:
            self._task = self._progress.add_task(escape(printable(self._stage, 40)), total=total)
        self._progress.update(self._task, completed=done)

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


@functools.singledispatch
def show(result: object) -> None:
    """Print the result of a command; there is one way for each kind of result."""
    raise TypeError(f"no way to show a {type(result).__name__}")


@show.register
def _(report: Report) -> None:
    console = stdout()
    console.print(
        f"[bold]{safe(report.path)}[/]  {report.format} · {human_bytes(report.size)} · "
        f"{report.tensors:,} tensors"
    )
    for table in report.tables:
        _show_dense(console, table)
    for compressed in report.compressed:
        _show_compressed(console, compressed)
    if report.against is not None and report.against_size is not None:
        change = 1 - report.size / report.against_size
        console.print(
            f"\nagainst {safe(report.against)}: {human_bytes(report.against_size)} → "
            f"{human_bytes(report.size)}, {change:.1%} smaller"
        )


@show.register
def _(result: FactorizeResult) -> None:
    console = stdout()
    weighted = any(new.weighting for new in result.tables)
    errors = ("weighted error", "foretold", "unweighted") if weighted else ("error", "foretold")
    table = grid("table", "V × d", "dtype", "bytes", "rank", *errors)
    for new in result.tables:
        dtype = new.dtype if new.dtype == new.stored_dtype else f"{new.dtype} → {new.stored_dtype}"
        table.add_row(
            f"[bold]{safe(new.name)}[/]",
            _shape(new.shape),
            dtype,
            f"{human_bytes(new.bytes_before)} → {human_bytes(new.bytes_after)}",
            "–" if new.rank is None else str(new.rank),
            _measured(new.weighted_error if new.weighting else new.relative_error),
            _error(new.predicted_error),
            *([_measured(new.relative_error)] if weighted else []),
        )
        if new.ties:
            table.add_row(f"  also {safe(', '.join(new.ties))}")
    console.print(table)
    saved = 1 - result.size_after / result.size_before
    console.print(
        f"\nmodel {human_bytes(result.size_before)} → {human_bytes(result.size_after)} ({saved:.1%} smaller)"
    )
    if result.written:
        console.print(f"wrote [bold]{safe(result.output)}[/]; the error is measured on the written bytes")
    else:
        console.print(f"dry run, nothing written; the output would be {safe(result.output)}")


@show.register
def _(result: ExpandResult) -> None:
    console = stdout()
    console.print(f"dense again: [bold]{safe(', '.join(result.tables))}[/]")
    console.print(f"model {human_bytes(result.size_before)} → {human_bytes(result.size_after)}")
    console.print(f"wrote [bold]{safe(result.output)}[/]")


def human_bytes(count: int) -> str:
    """A size in decimal units with three digits, as disks and model hubs count."""
    return f"{_scaled(count)}B"


def human_flops(count: int) -> str:
    """A count with three digits and a decimal prefix."""
    return _scaled(count).rstrip()


def _scaled(count: int) -> str:
    """Three digits, a blank and a decimal prefix, which is empty below a thousand."""
    value, prefix = float(count), ""
    for bigger in "kMGT":
        if value < 999.5:
            break
        value, prefix = value / 1000, bigger
    return f"{value:.3g} {prefix}"


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """Values between 0 and 1 as a line of bars; longer lists are averaged down to ``width``."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return "".join(_BARS[min(len(_BARS) - 1, int(mean * len(_BARS)))] for mean in means)


def _show_dense(console: Console, table: DenseTable) -> None:
    console.print(
        f"\n[bold]{safe(table.name)}[/]  {_shape(table.shape)} {table.dtype}, "
        f"{human_bytes(table.nbytes)}, {table.share:.1%} of the weights"
    )
    if table.ties:
        console.print(f"  also {safe(', '.join(table.ties))}")
    console.print(
        f"  effective rank {table.effective_rank:.0f} of {min(table.shape)}, "
        f"break-even rank {table.break_even_rank}, {human_flops(table.flops)} FLOPs a token"
    )
    console.print(f"  singular values {sparkline(table.spectrum)}\n")
    options = grid("  ratio", "rank", "table", "model", "error", "FLOPs a token")
    for option in table.options:
        if option.rank:
            options.add_row(
                f"  {option.ratio:g}",
                str(option.rank),
                human_bytes(option.table_bytes),
                human_bytes(option.model_bytes),
                _error(option.relative_error),
                human_flops(option.flops),
            )
        else:
            options.add_row(f"  {option.ratio:g}", "–", "below rank 1")
    console.print(options)


def _show_compressed(console: Console, table: CompressedTable) -> None:
    console.print(
        f"\n[bold]{safe(table.name)}[/]  {_shape(table.shape)} {table.dtype}, {table.method}"
        f"{'' if table.rank is None else f' of rank {table.rank}'} in {table.stored_dtype}"
    )
    if table.ties:
        console.print(f"  also {safe(', '.join(table.ties))}")
    saved = 1 - table.nbytes / table.dense_bytes
    console.print(
        f"  {human_bytes(table.dense_bytes)} → {human_bytes(table.nbytes)} ({saved:.1%} removed), "
        f"{human_flops(table.flops)} FLOPs a token"
    )
    measured = "" if table.measured_error is None else f", measured now {_error(table.measured_error)}"
    trained = ", its factors were trained since" if table.trained else ""
    weighted = ""
    if table.weighted_error is not None:
        weighted = f", {_error(table.weighted_error)} with rows weighted by {safe(table.weighting)}"
    recorded = f"  error {_error(table.recorded_error)}{weighted} when it was factorized"
    console.print(f"{recorded}{trained}{measured}")


def stdout() -> Console:
    """Where results go; as wide as it takes when it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def grid(*headers: str) -> Table:
    """A borderless table, first column left, the rest right."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index else "left", no_wrap=True, overflow="fold")
    return table


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]:,} × {shape[1]:,}"


def _error(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0005 or value == 0 else f"{value:.1e}"


def _measured(value: float | None) -> str:
    return "–" if value is None else _error(value)


def safe(value: object) -> str:
    """Text from a file or the user, with neither control characters nor markup."""
    return escape(printable(str(value)))
