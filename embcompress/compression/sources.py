"""The files an output is made from: their SHA-256, and whether they changed meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.errors import InputError

_HASH_CHUNK = 1 << 20


@contextlib.contextmanager
def hashed(files: tuple[Path, ...]) -> Iterator[Future[Mapping[str, str]]]:
    """SHA-256 of each file by name, computed beside the work of the block.

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
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(chunk)) and not stop.is_set():
            digest.update(chunk[:count])
    return digest.hexdigest()


Stamps = tuple[tuple[int, int], ...]
"""Size and time of modification of each weight file."""


def stamps(source: Checkpoint) -> Stamps:
    """What tells whether the weight files were written to meanwhile."""
    return tuple((s.st_size, s.st_mtime_ns) for s in (f.stat() for f in source.weight_files))


def check_unchanged(source: Checkpoint, before: Stamps) -> None:
    """Refuse to publish what was made from weight files that were written to while they were read.

    Raises:
        InputError: their stamps are others than ``before``.
    """
    if stamps(source) != before:
        raise InputError(
            f"{source.path}: changed while it was read", remedy="run again when nothing writes to it"
        )
