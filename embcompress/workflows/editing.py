"""From tables and what replaces them to the edit of a checkpoint, and to the record of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embcompress.checkpoint.base import Checkpoint, Edit, NewTensor
from embcompress.checkpoint.description import Description, TableRecord, part_name
from embcompress.checkpoint.dtypes import Floats
from embcompress.methods.base import Blocks, Layout, Method
from embcompress.tables import Table
from embcompress.version import __version__


@dataclass(frozen=True)
class Replacement:
    """A table and what stands in its place.

    Attributes:
        table: the table.
        method: how it is stored.
        layout: what is stored.
        contents: of each part, in the method's order; None where only sizes matter.
    """

    table: Table
    method: Method
    layout: Layout
    contents: tuple[Blocks, ...] | None = None


def replacing(source: Checkpoint, replacements: Sequence[Replacement]) -> Edit:
    """Parts in the place of each table, ties pointing at them, and a guard where one is needed.

    Raises:
        UsageError: a part would take the name of a tensor that stays.
    """
    remove: set[str] = set()
    add: list[NewTensor] = []
    aliases: dict[str, str] = {}
    for new in replacements:
        table = new.table
        remove |= {table.name, *table.ties}
        if source.needs_guard:
            add.append(NewTensor(table.name, table.rows.dtype, (0,), table.name, _nothing))
        parts = new.layout.parts
        for part, blocks in zip(parts, new.contents or (_nothing,) * len(parts), strict=True):
            name = part_name(table.name, part.suffix)
            add.append(NewTensor(name, part.dtype, part.shape, table.name, blocks))
            aliases |= {part_name(tie, part.suffix): name for tie in table.ties}
    edit = Edit(frozenset(remove), tuple(add), aliases)
    source.check_edit(edit)
    return edit


def describe(source: Checkpoint, records: Sequence[TableRecord]) -> Description:
    """The record before the work: errors are foretold, hashes of the source still to come."""
    return Description(__version__, {f.name: "0" * 64 for f in source.weight_files}, tuple(records))


def sketch(new: Replacement, weighting: str | None) -> TableRecord:
    """The longest record that a table could get, its rows weighted as ``weighting`` says."""
    rows = new.table.rows
    return TableRecord(
        name=new.table.name,
        shape=rows.shape,
        dtype=rows.dtype.name,
        method=new.method.name,
        rank=new.layout.rank,
        stored_dtype=new.layout.dtype.name,
        bits=new.layout.bits,
        ratio=-1 / 3e-10,
        relative_error=-1 / 3e-10,
        parts=new.layout.suffixes,
        ties=new.table.ties,
        copies=new.table.copies,
        weighting=weighting,
        weighted_error=None if weighting is None else -1 / 3e-10,
        seed=new.method.seed,
    )


def _nothing() -> Iterator[Floats]:
    return iter(())
