"""Decodes stored parts back to a table, after checking them against the table's record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.rows import part_rows
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.methods import method_for
from embcompress.methods.parts import REMAKE, Parts, check_elements, check_finite, check_suffixes
from embcompress.rows import Rows, wide


def check_stored(checkpoint: Checkpoint, record: TableRecord) -> None:
    """Check the stored parts of a table as :func:`decoded` does; raises its errors.

    In its own form, a library may train the projections to and from the factors apart. They are no table then
    but can be loaded, so only their types and numbers are checked.
    """
    if record.is_one_table:
        decoded(checkpoint, record)  # reads no rows
        return
    parts = _parts(checkpoint, record)
    with _told(checkpoint, record):
        check_finite(method_for(record.method).parts, parts)


def decoded(
    checkpoint: Checkpoint, record: TableRecord, *, precise: bool = False, finite: bool = True
) -> Rows:
    """Check the stored parts of a table, and decode it, block by block as it is read.

    Every command and ``load`` check parts here, so that all refuse the same files in the same words.

    Args:
        checkpoint: the checkpoint that holds its parts.
        record: the record of the table.
        precise: decode in float64.
        finite: read all floats first, and refuse NaN and infinity.

    Raises:
        InputError: a part is missing, does not fit the record or is not finite, the dense table is there too,
            or this version lacks the method.
    """
    method = method_for(record.method, str(checkpoint.path))
    parts = _parts(checkpoint, record)
    if precise:
        parts = {s: wide(part) if part.dtype.is_table else part for s, part in parts.items()}
    with _told(checkpoint, record):
        decode = method.decoder(parts, record.shape, record.rank)
        if finite:
            check_finite(method.parts, parts)

    def quietly(start: int, stop: int) -> NDArray[Any]:
        # Scales in untrusted files may be of any size; the result is checked when it is measured.
        with np.errstate(over="ignore", invalid="ignore"):
            return decode(start, stop)

    return Rows(record.shape, DTYPES[record.stored_dtype], quietly)


def _parts(checkpoint: Checkpoint, record: TableRecord) -> Parts:
    """The stored parts, all there and of the types that their method stores.

    Raises:
        InputError: see :func:`decoded`.
    """
    specs = method_for(record.method, str(checkpoint.path)).parts
    for name in record.part_names:
        if name not in checkpoint.tensors:
            raise InputError(f"{checkpoint.path}: {name}, a part of {record.name}, is missing", remedy=REMAKE)
    dense = checkpoint.tensors.get(record.name)
    with _told(checkpoint, record):
        if record.native is None and dense is not None and dense.shape != (0,):  # that of the guard
            raise InputError(
                f"holds a tensor of shape {list(dense.shape)} under this name, "
                "beside the parts of the compressed table",
                remedy=REMAKE,
            )
        check_suffixes(specs, record.parts)
        stored = {s: checkpoint.tensors[n] for s, n in zip(record.parts, record.part_names, strict=True)}
        found = {s: (i.dtype if i.layout == "dense" else None, i.shape) for s, i in stored.items()}
        check_elements(specs, found)
        return {suffix: part_rows(checkpoint, info.name) for suffix, info in stored.items()}


@contextlib.contextmanager
def _told(checkpoint: Checkpoint, record: TableRecord) -> Iterator[None]:
    """Name the checkpoint and the table in whatever is wrong with the parts."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {record.name}: {error.message}", remedy=error.remedy) from None
