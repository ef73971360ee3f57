"""Stored tensors of a checkpoint as :class:`embcompress.rows.Rows`."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.rows import Rows


def rows_of(checkpoint: Checkpoint, name: str) -> Rows:
    """The stored float matrix ``name`` as :class:`Rows`.

    Raises:
        InputError: it is not a dense matrix of a float type, or it is empty.
    """
    return _rows(checkpoint, name, checkpoint.tensors[name].matrix_dtype())


def _rows(checkpoint: Checkpoint, name: str, dtype: DType) -> Rows:
    info = checkpoint.tensors[name]
    if 0 in info.shape:
        raise InputError(f"{name}: shape {list(info.shape)} holds nothing", remedy="name another with --key")
    return Rows((info.shape[0], info.shape[1]), dtype, lambda i, j: checkpoint.rows(name, i, j))


def part_rows(checkpoint: Checkpoint, name: str) -> Rows:
    """The stored matrix ``name`` as :class:`Rows`, of floats or of integers, which keep their type.

    Raises:
        InputError: it is not a dense matrix of a readable type, or it is empty.
    """
    return _rows(checkpoint, name, checkpoint.tensors[name].readable_dtype())
