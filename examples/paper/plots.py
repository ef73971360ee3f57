"""Plots: accuracy over ratio, and the learning rates of the schedules; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results import MODELS, SETS, Measurement
from spread import spreads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {
    "svd": ("C7", "o", "SVD, not retrained"),
    "online-calr": ("C0", "s", "SVD, retrained, CALR"),
    "online-constant": ("C1", "^", "SVD, retrained, constant rate"),
    "weighted": ("C2", "D", "row-weighted SVD, retrained, constant rate"),
    "recommended": ("C8", "*", "recommended: weights chosen on dev, retrained, linear rate"),
    "offline": ("C3", "v", "offline"),
}
_CODED = {"int8": ("C4", "P"), "int4": ("C5", "X")}
_TICKS = (0.75, 0.9, 0.95, 0.98, 0.99)


def accuracy_over_ratio(rows: Sequence[Measurement], path: Path) -> None:
    """One panel for each set and model; the dense model's mean ± deviation is a band."""
    sets = [name for name in SETS if any(row.set == name for row in rows)]
    models = [name for name in MODELS if any(row.model == name for row in rows)]
    figure = _figure(3.6 * len(sets), 2.9 * len(models) + 0.6)
    axes = figure.subplots(len(models), len(sets), squeeze=False, sharex=True)
    for i, model in enumerate(models):
        for j, texts in enumerate(sets):
            panel = axes[i][j]
            here = [row for row in rows if (row.set, row.model) == (texts, model)]
            if here:
                _accuracy_panel(panel, here)
            panel.set_title(f"{texts}, {model.upper()}", fontsize=10)
            if j == 0:
                panel.set_ylabel("test accuracy, %")
            if i == len(models) - 1:
                panel.set_xlabel("bytes of the table removed")
    labelled = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(labelled.values(), labelled.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=90)


def _accuracy_panel(panel: Axes, rows: Sequence[Measurement]) -> None:
    # Equal steps for equal factors in size; what is kept falls to the right.
    found = spreads(rows)
    for cell, spread in found.items():
        if cell.method == "dense":
            low, high = spread.mean - spread.deviation, spread.mean + spread.deviation
            panel.axhspan(low, high, color="0.88", lw=0)
            panel.axhline(spread.mean, color="0.4", lw=1, ls="--", label="dense, mean ± deviation")
    for method, (color, marker, label) in _LINES.items():
        points = sorted((c.ratio, s) for c, s in found.items() if c.method == method)
        if points:
            panel.errorbar(
                [1 - ratio for ratio, _ in points],
                [s.mean for _, s in points],
                yerr=[s.deviation for _, s in points],
                color=color,
                marker=marker,
                ms=4,
                lw=1.2,
                capsize=2,
                label=label,
            )
    dense_bytes = max((row.table_bytes for row in rows if row.method == "dense"), default=0)
    for method, (color, marker) in _CODED.items():
        sizes = [row.table_bytes / dense_bytes for row in rows if row.method == method and dense_bytes]
        spread = next((s for c, s in found.items() if c.method == method), None)
        if sizes and spread is not None:
            panel.errorbar(
                sizes[0],
                spread.mean,
                spread.deviation,
                color=color,
                marker=marker,
                ls="",
                capsize=2,
                label=method,
            )
    panel.set_xscale("log")
    panel.set_xlim(0.3, 0.0085)
    panel.set_xticks([1 - ratio for ratio in _TICKS], [f"{ratio:.0%}" for ratio in _TICKS])
    panel.minorticks_off()
    panel.grid(alpha=0.25)


def learning_rates(path: Path, steps: int = 139, epochs: int = 3) -> None:
    """The rate of every step of a retraining by each schedule; 139 steps are an epoch of sst2."""
    import torch
    from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, CyclicLR, LinearLR

    from embcompress import CALR

    # All but CALR are PyTorch's own, with the settings that embcompress gives them.
    top, whole = 1e-3, steps * epochs
    schedules = {
        "calr": lambda sgd: CALR(sgd, top, steps, window=3),
        "clr": lambda sgd: CyclicLR(sgd, top / 4, top, step_size_up=steps / 2, cycle_momentum=False),
        "cosine": lambda sgd: CosineAnnealingLR(sgd, whole),
        "linear": lambda sgd: LinearLR(sgd, 1.0, 0.0, whole),
        "constant": lambda sgd: ConstantLR(sgd, 1.0),
    }
    figure = _figure(6.4, 3.2)
    panel = figure.subplots()
    for number, (name, schedule) in enumerate(schedules.items()):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=top)
        scheduler, rates = schedule(optimizer), []
        for _ in range(whole):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        panel.plot([i / steps for i in range(whole)], rates, color=f"C{number}", lw=1.4, label=name)
    panel.set_yscale("log")
    panel.set_ylim(8e-7, 2e-3)
    panel.set_xlabel("epoch")
    panel.set_ylabel("learning rate")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # here, so that tables are made without it

    return Figure(figsize=(width, height))
