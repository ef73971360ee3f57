"""What formats share that keep everything in one file, which is opened when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.storage.regular import Source


class OneFile(Checkpoint):
    """A checkpoint in one file."""

    _source: Source

    @property
    def descriptors(self) -> Mapping[Path, int]:
        return {self.path: self._fd}

    @property
    def _fd(self) -> int:
        return self._source.fd

    def suspend(self) -> None:
        self._source.suspend()

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self._source.close()
