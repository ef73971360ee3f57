"""The compressed tables of a checkpoint, opened for a model: check → read → modules → their places.

Both ``load`` and the transformers integration read tables here, so both refuse the same checkpoints with the
same messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.errors import InputError, UsageError
from embcompress.loading.fit import RIGHT_MODEL
from embcompress.methods.decoding import decoded
from embcompress.methods.modules import Parts, TableModules, coded_table, has_module


@dataclass(frozen=True)
class StoredTable:
    """A compressed table that has been read.

    Attributes:
        record: the checkpoint's record of it.
        parts: the stored tensors by suffix.
        contents: the modules that hold the parts; for two float factors, which need no modules of their
            own, their rank.
    """

    record: TableRecord
    parts: Parts
    contents: TableModules | int


@dataclass(frozen=True)
class Stored:
    """The contents of a checkpoint.

    Attributes:
        tables: the compressed tables.
        others: all other tensors by name, without the guards; empty if only tables were read.
    """

    tables: tuple[StoredTable, ...]
    others: Mapping[str, Any]


def read_stored(checkpoint: Checkpoint, records: Sequence[TableRecord], *, others: bool) -> Stored:
    """Check and read the compressed tables of a checkpoint.

    Args:
        checkpoint: holds the parts.
        records: the records of the tables.
        others: whether to read everything else too.

    Raises:
        UsageError: a method has no module for its parts, or the format holds no state dict.
        InputError: the parts contradict the records or each other.
    """
    for record in records:
        decoded(checkpoint, record)  # reads no rows; makes the checks that expand makes
        if not has_module(record.method):
            raise UsageError(
                f"{checkpoint.path}: the parts of {record.name} (method {record.method}) cannot be loaded",
                remedy="run 'embcompress expand' and load the dense result",
            )
    checkpoint.check_integrity()
    names = None if others else [name for record in records for name in record.part_names]
    state = checkpoint.torch_state(names)
    tables = []
    for record in records:
        parts = {suffix: state[part_name(record.name, suffix)] for suffix in record.parts}
        try:
            coded = coded_table(record.method, parts, record.shape)
        except InputError as error:
            where = f"{checkpoint.path}: {record.name}"
            raise InputError(f"{where}: {error.message}", remedy=error.remedy) from None
        tables.append(StoredTable(record, parts, coded or record.rank or 0))
    # Tied names hold parts too where that costs no bytes; the guard makes stock loaders refuse the file.
    gone = {part_name(name, s) for r in records for name in (r.name, *r.ties) for s in r.parts}
    gone |= {r.name for r in records if tuple(getattr(state.get(r.name), "shape", ())) == (0,)}
    return Stored(tuple(tables), {name: value for name, value in state.items() if name not in gone})


def places_of(
    record: TableRecord,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    renamed: Callable[[str], str],
    where: object,
) -> list[str]:
    """Find the parameters of a model that hold a table of a checkpoint; the table's own name comes first.

    Args:
        record: the record of the table.
        model: the model, for messages.
        parameters: the model's parameters by name, each under all of its names.
        renamed: maps a name in the checkpoint to a name in the model.
        where: the checkpoint, for messages.

    Raises:
        UsageError: the model has no such parameter, or it has another shape.
    """
    found = [name for name in map(renamed, (record.name, *record.ties)) if name in parameters]
    if not found:
        raise UsageError(
            f"{where}: {type(model).__name__} has no parameter {record.name}, the compressed table",
            remedy=RIGHT_MODEL,
        )
    shape = tuple(parameters[found[0]].shape)
    if shape != record.shape:
        raise UsageError(
            f"{where}: {record.name} is {list(record.shape)}, the model has {list(shape)}",
            remedy=RIGHT_MODEL,
        )
    return found
