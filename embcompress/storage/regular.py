"""Open files by name: only regular ones, and no more bytes than a file of its kind has.

A name in a directory from a stranger may lead to anything. A pipe would block for ever, and a device such
as ``/dev/zero`` has no end and says that its size is 0.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from embcompress.errors import InputError
from embcompress.storage.rawio import naming

_STEP = 1 << 16

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises:
        InputError: it is of another kind.
        OSError: it cannot be opened.
    """
    _check_kind(path, os.stat(path).st_mode)  # opening a device may already do something, and a socket fails
    # The name may lead elsewhere by now, so the open must not wait for the writer of a pipe.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_kind(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def opened(path: Path) -> io.BufferedReader:
    """A regular file, opened for reading as a context manager; see :func:`open_regular`."""
    return os.fdopen(open_regular(path), "rb")


class Source:
    """A regular file that can be given back to the system between two reads: it allows only so many.

    Args:
        path: the file.
        fd: its descriptor, which is closed with this object.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd, self._closed = path, fd, False
        self._stamp = _stamp(fd)

    @property
    def fd(self) -> int:
        """The descriptor, opened again if necessary; -1 once the source is closed.

        Raises:
            InputError: the file is no longer the one that was opened first.
        """
        if self._fd < 0 and not self._closed:
            fd = open_regular(self._path)
            if _stamp(fd) != self._stamp:
                os.close(fd)
                raise InputError(
                    f"{self._path}: changed while it was read", remedy="run again when nothing writes to it"
                )
            self._fd = fd
        return self._fd

    def suspend(self) -> None:
        """Close the file until it is read again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self.suspend()
        self._closed = True


def _stamp(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_limited(path: Path, limit: int, remedy: str = "download it again") -> bytes:
    """The contents of a small file.

    Args:
        path: the file.
        limit: the most bytes that such a file may have.
        remedy: what to do about a longer one.

    Raises:
        InputError: it is no regular file, or has more than ``limit`` bytes.
        OSError: it cannot be read.
    """
    with naming(path), opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(path, size, limit, remedy)
        found = file.read(size + 1)  # at once, as a rule: asking for the limit would take its memory
        # The file may have grown, and some file systems state no size.
        while len(found) <= limit and (more := file.read(_STEP)):
            found += more
    _check_size(path, len(found), limit, remedy)
    return found


def check_small(path: Path, limit: int, remedy: str = "download it again") -> None:
    """Refuse a file that is about to be read whole by another library; see :func:`read_limited`."""
    status = os.stat(path)
    _check_kind(path, status.st_mode)
    _check_size(path, status.st_size, limit, remedy)


def first_bytes(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a file, fewer if it is shorter, none if it is no regular file."""
    if not path.is_file():
        return b""
    with naming(path), opened(path) as file:
        return file.read(count)


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise InputError(f"{path}: is {kind}, expected a regular file", remedy="put the file itself there")


def _check_size(path: Path, size: int, limit: int, remedy: str) -> None:
    if size > limit:
        raise InputError(f"{path}: {size:,} bytes, limit {limit:,}", remedy=remedy)
