"""What is made from private files is as private as they are."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_ALL = 0o777


def permissions_of(files: Iterable[Path]) -> int:
    """The permission bits that all files have; those of a new file where there are none."""
    mask = _ALL
    for file in files:
        mask &= file.stat().st_mode
    return mask


def keep_permissions(written: Path, mask: int, source: Path | None = None) -> None:
    """Give what was written no more permissions than its source has. The umask has been applied already.

    Args:
        written: a file in a staging directory, with the files next to it; or a directory.
        mask: permission bits of the source.
        source: a directory whose files and folders pass on their own permissions to those of the same
            name, in place of ``mask``.
    """
    if not written.is_dir():
        for file in written.parent.iterdir():
            if file.is_file():
                restrict(file, mask)
        return
    for folder, _, files in os.walk(written):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            like = None if source is None else source / path.relative_to(written)
            restrict(path, mask if like is None or not like.exists() else like.stat().st_mode)


def restrict(path: Path, mask: int) -> None:
    """Take away the permissions that are not in ``mask``; the owner can always read and write.

    A directory can be entered by those who may read.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    kept = mask | 0o700 | (mask & 0o444) >> 2 if path.is_dir() else mask | 0o600
    if mode & ~kept:
        with contextlib.suppress(PermissionError):  # some file systems have no permissions
            path.chmod(mode & kept)
