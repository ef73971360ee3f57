"""Plots of results, with matplotlib (the extra ``embcompress[plot]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embcompress.errors import UsageError, printable
from embcompress.reports.chart import CURVE_TICKS, error_span
from embcompress.reports.record import DenseTable, methods_of
from embcompress.reports.units import human_bytes
from embcompress.training.records import Epoch

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before any work is done.

    Raises:
        UsageError: matplotlib is missing, or the suffix is not one of ``SUFFIXES``.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: no picture has the suffix {path.suffix!r}", remedy=f"use {', '.join(SUFFIXES)}"
        )
    _figure()


def plot_history(epochs: Sequence[Epoch], path: Path) -> None:
    """Draw loss, dev loss and dev accuracy over the epochs.

    Raises:
        UsageError: matplotlib is missing.
        OSError: the plot cannot be written.
    """
    figure = _figure()(figsize=(7, 3.5), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    numbers = [epoch.epoch for epoch in epochs]
    trained = [epoch for epoch in epochs if epoch.loss is not None]
    losses.plot([e.epoch for e in trained], [e.loss for e in trained], marker="o", label="training")
    losses.plot(numbers, [e.dev_loss for e in epochs], marker="o", label="dev")
    losses.set(xlabel="epoch", ylabel="cross-entropy", ylim=(0, None))
    losses.legend()
    accuracy.plot(numbers, [100 * e.dev_accuracy for e in epochs], marker="o", color="tab:orange")
    accuracy.set(xlabel="epoch", ylabel="dev accuracy, %")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


def plot_curves(tables: Sequence[DenseTable], path: Path) -> None:
    """Draw the error of each method over the ratio; several tables are drawn below one another.

    The axis of ratios is logarithmic in what is left: each halving takes the same width.

    Raises:
        UsageError: matplotlib is missing.
        OSError: the plot cannot be written.
    """
    figure = _figure()(figsize=(8, 4.5 * len(tables)), layout="constrained")
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        _draw_curve(axes, table)
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none"}):  # text stays text, which can be searched and copied
        figure.savefig(path, dpi=150)


def _draw_curve(axes: Any, table: DenseTable) -> None:
    for name in methods_of(table.curve):
        points = [(1 - p.ratio, p.errors[name]) for p in table.curve if p.errors.get(name, 0) > 0]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), marker="o", markersize=3, label=name)
    bounds = [(1 - p.ratio, p.bound) for p in table.curve if p.bound > 0]
    style = {"linestyle": "--", "color": "black", "label": "Gaussian bound"}
    axes.plot(*zip(*bounds, strict=True) if bounds else ((), ()), **style)
    ticks = {1 - p.ratio: p for p in table.curve if p.ratio in CURVE_TICKS}
    weighted = f"\nweighted by {_plain(table.weighting)}" if table.weighting else ""
    span = error_span([error for point in table.curve for error in point.errors.values()])
    axes.set(
        title=_plain(table.name),
        xscale="log",
        xlim=(1 - table.curve[0].ratio, 1 - table.curve[-1].ratio),
        xlabel="ratio (share of the table's bytes removed)",
        ylim=span or (0.1, 1.0),
        yscale="log",
        ylabel=f"relative error{weighted}",
    )
    above = axes.secondary_xaxis("top")
    above.set_xlabel("bytes of the table")
    labels = ([f"{p.ratio:g}" for p in ticks.values()], [human_bytes(p.nbytes) for p in ticks.values()])
    for side, texts in zip((axes, above), labels, strict=True):
        side.set_xticks(list(ticks), texts)
        side.set_xticks((), minor=True)
    _label_errors(axes)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))  # beside the axes, where it covers no line


def _label_errors(axes: Any) -> None:
    """Label errors as numbers (0.05) if they span at most three decades, otherwise as powers of ten."""
    least, largest = axes.get_ylim()
    if largest / least > 1000:
        return
    steps = [float(f"{factor}e{decade}") for decade in range(-3, 1) for factor in (1, 2, 5)]
    shown = [error for error in steps if least <= error <= largest]
    axes.set_yticks(shown, [f"{error:g}" for error in shown])
    axes.set_yticks((), minor=True)


def _plain(text: str) -> str:
    """Text from a file, which matplotlib must not read as a formula."""
    return printable(text, 60).replace("$", r"\$")


def _figure() -> Any:
    """The class of figures, without matplotlib's windows and global state.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib", remedy="pip install 'embcompress[plot]'") from None
    return Figure
