"""Reads the compressed tables of a checkpoint for a model: check → read → make modules → find their places.

Both ``load`` and the integration with transformers read tables here, so that they refuse the same
checkpoints with the same messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import Description, TableRecord, part_name
from embcompress.errors import InputError, UsageError
from embcompress.loading.fit import RIGHT_MODEL
from embcompress.methods.decoding import check_stored
from embcompress.methods.modules import Parts, TableModules, coded_table, has_module


@dataclass(frozen=True)
class StoredTable:
    """A compressed table that has been read.

    Attributes:
        record: its record in the checkpoint.
        parts: the stored tensors by suffix.
        contents: the modules that hold coded parts; for two float factors, which need no special modules,
            their rank.
    """

    record: TableRecord
    parts: Parts
    contents: TableModules | int


@dataclass(frozen=True)
class Stored:
    """The contents of a checkpoint.

    Attributes:
        tables: the compressed ones.
        others: everything else by name, without guards; empty if only tables were asked for.
    """

    tables: tuple[StoredTable, ...]
    others: Mapping[str, Any]


def read_stored(checkpoint: Checkpoint, description: Description | None, *, others: bool) -> Stored:
    """Check the compressed tables of a checkpoint, and read those that must be put into a model.

    Tables in a native form need nothing: their configuration already makes the model build the factors.

    Args:
        checkpoint: holds their parts.
        description: the record of the tables; None if there are none.
        others: whether everything else is read too.

    Raises:
        UsageError: a method has no torch module, or the format has no state dict.
        InputError: the parts are not what the records say, or contradict each other.
    """
    for record in description.tables if description else ():
        check_stored(checkpoint, record)
    records = description.swapped if description else ()
    for record in records:
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
    # Parts may be stored under tied names too. A guard, an empty tensor, makes stock loaders refuse the file.
    excluded = {part_name(name, s) for r in records for name in (r.name, *r.ties) for s in r.parts}
    excluded |= {r.name for r in records if tuple(getattr(state.get(r.name), "shape", ())) == (0,)}
    return Stored(tuple(tables), {name: value for name, value in state.items() if name not in excluded})


def places_of(
    record: TableRecord,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    renamed: Callable[[str], str],
    where: object,
) -> list[str]:
    """Names of a table's parameters in a model: first the table's own name, then its ties.

    Args:
        record: the table's record.
        model: the model, for messages.
        parameters: the model's parameters by name, each under all of its names.
        renamed: turns a name in the checkpoint into one in the model.
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
