"""From stored parts back to the table they stand for, with the record checked against them."""

from __future__ import annotations

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.errors import InputError
from embcompress.methods import method_for
from embcompress.tables import Rows, rows_of, wide


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
    again = "make the file again from its source"
    if record.parts != method.suffixes:
        raise InputError(
            f"{checkpoint.path}: {record.name} has the parts {list(record.parts)}, "
            f"method {method.name} stores {list(method.suffixes)}",
            remedy=again,
        )
    for name in record.part_names:
        if name not in checkpoint.tensors:
            raise InputError(
                f"{checkpoint.path}: {name}, a part of {record.name}, is missing",
                remedy=again,
            )
    parts = [wide(rows_of(checkpoint, n)) if precise else rows_of(checkpoint, n) for n in record.part_names]
    found = method.dimensions(parts)
    if (found.shape, found.rank) != (record.shape, record.rank):
        raise InputError(
            f"{checkpoint.path}: the parts of {record.name} make a table of {found.shape} from rank "
            f"{found.rank}, its record says {record.shape} and rank {record.rank}",
            remedy=again,
        )
    return Rows(record.shape, parts[0].dtype, lambda start, stop: method.decode(parts, start, stop))
