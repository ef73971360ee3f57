"""A report for people to read, with rich."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from embcompress.reports.chart import CURVE_TICKS, Curve, Frame, chart, error_span, marks, sparkline
from embcompress.reports.record import Comparison, CompressedTable, DenseTable, Report, methods_of
from embcompress.reports.terminal import print_table, safe, shape_text, show, stdout
from embcompress.reports.units import counted, human_bytes, human_error, human_flops

__all__ = ["show"]

_SPARK_WIDTH = 48
_CHART_WIDTH, _CHART_HEIGHT = 60, 18
_BESIDE = 14
"""Columns left and right of a chart, for labels."""
_STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red")
_BOUND, _BOUND_MARK = "bound", "·"


@show.register
def _(report: Report) -> None:
    console = stdout()
    console.print(
        f"[bold]{safe(report.path)}[/]  {report.format} · {human_bytes(report.size)} · "
        f"{counted(report.tensors, 'tensor')}"
    )
    for table in report.tables:
        _show_dense(console, table)
        if report.chart:
            _show_chart(console, table)
    for compressed in report.compressed:
        _show_compressed(console, compressed)
    if report.against is not None and report.against_size is not None:
        change = 1 - report.size / report.against_size
        console.print(
            f"\nagainst {safe(report.against)}: {human_bytes(report.against_size)} → "
            f"{human_bytes(report.size)}, {change:.1%} smaller"
        )
    if report.plot is not None:
        console.print(f"\ndrew [bold]{safe(report.plot)}[/]")


def _show_dense(console: Console, table: DenseTable) -> None:
    console.print(
        f"\n[bold]{safe(table.name)}[/]  {shape_text(table.shape)} {table.dtype}\n"
        f"  {human_bytes(table.nbytes)}, {table.share:.1%} of the weights"
    )
    if table.ties:
        console.print(f"  also {safe(', '.join(table.ties))}")
    if table.weighting:
        console.print(f"  spectrum and errors with rows weighted by {safe(table.weighting)}")
    console.print(
        f"  effective rank {table.effective_rank:.0f} of {min(table.shape)}, "
        f"break-even rank {table.break_even_rank}, {human_flops(table.flops)} FLOPs a token"
    )
    console.print(f"  singular values {sparkline(table.spectrum, _SPARK_WIDTH)}\n")
    options = [
        (
            f"  {option.ratio:g}",
            str(option.rank),
            human_bytes(option.table_bytes),
            human_bytes(option.model_bytes),
            human_error(option.relative_error),
            human_flops(option.flops),
        )
        if option.rank
        else (f"  {option.ratio:g}", "–", "below rank 1")
        for option in table.options
    ]
    console.print("  low-rank factors")
    print_table(console, ("  ratio", "rank", "table", "model", "error", "FLOPs a token"), options)
    _show_comparisons(console, table)


def _show_comparisons(console: Console, table: DenseTable) -> None:
    """A row for each ratio and a narrow column for each method, since there may be many."""
    names = methods_of(table.comparisons)
    weighted = "weighted " if table.weighting else ""
    console.print(f"\n  predicted {weighted}error of each method at the same bytes")
    rows = [
        (
            f"  {comparison.ratio:g}",
            *(_cell(comparison, name) for name in names),
            f"[dim]{human_error(comparison.bound)}[/]",
        )
        for comparison in table.comparisons
    ]
    print_table(console, ("  ratio", *names, _BOUND), rows, padding=1)


def _cell(comparison: Comparison, name: str) -> str:
    if name not in comparison.errors:
        return "–"
    text = human_error(comparison.errors[name])
    return f"[bold]{text}[/]" if name == comparison.best else text


def _show_chart(console: Console, table: DenseTable) -> None:
    names = methods_of(table.curve)
    span = error_span([error for point in table.curve for error in point.errors.values()])
    if span is None:
        console.print("\n  no error to draw")
        return
    ratios = [point.ratio for point in table.curve]
    width = max(20, min(_CHART_WIDTH, console.width - _BESIDE))
    frame = Frame(width, _CHART_HEIGHT, (ratios[0], ratios[-1]), span)
    letters = marks(names)
    curves = [
        Curve(name, letters[name], tuple((p.ratio, p.errors[name]) for p in table.curve if name in p.errors))
        for name in names
    ]
    bound = Curve(_BOUND, _BOUND_MARK, tuple((p.ratio, p.bound) for p in table.curve))
    ticks = {p.ratio: (f"{p.ratio:g}", human_bytes(p.nbytes)) for p in table.curve if p.ratio in CURVE_TICKS}
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(names)} | {_BOUND: "dim"}
    console.print(
        f"\n  {'weighted ' if table.weighting else ''}error over ratio, and the table's bytes there\n"
    )
    for line in chart([*curves, bound], frame, ticks):
        console.print(Text.assemble(*((piece.text, styles.get(piece.curve, "")) for piece in line)))
    legend = Text("  ")
    for curve in (*curves, bound):
        legend.append(f"  {curve.mark} {curve.name}", styles[curve.name])
    console.print(legend)


def _show_compressed(console: Console, table: CompressedTable) -> None:
    console.print(
        f"\n[bold]{safe(table.name)}[/]  {shape_text(table.shape)} {table.dtype}, {table.method}"
        f"{'' if table.rank is None else f' of rank {table.rank}'} in {table.stored_dtype}"
    )
    if table.ties:
        console.print(f"  also {safe(', '.join(table.ties))}")
    saved = 1 - table.nbytes / table.dense_bytes
    console.print(
        f"  {human_bytes(table.dense_bytes)} → {human_bytes(table.nbytes)} ({saved:.1%} removed), "
        f"{human_flops(table.flops)} FLOPs a token"
    )
    measured = "" if table.measured_error is None else f", measured now {human_error(table.measured_error)}"
    trained = ", its factors were trained since" if table.trained else ""
    weighted = ""
    if table.weighted_error is not None:
        weighted = f", {human_error(table.weighted_error)} with rows weighted by {safe(table.weighting)}"
    if table.metric_error is not None:
        weighted += f", {human_error(table.metric_error)} in the metric of {safe(table.metric)}"
    recorded = f"  error {human_error(table.recorded_error)}{weighted} when it was factorized"
    console.print(f"{recorded}{trained}{measured}")
