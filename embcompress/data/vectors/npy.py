"""A NumPy matrix NAME.npy, with its tokens beside it in NAME.vocab.txt, one a line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from embcompress.checkpoint.base import Progress
from embcompress.checkpoint.dtypes import DTYPES, Floats
from embcompress.data.vectors.base import AGAIN, Choice, Matrix, VectorFormat, check_dimension, suffix_of
from embcompress.data.vectors.gathering import gather
from embcompress.data.vectors.vocabularies import read_vocabulary_file
from embcompress.errors import InputError, UsageError
from embcompress.rows import Rows

_KINDS = {"f2": "F16", "f4": "F32", "f8": "F64"}
_VERSIONS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
"""Readers of headers by version of the format; a third one exists for records with names alone."""


class Npy(VectorFormat):
    """A matrix of float16, float32 or float64 in either order of memory, and its vocabulary."""

    name = "NumPy matrix"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the suffix or the magic bytes."""
        return bool(head) and (suffix_of(path) == ".npy" or head.startswith(npy_format.MAGIC_PREFIX))

    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """See the base class."""
        header = _read_header(path)
        vocabulary = path.with_name(path.name.removesuffix(".npy") + ".vocab.txt")
        if not vocabulary.is_file():
            raise UsageError(
                f"{path}: needs its tokens in {vocabulary.name} beside it", remedy="write them, one a line"
            )
        stored = np.memmap(
            path, header.dtype, "r", header.offset, header.shape, order="F" if header.is_fortran else "C"
        )
        dtype = DTYPES[_KINDS[header.dtype.str[1:]]]

        def read(start: int, stop: int) -> Floats:
            return dtype.decode(stored[start:stop])

        rows = Rows(header.shape, dtype, read)
        return gather(rows, _tokens(vocabulary, header.shape[0]), choice, path, progress)


@dataclass(frozen=True)
class _Header:
    """A header that fits its file."""

    shape: tuple[int, int]
    is_fortran: bool
    dtype: np.dtype[Any]
    offset: int


def _read_header(path: Path) -> _Header:
    """Read the header and compare it with the file; no object is ever unpickled."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header of Python 2 is as good as any
        try:
            version = npy_format.read_magic(file)
            if version not in _VERSIONS:
                raise ValueError(f"version {version}")
            shape, is_fortran, dtype = _VERSIONS[version](file)
        except OSError:
            raise
        except Exception as error:  # a broken header makes NumPy raise whatever its parts do
            raise InputError(f"{path}: is no .npy file that can be read ({error})", remedy=AGAIN) from None
        offset, size = file.tell(), path.stat().st_size
    if dtype.str[1:] not in _KINDS:
        raise InputError(
            f"{path}: elements are {dtype}, taken are float16, float32 and float64",
            remedy="save the matrix with .astype(numpy.float32)",
        )
    if len(shape) != 2 or min(shape) < 1:
        raise InputError(
            f"{path}: shape {list(shape)}, a matrix of (tokens, numbers) is expected", remedy=AGAIN
        )
    check_dimension(shape[1], str(path))
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if expected != size:
        raise InputError(
            f"{path}: shape {list(shape)} of {dtype} takes {expected:,} bytes, the file has {size:,}",
            remedy=AGAIN,
        )
    return _Header((shape[0], shape[1]), is_fortran, dtype, offset)


def _tokens(vocabulary: Path, rows: int) -> Iterator[tuple[int, str]]:
    """Row and token, with as many tokens as rows."""
    count = 0
    for number, token in read_vocabulary_file(vocabulary):
        count = number + 1
        if count <= rows:
            yield number, token
    if count != rows:
        raise InputError(
            f"{vocabulary}: {count:,} lines, the matrix beside it has {rows:,} rows",
            remedy="write one token a line, in the order of the rows",
        )
