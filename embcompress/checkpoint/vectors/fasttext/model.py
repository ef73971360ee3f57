"""An opened fastText model: the input matrix is the table, the rest is kept beside it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.vectors.base import Extra, StoredVectors
from embcompress.checkpoint.vectors.fasttext.dictionary import read_dictionary
from embcompress.checkpoint.vectors.fasttext.header import HEADER_BYTES, FastTextHeader, parse_header
from embcompress.checkpoint.vectors.fasttext.quantized import QuantizedMatrix, read_quantized
from embcompress.checkpoint.vectors.fasttext.subwords import HEADER, PRUNED
from embcompress.checkpoint.vectors.record import TABLE
from embcompress.checkpoint.vectors.streamed import split_tokens, whole_file
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress
from embcompress.storage.rawio import CHUNK, read_at, read_exact

COUNTS, LABELS, OUTPUT = "fasttext.counts", "fasttext.labels", "fasttext.output.weight"
"""Tensor names of the count of each entry, of the labels, and of the output matrix."""

SIZES = struct.Struct("<?2q")
"""Before each matrix: whether it is quantized, its rows and its columns."""

_NOTED = 4
"""An output matrix is worth a note from this fraction of the table's size on: a fourth."""


class FastTextModel(StoredVectors):
    """The rows of a model's input matrix: first those of words, then those of the buckets of n-grams.

    Args:
        path: the file, plain or compressed.
        progress: called while a compressed file is unpacked.

    Raises:
        InputError: the file is corrupt.
        EmbcompressError: there is no room to unpack it.
    """

    dtype = DTYPES["F32"]

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._file = whole_file(path, progress)
        try:
            self._parse(os.fstat(self._fd).st_size, str(path))
        except BaseException:
            self._file.close()
            raise

    @property
    def _fd(self) -> int:
        return self._file.fileno()

    def _parse(self, size: int, where: str) -> None:
        head = read_at(self._fd, HEADER_BYTES, 0)
        self._header = header = parse_header(head, where)
        self._dictionary = read_dictionary(self._fd, HEADER_BYTES, header, where)
        pruned = header.pruned or 0
        if self._dictionary.end + 8 * pruned > size:
            raise InputError(
                f"{where}: claims {pruned:,} kept n-grams, the file ends at byte {size:,}",
                remedy="download it again",
            )
        place = self._dictionary.end + 8 * pruned
        self._quantized: QuantizedMatrix | None = None
        if read_at(self._fd, 1, place) not in (b"", b"\0"):
            self._quantized = read_quantized(self._fd, place + 1, where)
            self.shape, end = self._quantized.shape, self._quantized.end
        elif header.pruned is not None:
            raise InputError(
                f"{where}: a pruned model that is not quantized, which fastText does not read either",
                remedy="download it again",
            )
        else:
            self._begin, self.shape, end = self._dense(place, size, where)
        if self.shape != (header.rows, header.dimension):
            raise InputError(
                f"{where}: an input matrix of shape {list(self.shape)}, {header.words:,} words and "
                f"{header.rows - header.words:,} buckets of {header.dimension} numbers are expected",
                remedy="download it again, or save it again with fastText",
            )
        kind = read_at(self._fd, 1, end)
        if self._quantized is not None and kind == b"\1":
            begin, shape, end = end, (0, 0), read_quantized(self._fd, end + 1, where).end
        else:
            begin, shape, end = self._dense(end, size, where)
        if end != size:
            raise InputError(
                f"{where}: {size - end:,} bytes follow the output matrix, none is expected",
                remedy="download it again",
            )
        self.extras: Mapping[str, Extra]
        if self._quantized is not None:
            pairs = np.frombuffer(read_at(self._fd, 8 * pruned, self._dictionary.end), "<i4")
            self.extras = {HEADER: held(head + kind), PRUNED: held(pairs)}
            return
        output = Extra(DTYPES["F32"], shape, lambda i, j: self._matrix(begin, shape[1], i, j))
        counts = np.array(self._dictionary.counts, np.int64)
        kept: dict[str, bytes | NDArray[Any]] = {HEADER: head + kind, COUNTS: counts}
        if header.labels:
            kept[LABELS] = self._dictionary.labels
        self.extras = {**{name: held(value) for name, value in kept.items()}, OUTPUT: output}

    def _dense(self, place: int, size: int, where: str) -> tuple[int, tuple[int, int], int]:
        """Offset, shape and end of the dense matrix whose sizes stand at ``place``."""
        found = read_at(self._fd, SIZES.size, place)
        rows, columns = SIZES.unpack(found)[1:] if len(found) == SIZES.size else (0, 0)
        begin = place + SIZES.size
        end = begin + 4 * rows * columns
        if len(found) < SIZES.size or min(rows, columns) < 0 or end > size:
            raise InputError(
                f"{where}: a matrix of {rows:,} × {columns:,} numbers at byte {place:,} ends at byte "
                f"{end:,}, the file at {size:,}",
            )
        return begin, (rows, columns), end

    def _matrix(self, begin: int, columns: int, start: int, stop: int) -> NDArray[Any]:
        found = np.empty((stop - start, columns), np.float32)
        read_exact(self._fd, begin + 4 * columns * start, found, str(self._path))
        return found

    @property
    def header(self) -> FastTextHeader:
        """The model's header."""
        return self._header

    @property
    def notes(self) -> tuple[str, ...]:
        """What a quantized model is, and what is kept of a dense one at its full size."""
        if self._quantized is not None:
            return (f"a quantized fastText model; {TABLE} is decoded from its codes",)
        nbytes = 4 * self.extras[OUTPUT].shape[0] * self.shape[1]
        if self._header.is_supervised or _NOTED * nbytes < 4 * self.shape[0] * self.shape[1]:
            return ()
        return (
            f"{OUTPUT}, {nbytes:,} bytes that only further training needs, is kept as it is; "
            f"--key {TABLE} --key {OUTPUT} compresses both",
        )

    def check_editable(self) -> None:
        if self._quantized is not None:
            raise UsageError(
                f"{self._path}: is quantized already, {os.fstat(self._fd).st_size:,} bytes for a table of "
                f"{4 * self.shape[0] * self.shape[1]:,}",
                remedy="give the .bin model that it was made from",
            )

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        if self._quantized is not None:
            return self._quantized.rows(self._fd, start, stop, str(self._path))
        return self._matrix(self._begin, self.shape[1], start, stop)

    def tokens(self) -> Iterator[bytes]:
        """The words; rows of buckets have none."""
        words = self._dictionary.words
        return split_tokens((words[i : i + CHUNK] for i in range(0, len(words), CHUNK)), str(self._path))

    def close(self) -> None:
        self._file.close()


def held(value: bytes | NDArray[Any]) -> Extra:
    """An extra tensor that is in memory."""
    array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    kinds = {"u1": "U8", "i4": "I32", "i8": "I64"}
    return Extra(DTYPES[kinds[array.dtype.str[1:]]], array.shape, lambda start, stop: array[start:stop])
