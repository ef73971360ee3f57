"""What is kept of a run of training until its output is published: its state, and its best weights so far."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.errors import Interrupted, UsageError
from embcompress.storage.staging import discard, staged
from embcompress.training.interrupts import Interrupts
from embcompress.training.snapshots import Resumable, Snapshots, Warned, snapshot_path

Train = Callable[[Callable[[], bool], Callable[[], None]], str | None]
"""Trains until the first argument answers true after a step, calling the second when its state may be
saved; None when it came to its end, else how far it came and what was kept."""


def check_unfinished(place: Path, *, resume: bool, force: bool) -> None:
    """Refuse to begin anew where an unfinished run waits.

    Args:
        place: the output of the run.
        resume: go on with it.
        force: begin anew all the same.

    Raises:
        UsageError: neither is asked for.
    """
    if not (resume or force) and snapshot_path(place).exists():
        raise UsageError(
            f"{place}: an unfinished run waits in {snapshot_path(place).name}",
            remedy="go on with --resume, or begin anew with --force",
        )


def carry_out(
    trainer: Resumable, snapshots: Snapshots, train: Train, watcher: Warned, *, resume: bool
) -> None:
    """Train until the end, or until Ctrl-C.

    Args:
        trainer: whose state is kept.
        snapshots: where.
        train: goes on with the trainer from where it is.
        watcher: is told when the state cannot be kept.
        resume: go on with the unfinished run that was kept.

    Raises:
        Interrupted: by Ctrl-C; the state is on disk.
        UsageError: the run to resume is not there, or was another one.
        InputError: its state cannot be read.
    """
    if resume:
        snapshots.restore(trainer)
    else:
        _set_aside(snapshots.place)
    # Entered before the first step: what comes before changes nothing that could be lost.
    with Interrupts() as interrupts:
        stopped = train(interrupts, lambda: snapshots.save_now_and_then(trainer, watcher))
        if stopped is None:
            snapshots.save_at_end(trainer, watcher)
            return
        snapshots.save(trainer)  # after the best weights, which are smaller: the disk may be full
    raise Interrupted(stopped, remedy="go on with the same command and --resume")


def keep_best(place: Path, write: Callable[[Path], object]) -> Path:
    """Have the best weights of an interrupted run written; where they stand until it comes to its end."""
    kept = _interrupted(place)
    with staged(kept, force=True) as stage:
        write(stage)
    return kept


def forget(place: Path) -> None:
    """Take away what was kept of the run that writes ``place``, once this is published."""
    for kept in (snapshot_path(place), _interrupted(place)):
        discard(kept)
        discard(_old(kept))


def _interrupted(place: Path) -> Path:
    """Where the best weights of an interrupted run stand; a dot in a directory's name begins no suffix."""
    suffix = place.suffix if any(place.suffix in kind.suffixes for kind in FILE_FORMATS) else ""
    return place.with_name(f"{place.name.removesuffix(suffix)}.interrupted{suffix}")


def _old(kept: Path) -> Path:
    return kept.with_name(f"{kept.stem}.old{kept.suffix}")


def _set_aside(place: Path) -> None:
    """Rename what an earlier run had kept: begun anew by mistake and stopped, this one would overwrite it."""
    for kept in (snapshot_path(place), _interrupted(place)):
        if kept.exists():
            discard(_old(kept))  # a directory cannot be renamed over a filled one
            os.replace(kept, _old(kept))
