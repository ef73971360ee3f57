"""Read files from start to end, plain or compressed, with bounded memory whatever they hold."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from embcompress.checkpoint.vectors.packing import Content, unpacked
from embcompress.errors import InputError
from embcompress.progress import Progress, Steps, silent
from embcompress.storage.rawio import naming
from embcompress.storage.regular import opened

STAGE = "reading vectors"
"""Name of the progress stage, which counts bytes of the file."""

CHUNK = 1 << 20
"""Bytes read at a time; a bomb expands by no more than that."""

LINE_LIMIT = 4 << 20
"""Longest line accepted, in bytes: the most numbers a vector may have, at 60 bytes each."""

HEAD = 1 << 16
"""Bytes from which a format is recognized."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Stream:
    """The bytes of a file, decompressed if it is gzip, bzip2 or zip; use it as a context manager.

    Args:
        path: an existing file; its first bytes, not its suffix, decide whether it is compressed.
        progress: called with the number of bytes read from disk.

    Raises:
        UsageError: a zip archive with several files of vectors.
        InputError: a zip archive that cannot be read.
    """

    def __init__(self, path: Path, progress: Progress = silent) -> None:
        self.path = path
        self._file = opened(path)
        self.size = os.fstat(self._file.fileno()).st_size
        try:
            with naming(path):
                found = unpacked(self._file, path)
        except BaseException:
            self._file.close()
            raise
        self.compressed = found is not None
        self._content: Content
        self._packing, self._content = found or ("", self._file)
        self._steps = Steps(progress, STAGE, self.size)
        self._reported = self._read = 0

    def read(self, count: int = CHUNK) -> bytes:
        """The next ``count`` bytes; fewer only at the end of the file.

        Raises:
            InputError: the compressed stream is corrupt or cut short.
        """
        try:
            with naming(self.path):
                data = self._content.read(count)
        except EOFError:
            raise InputError(
                f"{self.path}: the {self._packing} stream is cut short after byte {self._read:,} of its "
                "contents",
                remedy="download it again",
            ) from None
        except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk
                raise
            raise InputError(
                f"{self.path}: the {self._packing} stream is corrupt ({error})", remedy="download it again"
            ) from None
        if self._read == 0:
            data = data.removeprefix(_BYTE_ORDER_MARK)
        self._read += len(data)
        place = self._file.tell()
        if place > self._reported:
            self._steps(place - self._reported)
        self._reported = place
        return data

    def lines(self) -> Iterator[bytes]:
        """Every line without its line feed; text after the last line feed counts if it is not empty.

        Raises:
            InputError: a line is longer than ``LINE_LIMIT``.
        """
        rest, number = b"", 0
        while chunk := self.read():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
            number += len(whole)
            if len(rest) > LINE_LIMIT:
                raise InputError(
                    f"{self.path}: line {number + 1} has more than {LINE_LIMIT:,} bytes",
                    remedy="check that it is a text file of word vectors",
                )
        if rest:
            yield rest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._content.close()
        self._file.close()


def read_head(path: Path) -> bytes:
    """The first ``HEAD`` bytes, decompressed.

    Raises:
        InputError: the file is empty, or these bytes are already corrupt.
    """
    with Stream(path) as stream:
        head = stream.read(HEAD)
        if not head:
            raise InputError(f"{path}: is empty, {stream.size:,} bytes on disk", remedy="download it again")
        return head
