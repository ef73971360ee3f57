"""The files an output is made from: what they hold, their SHA-256, and whether they changed meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.errors import InputError, UsageError
from embcompress.storage.rawio import naming

_HASH_CHUNK = 1 << 20

GIVE_ORIGINAL = "give the checkpoint that was compressed with --against"


def compressed(source: Checkpoint, remedy: str) -> Description:
    """The record of a compressed checkpoint.

    Raises:
        UsageError: no table of it is compressed; with ``remedy``.
    """
    if source.description is None or not source.description.tables:
        raise UsageError(f"{source.path}: holds no compressed table", remedy=remedy)
    return source.description


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
def hashed(files: tuple[Path, ...]) -> Iterator[Future[Mapping[str, str]]]:
    """SHA-256 of each file by its name, computed in another thread while the block works.

    Leaving the block early stops the hashing, so that an error is not held up by it.
    """
    stop = threading.Event()

    def run() -> Mapping[str, str]:
        return {file.name: _sha256(file, stop) for file in files}

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(run)
        finally:
            stop.set()


def _sha256(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_HASH_CHUNK))
    with naming(path), path.open("rb", buffering=0) as file:
        while (count := file.readinto(chunk)) and not stop.is_set():
            digest.update(chunk[:count])
    return digest.hexdigest()


Stamps = tuple[tuple[int, int], ...]
"""Size and time of modification of each weight file, in bytes and nanoseconds."""


def stamps(source: Checkpoint) -> Stamps:
    """What tells later whether the weight files were written to meanwhile."""
    return tuple((s.st_size, s.st_mtime_ns) for s in (f.stat() for f in source.weight_files))


def check_unchanged(source: Checkpoint, before: Stamps) -> None:
    """Refuse to publish what was made from weight files that were written to while they were read.

    Raises:
        InputError: their stamps are no longer ``before``.
    """
    if stamps(source) != before:
        raise InputError(
            f"{source.path}: changed while it was read", remedy="run again when nothing writes to it"
        )
