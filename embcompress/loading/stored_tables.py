"""The compressed tables of a checkpoint, opened for a model: check → read → modules → their places.

Both ``load`` and the integration with transformers open tables here, so that they refuse the same
checkpoints in the same words.
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
    """A compressed table that was read.

    Attributes:
        record: what the checkpoint says of it.
        parts: what is stored.
        contents: the modules that hold the parts, or the rank of two float factors, which have none of
            their own.
    """

    record: TableRecord
    parts: Parts
    contents: TableModules | int


@dataclass(frozen=True)
class Stored:
    """What was read of a checkpoint.

    Attributes:
        tables: the compressed ones.
        others: all else by name, without the guards; nothing where only tables were asked for.
    """

    tables: tuple[StoredTable, ...]
    others: Mapping[str, Any]


def read_stored(checkpoint: Checkpoint, records: Sequence[TableRecord], *, others: bool) -> Stored:
    """Check the compressed tables of a checkpoint, and read them.

    Args:
        checkpoint: holds their parts.
        records: of the tables.
        others: whether everything else is read too.

    Raises:
        UsageError: no module holds what a method stores, or the format gives no tensors.
        InputError: the parts are not what the records say, or contradict each other.
    """
    for record in records:
        decoded(checkpoint, record)  # the check that expanding makes
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
    # Tied names hold parts too where that costs nothing, and the guard makes stock loaders refuse the file.
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
    """The parameters of a model that are a table of a checkpoint, the one that stands for it first.

    Args:
        record: of the table.
        model: for messages.
        parameters: of the model by name, each under all of its names.
        renamed: how a name in the checkpoint becomes one in the model.
        where: the checkpoint, for messages.

    Raises:
        UsageError: there is none, or it is of another shape.
    """
    found = [name for name in map(renamed, (record.name, *record.ties)) if name in parameters]
    if not found:
        raise UsageError(
            f"{where}: {type(model).__name__} has no parameter {record.name}, the table that is compressed",
            remedy=RIGHT_MODEL,
        )
    shape = tuple(parameters[found[0]].shape)
    if shape != record.shape:
        raise UsageError(
            f"{where}: {record.name}: is {list(record.shape)}, the model has {list(shape)}",
            remedy=RIGHT_MODEL,
        )
    return found
