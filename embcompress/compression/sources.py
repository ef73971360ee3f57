"""The files an output is made from: what they hold, their SHA-256, and whether they changed meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint, Reading
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.compression.lookups import check_lookups
from embcompress.errors import InputError, UsageError
from embcompress.storage.rawio import naming
from embcompress.storage.regular import opened

_HASH_CHUNK = 1 << 20

GIVE_ORIGINAL = "give the checkpoint that was compressed with --against"


def check_editable(source: Checkpoint) -> None:
    """Refuse a checkpoint that cannot be written, or that no model could be loaded from afterwards.

    Raises:
        UsageError: with the reason.
    """
    source.check_editable()
    check_lookups(source)


def compressed(source: Checkpoint, remedy: str) -> Description:
    """The record of a compressed checkpoint.

    Raises:
        UsageError: no table of it is compressed; with ``remedy``.
    """
    if source.description is None or not source.description.tables:
        raise UsageError(f"{source.path}: holds no compressed table", remedy=remedy)
    return source.description


def reading_of(described: Description) -> Reading:
    """How an original is to be read, so that what is compared with a copy is what the copy was made from."""
    return Reading(described.weights_only, described.state)


def check_holds(original: Checkpoint, record: TableRecord) -> None:
    """Refuse an original that does not hold the dense table of a record.

    Raises:
        UsageError: it has no tensor of that name and shape.
    """
    info = original.tensors.get(record.name)
    if info is None or info.shape != record.shape:
        raise UsageError(
            f"{original.path}: holds no {record.name} of shape {list(record.shape)}", remedy=GIVE_ORIGINAL
        )


@contextlib.contextmanager
def hashed(source: Checkpoint) -> Iterator[Future[Mapping[str, str]]]:
    """SHA-256 of each weight file by its name, computed in another thread while the block works.

    What is hashed is the file that was opened, also if another one has taken its name since.
    Leaving the block early stops the hashing, so that an error is not held up by it.
    """
    stop = threading.Event()

    def run() -> Mapping[str, str]:
        return {file.name: _sha256(file, source.descriptors.get(file), stop) for file in source.weight_files}

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(run)
        finally:
            stop.set()


def _sha256(path: Path, fd: int | None, stop: threading.Event) -> str:
    """SHA-256 of an open file, or of the one at ``path`` where ``fd`` is None."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_HASH_CHUNK))
    with ExitStack() as closing:
        file = closing.enter_context(opened(path)).fileno() if fd is None else fd
        offset = 0
        with naming(path):
            while (count := os.preadv(file, [chunk], offset)) and not stop.is_set():
                digest.update(chunk[:count])
                offset += count
    return digest.hexdigest()


Stamps = tuple[tuple[int, ...], ...]
"""Device, inode, size, and times of modification and of change (in nanoseconds) of each weight file."""


def stamps(source: Checkpoint) -> Stamps:
    """What tells later whether the weight files were written to or replaced since they were opened."""
    open_files = source.descriptors
    return _stamps(os.stat(open_files.get(file, file)) for file in source.weight_files)


def _stamps(found: Iterable[os.stat_result]) -> Stamps:
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


def check_unchanged(source: Checkpoint, before: Stamps) -> None:
    """Refuse to publish what was made from weight files that changed while they were read.

    Raises:
        InputError: they were written to, or others have taken their names.
    """
    if _stamps(file.stat() for file in source.weight_files) != before:
        raise InputError(
            f"{source.path}: changed while it was read", remedy="run again when nothing writes to it"
        )
