"""Write in a staging directory, then rename: whatever happens, the target is absent, old or complete.

``small.pt`` is written in the hidden directory ``.small.pt.embcompress`` next to it. The name is fixed so
that two runs with the same target meet there. A lock on the directory, which the kernel releases when its
holder dies, distinguishes a live run from the leftovers of a killed one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embcompress import interruption
from embcompress.errors import EmbcompressError, UsageError
from embcompress.storage.permissions import restrict
from embcompress.storage.targets import check_no_mount, check_target, remove_tree

_OLD = "replaced"
"""Name inside the staging directory of a directory that is being replaced, until the new one is in place."""

_COPYING, _COPY = "copying", "copied"
"""Names inside the staging directory of a copy of a directory that cannot be renamed, and of a whole copy.

While the second exists, what stands at the directory's own place is a part of it that is being removed."""

_DISCARDED = "discarded"
"""Name inside the staging directory of a directory being removed, so that it disappears all at once."""

_ENDING = ".embcompress"
"""Ending of the name of a staging directory."""


def check_space(target: Path, needed: int) -> None:
    """Refuse an output that does not fit on the disk, before any work is done.

    Raises:
        EmbcompressError: with the needed and the free bytes.
    """
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise EmbcompressError(
            f"{target}: needs {needed:,} bytes, {free:,} are free there",
            remedy="free some space, or write elsewhere with -o",
        )


@contextlib.contextmanager
def staged(target: Path, *, force: bool, inputs: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield a path to write the output to, and rename it to ``target`` when the block ends without error.

    Files that are written next to the yielded path are published next to ``target``; their writer syncs
    them. Everything under the yielded path is synced to disk before the rename. If the block raises, or
    is interrupted, all that was written is removed and ``target`` is unchanged.

    Args:
        target: path of the output.
        force: whether an existing output may be replaced.
        inputs: files that must not be replaced by those next to the output.

    Raises:
        EmbcompressError: another run is writing the same target.
        UsageError: the target was created in the meantime, and ``force`` is not set; or what would be
            replaced must not be (see :func:`check_target`).
        OSError: the output cannot be written.
    """
    place = target.absolute()
    stage = place.parent / f".{place.name}{_ENDING}"
    lock = None
    try:
        with interruption.delayed():
            lock = _lock(stage)
            _sweep(stage, place)
        yield stage / place.name
        _sync(stage / place.name)
        if place.exists() and not force:
            raise UsageError(f"{target}: was created in the meantime", remedy="pass --force to replace it")
        for file in _companions(stage, place):
            check_target(published(file), inputs, force=force)
        if place.exists():
            check_no_mount(place)  # it may have been mounted meanwhile
        with interruption.delayed():
            _publish(stage, place)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)  # errors of writes by descriptor have no file name
        raise
    finally:
        if lock is not None:
            with interruption.delayed():
                # The outcome is decided; the next run sweeps up anything left here.
                with contextlib.suppress(OSError, UsageError):
                    _sweep(stage, place)
                    stage.rmdir()
                os.close(lock)


def published(staged: Path) -> Path:
    """The final path of a file in a staging directory."""
    stage = staged.parent
    return stage.parent / staged.name if stage.name.endswith(_ENDING) else staged


def discard(target: Path) -> None:
    """Remove an output, and the leftovers of a killed run on it; does nothing while another run works."""
    place = target.absolute()
    if not place.is_dir():
        place.unlink(missing_ok=True)
    stage = place.parent / f".{place.name}{_ENDING}"
    if not (stage.is_dir() or place.is_dir()):
        return
    with contextlib.suppress(EmbcompressError), interruption.delayed():
        if place.exists():
            check_no_mount(place)
        lock = _lock(stage)
        try:
            _sweep(stage, place)
            if place.exists():
                _move(place, stage / _DISCARDED, stage)
                _sweep(stage, place)
            stage.rmdir()
        finally:
            os.close(lock)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory that has no staging directory, replacing a file or empty directory.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV or not source.is_dir():
            raise
        with staged(target, force=True) as stage:
            shutil.copytree(source, stage, symlinks=True)
        discard(source)


@contextlib.contextmanager
def synced_in_background(path: Path) -> Iterator[None]:
    """Sync ``path`` and everything under it to disk while the block runs.

    The disk works while the processor does, so the sync before the rename has little left to do.

    Raises:
        OSError: the sync failed; it is raised here because the kernel reports it only once.
    """
    with ThreadPoolExecutor(1) as executor:
        syncing = executor.submit(_sync, path)
        yield
        syncing.result()


def _lock(stage: Path) -> int:
    """Make the staging directory and lock it; the caller closes the returned descriptor."""
    while True:
        stage.mkdir(0o700, exist_ok=True)  # what is in it may have to be as private as the input
        try:
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # its last holder has just removed it
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
            break
        os.close(lock)
    try:
        check_no_mount(stage)
        restrict(stage, 0o700)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _companions(stage: Path, place: Path) -> list[Path]:
    """The files that were written next to the output; their writer removes any folders."""
    return sorted(entry for entry in stage.iterdir() if entry.is_file() and entry.name != place.name)


def _publish(stage: Path, place: Path) -> None:
    """Rename the staged output, and the files next to it, to their final paths."""
    companions = _companions(stage, place)
    if any(published(file).exists() for file in companions):
        place.unlink(missing_ok=True)  # the old output must not be seen with the new companions
    for file in companions:
        os.replace(file, published(file))
    if place.is_dir():
        # A directory cannot be renamed over a non-empty one. If the process is killed between the
        # two renames, the next run puts the old one back (_sweep).
        _move(place, stage / _OLD, stage)
    os.replace(stage / place.name, place)
    _sync_directory(place.parent)


def _move(source: Path, target: Path, stage: Path) -> None:
    """Rename a directory; where the file system cannot (an overlay, for one of a lower layer), copy it.

    Killed at any moment, a whole directory is at ``source``, at ``target`` or at the name ``_COPY``.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, stage / _COPYING, symlinks=True)
        _sync(stage / _COPYING)
        os.rename(stage / _COPYING, stage / _COPY)
        _sync_directory(stage)
        files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
        if files:  # without its largest file nobody takes the rest for a whole model
            max(files, key=lambda path: path.stat().st_size).unlink()
        remove_tree(source)
        os.rename(stage / _COPY, target)


def _sweep(stage: Path, place: Path) -> None:
    """Empty the staging directory; a replaced directory is put back if its successor is missing."""
    old, copy = stage / _OLD, stage / _COPY
    if copy.exists() and (not place.exists() or _is_rest(place, copy)):
        if place.exists():
            remove_tree(place)
        os.rename(copy, place)
    if old.exists() and not place.exists():
        _move(old, place, stage)
    for entry in stage.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()


def _is_rest(place: Path, copy: Path) -> bool:
    """Whether everything in a directory is in its copy too, unchanged: it was about to be removed."""

    def known(path: Path) -> bool:
        there = copy / path.relative_to(place)
        if path.is_dir() or not os.path.lexists(there):
            return there.is_dir()
        one, other = path.lstat(), there.lstat()
        return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)

    return place.is_dir() and all(map(known, place.rglob("*")))


def _sync(path: Path) -> None:
    """Sync a file, or everything under a directory, to disk. Links are not followed."""
    if path.is_symlink():
        return
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
