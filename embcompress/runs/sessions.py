"""Where a run computes and what it records, checked before any work is done."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embcompress.choices import DEFAULT_DEVICE
from embcompress.compression.outputs import check_output, check_side_file
from embcompress.paths import make_paths
from embcompress.reports.plots import check_plot
from embcompress.runs.unfinished import check_unfinished
from embcompress.training.devices import Runtime, runtime
from embcompress.training.loop import check_recipe
from embcompress.training.records import Recipe, Watcher


@dataclass(frozen=True)
class Session:
    """Where a run computes, and what it records.

    Attributes:
        device: one of ``choices.DEVICES``.
        mixed: train in mixed precision; None leaves it to the device.
        resume: go on with an interrupted run.
        force: replace an existing output, or what is left of an interrupted run.
        history: file that gets one JSON line an epoch.
        plot: picture of the learning curves (.png, .svg, .pdf); needs ``embcompress[plot]``.
        watcher: is told how training goes.
    """

    device: str = DEFAULT_DEVICE
    mixed: bool | None = None
    resume: bool = False
    force: bool = False
    history: Path | None = None
    plot: Path | None = None
    watcher: Watcher = field(default_factory=Watcher)

    def __post_init__(self) -> None:
        make_paths(self, "history", "plot")

    def runtime(self) -> Runtime:
        """The device and its precision.

        Raises:
            UsageError: there is no such device.
        """
        return runtime(self.device, mixed=self.mixed)

    def check(self, place: Path, sources: Collection[Path], recipe: Recipe) -> None:
        """Refuse a run that cannot work or would overwrite something, before any work is done.

        Args:
            place: the output of the run.
            sources: all files that are read.
            recipe: how it trains.

        Raises:
            UsageError: with the reason.
        """
        check_output(place, tuple(sources), force=self.force)
        check_recipe(recipe)
        self.runtime()
        if self.plot is not None:
            check_plot(self.plot)
            check_side_file(self.plot, (*sources, place), replace=self.force)
        if self.history is not None:
            check_side_file(self.history, (*sources, place), replace=self.force or self.resume)
        check_unfinished(place, tuple(sources), resume=self.resume, force=self.force)


USUAL_SESSION: Final = Session()
"""Any device, nothing recorded."""
