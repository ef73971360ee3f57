"""Pictures of results, with matplotlib (the extra ``embcompress[plot]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embcompress.errors import UsageError
from embcompress.training.records import Epoch

SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the work whose picture it is.

    Raises:
        UsageError: matplotlib is missing, or the suffix is none it draws here.
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
        OSError: the picture cannot be written.
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


def _figure() -> Any:
    """The class of figures; none of matplotlib's windows and global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib", remedy="pip install 'embcompress[plot]'") from None
    return Figure
