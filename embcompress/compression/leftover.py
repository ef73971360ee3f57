"""Matrices as large as a compressed table that stay dense: which they are, and how each could be taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.errors import listed
from embcompress.reports.record import LeftDense
from embcompress.reports.units import human_bytes
from embcompress.tables import Table, differing_head, is_head, is_layer, is_table

_MOST = 8
"""Most matrices that are noted one by one."""


def left_dense(source: Checkpoint, tables: Sequence[Table], *, chosen: bool) -> tuple[LeftDense, ...]:
    """The matrices that are at least as large as the smallest of ``tables`` and are not among them.

    Output heads are listed, other layers that multiply by a matrix are not: nobody takes them for tables.

    Args:
        source: the checkpoint.
        tables: the tables that are compressed, or that could be.
        chosen: whether the user named them.

    Returns:
        The largest first.
    """
    if not tables:
        return ()
    least = min(table.rows.nbytes for table in tables)
    found = []
    for name, info in _dense(source, _names(tables)):
        if info.nbytes < least or (is_layer(name) and not is_head(name)):
            continue
        if is_layer(name):
            how = "it is an output layer, and only embeddings can be loaded as factors"
        elif is_table(source, name):
            how = "--key takes it too" if chosen else "--all takes it too"
        else:
            how = f"if it is an embedding, --key {tables[0].name} --key {name} takes both"
        assert info.dtype is not None
        found.append(LeftDense(name, (info.shape[0], info.shape[1]), info.dtype.torch, info.nbytes, how))
    return tuple(sorted(found, key=lambda left: -left.nbytes))


def left_notes(source: Checkpoint, tables: Sequence[Table], *, chosen: bool) -> Iterator[str]:
    """A line for each matrix of :func:`left_dense`, and one for smaller tables.

    Args:
        source: the checkpoint.
        tables: the tables that are compressed, or that could be.
        chosen: whether the user named them. Smaller tables then need no word.
    """
    left = left_dense(source, tables, chosen=chosen)
    untied = {differing_head(source, table) for table in tables}  # there is a note on these already
    shown = [matrix for matrix in left if matrix.name not in untied]
    for matrix in shown[:_MOST]:
        yield f"{matrix.name} {list(matrix.shape)}, {human_bytes(matrix.nbytes)}, stays dense: {matrix.how}"
    if more := shown[_MOST:]:
        yield f"further matrices as large as a table that stay dense: {len(more)}; 'report --json' lists them"
    if not chosen and tables:
        taken = {matrix.name for matrix in left} | _names(tables)
        small = [info for name, info in _dense(source, taken) if is_table(source, name)]
        if small:
            names, total = listed([info.name for info in small]), sum(info.nbytes for info in small)
            yield f"smaller tables, {human_bytes(total)}, stay dense: --all takes {names}"


def _names(tables: Sequence[Table]) -> set[str]:
    return {name for table in tables for name in (table.name, *table.ties)}


def _dense(source: Checkpoint, taken: Collection[str]) -> Iterator[tuple[str, TensorInfo]]:
    """The matrices that can be read as tables and have none of the names ``taken``, each once."""
    for name, info in source.tensors.items():
        if info.is_matrix and 0 not in info.shape and name not in taken and name not in source.aliases:
            yield name, info
