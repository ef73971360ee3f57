"""From tables and what replaces them to the edit of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embcompress.checkpoint.base import Checkpoint, Edit, NewTensor
from embcompress.checkpoint.description import part_name
from embcompress.checkpoint.dtypes import DType, Floats
from embcompress.methods.base import Blocks, Method
from embcompress.tables import Table


@dataclass(frozen=True)
class Replacement:
    """A table and what stands in its place.

    Attributes:
        table: the table.
        method: how it is stored.
        rank: components kept.
        dtype: element type of the parts.
        contents: of each part, in the method's order; None where only sizes matter.
    """

    table: Table
    method: Method
    rank: int
    dtype: DType
    contents: tuple[Blocks, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return self.method.nbytes(self.table.rows.shape, self.rank, self.dtype)


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
            add.append(NewTensor(table.name, new.dtype, (0,), table.name, _nothing))
        parts = new.method.parts(table.rows.shape, new.rank, new.dtype)
        for part, blocks in zip(parts, new.contents or (_nothing,) * len(parts), strict=True):
            name = part_name(table.name, part.suffix)
            add.append(NewTensor(name, part.dtype, part.shape, table.name, blocks))
            aliases |= {part_name(tie, part.suffix): name for tie in table.ties}
    edit = Edit(frozenset(remove), tuple(add), aliases)
    source.check_edit(edit)
    return edit


def _nothing() -> Iterator[Floats]:
    return iter(())
