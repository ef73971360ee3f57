"""Open a file of texts, plain or gzip, as bytes that can be read line by line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from embcompress.checkpoint.vectors.stream import Stream
from embcompress.errors import InputError, UsageError

_ROOM, _MOST_RATIO = 16 << 20, 32
"""Bytes that any gzip file may hold, and how many times its size. Text shrinks three to ten times."""


def open_texts(path: Path, remedy: str) -> io.BufferedReader:
    """The bytes of a file, decompressed if its first bytes are those of gzip; a context manager.

    Args:
        path: the file.
        remedy: what to do if there is none.

    Raises:
        UsageError: there is no such file.
        InputError: it is not a regular file. Reading raises it if the gzip stream is corrupt, or holds so
            much more than its size that it is not text.
    """
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy=remedy)
    return io.BufferedReader(_Unpacked(path))


class _Unpacked(io.RawIOBase):
    """The contents of a file as a raw stream."""

    def __init__(self, path: Path) -> None:
        self._stream = Stream(path)
        self._left = max(_ROOM, _MOST_RATIO * self._stream.size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        if not data:  # the stream leaves out a byte order mark, which may be all that it had
            data = self._stream.read(len(buffer))
        if self._stream.compressed:
            self._left -= len(data)
            if self._left < 0:
                raise InputError(
                    f"{self._stream.path}: the gzip stream holds more than {_MOST_RATIO} times its "
                    f"{self._stream.size:,} bytes",
                    remedy="unpack it with gunzip if it is text",
                )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.__exit__(None, None, None)
        super().close()
