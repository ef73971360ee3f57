"""Write beside the target, then rename: whatever happens, the target is absent, old or complete.

The staging place of ``small.pt`` is the hidden directory ``.small.pt.embcompress`` beside it. Its
name is fixed so that two runs on one target meet there, and a lock on it (released by the kernel
when its holder dies) tells a run that is alive from the leftovers of one that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embcompress.errors import EmbcompressError, UsageError

_OLD = "replaced"
"""Where a directory that is being replaced waits until the new one has its name."""

_DISCARDED = "discarded"
"""What a directory that is being removed is called meanwhile: it is gone at once, or not at all."""

_ENDING = ".embcompress"
"""What the name of a staging place ends in."""


def check_target(target: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """Refuse a target that must not be written, before any work is done.

    Args:
        target: where the output is to stand.
        sources: files and directories that are read; the output is of the first one's kind.
        force: whether an existing target may be replaced.

    Raises:
        UsageError: the target is, holds or lies inside an input, is a symbolic link, exists
            already or as another kind, or has no directory to stand in.
    """
    if target.is_symlink():
        raise UsageError(f"{target}: is a symbolic link", remedy="name the file it should be with -o")
    place = target.resolve()
    for source in (s.resolve() for s in sources):
        if place == source:
            raise UsageError(f"{target}: is the input itself", remedy="name another output with -o")
        if source in place.parents:
            raise UsageError(
                f"{target}: lies inside the input {source}", remedy="name a place outside with -o"
            )
        if place in source.parents:
            raise UsageError(f"{target}: holds the input", remedy="name another output with -o")
    if not place.parent.is_dir():
        raise UsageError(f"{target}: there is no directory {place.parent}", remedy="make it first")
    if not target.exists():
        return
    if target.is_dir() != sources[0].is_dir():
        kind, other = ("directory", "file") if target.is_dir() else ("file", "directory")
        raise UsageError(
            f"{target}: is a {kind}, the output would be a {other}", remedy="name another output with -o"
        )
    if not force:
        raise UsageError(f"{target}: exists already", remedy="pass --force to replace it, or another -o")
    known = any((target / name).exists() for name in ("config.json", "modules.json"))
    if target.is_dir() and any(target.iterdir()) and not known:
        raise UsageError(
            f"{target}: is a directory without config.json, which --force does not replace",
            remedy="remove it yourself, or name another output with -o",
        )


def check_space(target: Path, needed: int) -> None:
    """Refuse an output that the disk cannot hold, before hours of writing find out.

    Raises:
        EmbcompressError: with both numbers.
    """
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise EmbcompressError(
            f"{target}: needs {needed:,} bytes, {free:,} are free there",
            remedy="free some space, or write elsewhere with -o",
        )


@contextlib.contextmanager
def staged(target: Path, *, force: bool) -> Iterator[Path]:
    """A path to write the output to, which gets the name ``target`` when the block ends well.

    Files that are written beside it come to stand beside ``target``; their writer syncs them.

    Everything under the yielded path is synced to disk before the rename. When the block raises,
    interrupts included, all that was written is removed and ``target`` is as it was.

    Raises:
        EmbcompressError: another run is writing the same target.
        UsageError: the target has come into being meanwhile and ``force`` is not set.
        OSError: the place cannot be written.
    """
    place = target.absolute()
    stage = place.parent / f".{place.name}{_ENDING}"
    lock = None
    try:
        with _interrupts_wait():
            lock = _lock(stage)
            _sweep(stage, place)
        yield stage / place.name
        _sync(stage / place.name)
        if place.exists() and not force:
            raise UsageError(f"{target}: has come to exist meanwhile", remedy="pass --force to replace it")
        taken = next((published(f) for f in _companions(stage, place) if published(f).exists()), None)
        if taken is not None and not force:
            raise UsageError(f"{taken}: exists already", remedy="pass --force to replace it, or another -o")
        with _interrupts_wait():
            _publish(stage, place)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)  # a write by descriptor does not know its file
        raise
    finally:
        if lock is not None:
            with _interrupts_wait():
                # The outcome is decided; a leftover is swept by the next run.
                with contextlib.suppress(OSError):
                    _sweep(stage, place)
                    stage.rmdir()
                os.close(lock)


def published(staged: Path) -> Path:
    """Where a file will stand that is written to a staging place."""
    stage = staged.parent
    return stage.parent / staged.name if stage.name.endswith(_ENDING) else staged


def discard(target: Path) -> None:
    """Remove an output and what a killed run left of a newer one; another run's work is left alone."""
    place = target.absolute()
    if not place.is_dir():
        place.unlink(missing_ok=True)
    stage = place.parent / f".{place.name}{_ENDING}"
    if not (stage.is_dir() or place.is_dir()):
        return
    with contextlib.suppress(EmbcompressError), _interrupts_wait():
        lock = _lock(stage)
        try:
            _sweep(stage, place)
            if place.exists():
                os.rename(place, stage / _DISCARDED)
                _sweep(stage, place)
            stage.rmdir()
        finally:
            os.close(lock)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended, for steps of which no half may be left.

    Only the main thread has a say in this, and only there Python raises KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def synced_in_background(path: Path) -> Iterator[None]:
    """Bring what stands under ``path`` to the disk while the block runs.

    The disk works while the processor does, and the sync before the rename waits for little.

    Raises:
        OSError: the disk could not take it; told here because the kernel tells it only once.
    """
    with ThreadPoolExecutor(1) as executor:
        syncing = executor.submit(_sync, path)
        yield
        syncing.result()


def _lock(stage: Path) -> int:
    """Make the staging directory and hold its lock; the descriptor is the caller's to close."""
    while True:
        stage.mkdir(exist_ok=True)
        try:
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # its last holder removed it just now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(lock), os.stat(stage))
        except FileNotFoundError:
            same = False
        except BlockingIOError:
            os.close(lock)
            raise EmbcompressError(
                f"{stage}: another run is writing the same output",
                remedy="wait for it, or name another output with -o",
            ) from None
        if same:
            return lock
        os.close(lock)


def _companions(stage: Path, place: Path) -> list[Path]:
    """The files that were written beside the output; folders there are their writer's own."""
    return sorted(entry for entry in stage.iterdir() if entry.is_file() and entry.name != place.name)


def _publish(stage: Path, place: Path) -> None:
    """Give the staged output its name."""
    companions = _companions(stage, place)
    if any(published(file).exists() for file in companions):
        place.unlink(missing_ok=True)  # the old output must not be seen beside what is not its own
    for file in companions:
        os.replace(file, published(file))
    if place.is_dir():
        # A directory cannot be renamed over a filled one. Killed between the two renames,
        # the next run puts the old one back (_sweep).
        os.rename(place, stage / _OLD)
    os.replace(stage / place.name, place)
    _sync_directory(place.parent)


def _sweep(stage: Path, place: Path) -> None:
    """Empty the staging directory; a replaced directory goes back where its successor is missing."""
    old = stage / _OLD
    if old.exists() and not place.exists():
        os.rename(old, place)
    for entry in stage.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(path: Path) -> None:
    """Bring a file, or everything under a directory, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
        _sync_directory(path)
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
