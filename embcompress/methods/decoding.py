"""From stored parts back to the table they stand for, with the record checked against them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.rows import part_rows
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.methods import method_for
from embcompress.methods.parts import REMAKE, check_suffixes
from embcompress.rows import Rows, wide


def decoded(checkpoint: Checkpoint, record: TableRecord, *, precise: bool = False) -> Rows:
    """The table that the stored parts of ``record`` stand for, decoded by blocks.

    Args:
        checkpoint: a checkpoint that holds the parts.
        record: the table's record.
        precise: decode in float64.

    Raises:
        InputError: a part is missing or of another shape, or its method is not known.
    """
    method = method_for(record.method, str(checkpoint.path))
    for name in record.part_names:
        if name not in checkpoint.tensors:
            raise InputError(f"{checkpoint.path}: {name}, a part of {record.name}, is missing", remedy=REMAKE)
    try:
        check_suffixes(method.parts, record.parts)
        read = [part_rows(checkpoint, name) for name in record.part_names]
        if precise:
            read = [wide(part) if part.dtype.is_table else part for part in read]
        decode = method.decoder(dict(zip(record.parts, read, strict=True)), record.shape, record.rank)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: {record.name}: {error.message}", remedy=error.remedy) from None

    def quietly(start: int, stop: int) -> NDArray[Any]:
        # A stranger's scales may be of any size: whether the result is finite is asked where it is measured.
        with np.errstate(over="ignore", invalid="ignore"):
            return decode(start, stop)

    return Rows(record.shape, DTYPES[record.stored_dtype], quietly)
