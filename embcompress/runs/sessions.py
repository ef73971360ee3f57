"""Where a run is carried out and what it records, checked before any work is done."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embcompress.errors import UsageError
from embcompress.reports.plots import check_plot
from embcompress.runs.unfinished import check_unfinished
from embcompress.storage.staging import check_target
from embcompress.training.devices import Runtime, runtime
from embcompress.training.loop import check_recipe
from embcompress.training.records import Recipe, Watcher


@dataclass(frozen=True)
class Session:
    """Where and how a run is carried out.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        mixed: mixed precision in training; None decides by the device.
        resume: go on with an interrupted run.
        force: replace an existing output, or what is left of an interrupted run.
        history: file that gets one JSON line an epoch.
        plot: picture of the learning curves (.png, .svg, .pdf); needs ``embcompress[plot]``.
        watcher: is told how training goes.
    """

    device: str = "auto"
    mixed: bool | None = None
    resume: bool = False
    force: bool = False
    history: Path | None = None
    plot: Path | None = None
    watcher: Watcher = field(default_factory=Watcher)

    def __post_init__(self) -> None:
        for name in ("history", "plot"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))

    def runtime(self) -> Runtime:
        """The device and its precision."""
        return runtime(self.device, mixed=self.mixed)

    def check(self, place: Path, sources: Collection[Path], recipe: Recipe) -> None:
        """Refuse what cannot be done or would overwrite something, before any work is done.

        Args:
            place: the output of the run.
            sources: everything that is read.
            recipe: how it trains.

        Raises:
            UsageError: with the reason.
        """
        check_target(place, tuple(sources), force=self.force)
        check_recipe(recipe)
        self.runtime()
        if self.plot is not None:
            check_plot(self.plot)
        inputs = {path.resolve() for path in (*sources, place)}
        for path in (self.history, self.plot):
            if path is None:
                continue
            if path.resolve() in inputs:
                raise UsageError(f"{path}: is an input or the output", remedy="name another file")
            if not path.absolute().parent.is_dir():
                raise UsageError(f"{path}: there is no directory {path.parent}", remedy="make it first")
            if path.exists() and not (self.force or (self.resume and path == self.history)):
                raise UsageError(f"{path}: exists already", remedy="pass --force to replace it")
        check_unfinished(place, resume=self.resume, force=self.force)


USUAL_SESSION: Final = Session()
"""Any device, nothing recorded."""
