"""What a training run keeps until its output is published: its state, and its best weights so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from embcompress.checkpoint.files import FILE_FORMATS
from embcompress.compression.outputs import check_output
from embcompress.errors import Interrupted, UsageError
from embcompress.storage.staging import discard, rename, staged
from embcompress.storage.targets import check_target
from embcompress.training.interrupts import Interrupts
from embcompress.training.snapshots import Resumable, Snapshots, Warned, snapshot_path

Train = Callable[[Callable[[], bool], Callable[[], None]], str | None]
"""A function that trains until the end, or until its first argument returns true after a step. It calls its
second argument whenever its state may be saved. Returns None at the end, otherwise a text that says how far
it got and what was kept."""


def check_unfinished(place: Path, sources: tuple[Path, ...], *, resume: bool, force: bool) -> None:
    """Refuse to start again if there is an unfinished run to resume, or if its files cannot go.

    Args:
        place: the output of the run.
        sources: all files that are read; the output is a directory if the first one is.
        resume: continue the unfinished run.
        force: start again.

    Raises:
        UsageError: there is an unfinished run, and neither ``resume`` nor ``force`` is set; or
            something that must not be replaced is where such a run keeps its state or its weights.
    """
    state, weights = snapshot_path(place), _interrupted(place)
    for path in (state, _old(state)):
        check_target(path, (), force=True)
    for path in (weights, _old(weights)):
        check_output(path, sources, force=True)
    if not (resume or force) and snapshot_path(place).exists():
        raise UsageError(
            f"{place}: an unfinished run waits in {snapshot_path(place).name}",
            remedy="go on with --resume, or start again with --force",
        )


def carry_out(
    trainer: Resumable, snapshots: Snapshots, train: Train, watcher: Warned, *, resume: bool
) -> None:
    """Train until the end, or until Ctrl-C.

    Args:
        trainer: holds the state that is trained and saved.
        snapshots: saves the state.
        train: trains on from the trainer's state.
        watcher: gets a warning if the state cannot be saved.
        resume: restore the state of the unfinished run first.

    Raises:
        Interrupted: Ctrl-C was pressed; the state is on disk.
        UsageError: there is no run to resume, or it is a different one.
        InputError: its state cannot be read.
    """
    if resume:
        snapshots.restore(trainer)
    else:
        _set_aside(snapshots.place)
    # Ctrl-C is caught from the first step on; before that there is nothing to lose.
    with Interrupts() as interrupts:
        stopped = train(interrupts, lambda: snapshots.save_now_and_then(trainer, watcher))
        if stopped is None:
            snapshots.save_at_end(trainer, watcher)
            return
        snapshots.save(trainer)  # after the best weights, which need less space if the disk is nearly full
    raise Interrupted(stopped, remedy="go on with the same command and --resume")


def keep_best(place: Path, write: Callable[[Path], object]) -> Path:
    """Write the best weights of an interrupted run; return their path. :func:`forget` deletes them."""
    kept = _interrupted(place)
    with staged(kept, force=True) as stage:
        write(stage)
    return kept


def forget(place: Path) -> None:
    """Delete everything kept for the run that writes ``place``, once its output is published."""
    for kept in (snapshot_path(place), _interrupted(place)):
        discard(kept)
        discard(_old(kept))


def _interrupted(place: Path) -> Path:
    """Where the best weights of an interrupted run go; only suffixes of weight files stay at the end."""
    suffix = place.suffix if any(place.suffix in kind.suffixes for kind in FILE_FORMATS) else ""
    return place.with_name(f"{place.name.removesuffix(suffix)}.interrupted{suffix}")


def _old(kept: Path) -> Path:
    return kept.with_name(f"{kept.stem}.old{kept.suffix}")


def _set_aside(place: Path) -> None:
    """Rename what an earlier run kept, so that starting again by mistake does not overwrite it."""
    for kept in (snapshot_path(place), _interrupted(place)):
        if kept.exists():
            discard(_old(kept))  # a directory cannot be renamed over one that is not empty
            rename(kept, _old(kept))
