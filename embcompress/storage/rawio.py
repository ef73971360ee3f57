"""Move bytes between file descriptors: exact reads, complete writes, and copies inside the kernel."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import InputError

CHUNK = 8 << 20
"""Bytes moved at a time: enough to make the call cheap, few enough for a smooth progress bar."""

_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EIO}
"""Errors by which copy_file_range says that it cannot be used here, or that one of the two files failed: a
read and a write show which. Any other error is a real one."""


def read_exact(fd: int, offset: int, out: NDArray[Any], what: str) -> None:
    """Fill the C-contiguous array ``out`` with the bytes from ``offset`` on.

    Raises:
        InputError: the file ends too early; ``what`` names it in the message.
    """
    view = _bytes_of(out)
    done = 0
    while done < len(view):
        with naming(fd):
            count = os.preadv(fd, [view[done : done + (1 << 30)]], offset + done)
        if count == 0:
            raise InputError(
                f"{what}: ends at byte {offset + done:,}, {len(view) - done:,} bytes early",
                remedy="copy or download it again",
            )
        done += count


def read_at(fd: int, count: int, offset: int) -> bytes:
    """Up to ``count`` bytes from ``offset`` on; a failure names the file."""
    with naming(fd):
        return os.pread(fd, count, offset)


@contextlib.contextmanager
def naming(file: int | Path) -> Iterator[None]:
    """Give errors of reading the name of the file, given by its path or descriptor.

    The system names no file in errors of reads; then a failing disk under the input would look like one
    under the output.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            if isinstance(file, int):
                with contextlib.suppress(OSError):  # only Linux tells the name
                    error.filename = os.readlink(f"/proc/self/fd/{file}")
            else:
                error.filename = str(file)
        raise


def write_all(fd: int, data: bytes | memoryview | NDArray[Any]) -> int:
    """Write everything at the current position and return the number of bytes."""
    view = (
        _bytes_of(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else memoryview(data).cast("B")
    )
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + (1 << 30)])
    return done


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of bytes given in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array; an empty array has no memory to view."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def copy_range(
    source: int, offset: int, count: int, target: int, advance: Callable[[int], None] | None = None
) -> None:
    """Append ``count`` bytes of ``source`` from ``offset`` on to ``target`` at its position.

    The kernel copies them (copy_file_range) if it can; otherwise they go through a buffer.
    ``advance`` is called with the number of bytes of each step.

    Raises:
        InputError: the source ends too early.
    """
    in_kernel = hasattr(os, "copy_file_range")
    done = 0
    while done < count:
        step = min(CHUNK, count - done)
        if in_kernel:
            try:
                moved = os.copy_file_range(source, target, step, offset_src=offset + done)
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                in_kernel = False
                continue
        else:
            moved = write_all(target, read_at(source, step, offset + done))
        if moved == 0:
            raise InputError(
                f"the input ended at byte {offset + done:,} while it was copied, "
                f"{count - done:,} bytes early",
                remedy="make sure that nothing else writes to it, and run again",
            )
        done += moved
        if advance:
            advance(moved)
