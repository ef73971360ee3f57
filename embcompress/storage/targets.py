"""What an output may replace, checked before any work is done and again before anything is removed."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from embcompress.errors import UsageError

_ANOTHER = "name another output with -o"
_MOUNTS = Path("/proc/self/mountinfo")


def check_target(target: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """Refuse a target that must not be written.

    An input is recognized by device and inode, so also under another name: through a hard link, a bind
    mount, or in other letters on a file system that ignores case.

    Args:
        target: path of the output.
        sources: files and directories that are read; the output is a directory if the first one is.
        force: whether an existing target may be replaced.

    Raises:
        UsageError: the target is, contains or lies inside an input, is a symbolic link, exists already
            (without ``force``, or as something that must not be replaced), or has no parent directory.
    """
    if target.is_symlink():
        raise UsageError(f"{target}: is a symbolic link", remedy="name the file it should be with -o")
    place = target.resolve()
    for source in (s.resolve() for s in sources):
        if is_same(place, source):
            raise UsageError(f"{target}: is the input itself", remedy=_ANOTHER)
        if any(is_same(parent, source) for parent in place.parents):
            raise UsageError(
                f"{target}: lies inside the input {source}", remedy="name a place outside with -o"
            )
        if any(is_same(place, parent) for parent in source.parents):
            raise UsageError(f"{target}: holds the input", remedy=_ANOTHER)
    if not place.parent.is_dir():
        raise UsageError(f"{target}: there is no directory {place.parent}", remedy="make it first")
    if not target.exists():
        return
    if not (target.is_file() or target.is_dir()):
        raise UsageError(f"{target}: is a {_kind(target)}, which is never replaced", remedy=_ANOTHER)
    if target.is_dir() != (bool(sources) and sources[0].is_dir()):
        kind, other = ("directory", "file") if target.is_dir() else ("file", "directory")
        raise UsageError(f"{target}: is a {kind}, the output would be a {other}", remedy=_ANOTHER)
    if not force:
        raise UsageError(f"{target}: exists already", remedy="pass --force to replace it, or another -o")
    check_no_mount(target)


def check_no_mount(place: Path) -> None:
    """Refuse to replace or remove what is or holds another file system.

    Raises:
        UsageError: with the first mount point found.
    """
    mounted = next(_mounts_in(place), None)
    if mounted is not None:
        raise UsageError(
            f"{mounted}: is a mount point, which is never replaced or removed",
            remedy=f"unmount it, or {_ANOTHER}",
        )


def remove_tree(place: Path) -> None:
    """Remove a directory with everything in it. Links are removed, not followed; no mount is entered.

    Raises:
        UsageError: it is or holds a mount point; nothing was removed.
        OSError: something cannot be removed.
    """
    check_no_mount(place)
    shutil.rmtree(place)


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths name the same file or directory, or the same place for one."""
    here = _identity(one)
    return one.resolve() == other.resolve() or (here is not None and here == _identity(other))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None if there is nothing, or nothing that may be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    names = {stat.S_ISFIFO: "FIFO", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device"}
    return next((name for is_kind, name in names.items() if is_kind(mode)), "special file")


def _mounts_in(target: Path) -> Iterator[Path]:
    """Mount points at or below a path: directories of another device, and on Linux bind mounts too.

    The device of a file tells nothing: on an overlay it is that of the layer the file is in.
    """
    place = target.resolve()
    for mounted in _listed_mounts():
        if mounted == place or place in mounted.parents:
            yield mounted
    device = place.parent.stat().st_dev
    for folder, _, _ in os.walk(place):
        if os.lstat(folder).st_dev != device:
            yield Path(folder)


def _listed_mounts() -> Iterator[Path]:
    """Every mount point, as the kernel lists them; none where it has no such list."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        # Blanks and backslashes in paths are octal escapes (proc(5)).
        path = re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
        yield Path(os.fsdecode(path))
