"""Back to dense tables, for consumers that need one."""

from __future__ import annotations

import math
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.checkpoint.rows import rows_of
from embcompress.checkpoint.tensors import NewTensor
from embcompress.compression.outputs import check_format, default_output
from embcompress.compression.residuals import measured_errors
from embcompress.compression.sources import check_unchanged, stamps
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, UsageError
from embcompress.methods.decoding import decoded
from embcompress.native import native_named
from embcompress.native.base import Documents
from embcompress.progress import Progress, silent
from embcompress.reports.results import ExpandResult
from embcompress.rows import Rows, keep_freed_memory, within
from embcompress.storage.staging import check_space, check_target, staged


def expand(
    path: str | Path, *, output: str | Path | None = None, force: bool = False, progress: Progress = silent
) -> ExpandResult:
    """Write a copy of a compressed checkpoint with dense tables under their old names.

    The tables hold the product of the factors in the element type they once had; what was lost
    in compressing is not recovered. Word vectors come back in the format of the file they were in.

    Args:
        path: a checkpoint written by :func:`embcompress.factorize`.
        output: where to write; by default beside the input with ``-dense`` in its name.
        force: replace an existing output.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: the input holds no compressed table, or the output place does not do.
        InputError: the input is corrupt or not what its record says.
        OSError: the output cannot be written.
    """
    keep_freed_memory()
    with open_checkpoint(path, progress) as source:
        before = stamps(source)
        suffix = source.form(dense=True).suffix
        place = Path(output) if output is not None else default_output(source.path, "dense", suffix)
        check_target(place, (source.path, *source.weight_files), force=force)
        check_format(place, source, dense=True)
        if source.description is None or not source.description.tables:
            raise UsageError(f"{source.path}: holds no compressed table", remedy="it is dense already")
        source.check_integrity(progress)
        tables = [(record, _decoded(source, record)) for record in source.description.tables]
        edit = _edit(source, tables)
        check_space(place, source.size_after(edit, None))
        with staged(place, force=force) as stage:
            notes = source.write(stage, edit, None, progress)
            with open_checkpoint(stage, progress) as written:
                for record, rows in tables:
                    _check(rows, rows_of(written, record.name), record, progress)
                size = written.size
            check_unchanged(source, before)
        names = tuple(record.name for record, _ in tables)
        return ExpandResult(source.path, place, names, source.size, size, (*source.notes, *notes))


def _decoded(source: Checkpoint, record: TableRecord) -> Rows:
    """The table, where it is an approximation of numbers at the end of its type's range kept inside."""
    rows, largest = decoded(source, record), DTYPES[record.dtype].largest
    return within(rows, largest) if largest < DTYPES["F32"].largest else rows


def _edit(source: Checkpoint, tables: list[tuple[TableRecord, Rows]]) -> Edit:
    """Dense tables in the place of their parts; ties stored or shared as they were in the source.

    Raises:
        UsageError: a tensor that is no part stands under a name that becomes dense again.
    """
    remove: set[str] = set()
    add: list[NewTensor] = []
    aliases: dict[str, str] = {}
    documents: Documents = {}
    for record, rows in tables:
        if record.native is not None:
            documents = native_named(record.native, source.path).dense_documents(source, record.shape)
            remove |= {*record.part_names, *record.ties}
        remove |= {part_name(name, suffix) for name in (record.name, *record.ties) for suffix in record.parts}
        if record.name in source.tensors and source.tensors[record.name].shape == (0,):
            remove.add(record.name)  # the guard
        for name in (record.name, *record.copies):
            place, dtype = record.part_names[0], DTYPES[record.dtype]
            add.append(NewTensor(name, dtype, record.shape, place, rows.blocks))
        aliases |= {tie: record.name for tie in record.ties if tie not in record.copies}
    edit = Edit(frozenset(remove & source.tensors.keys()), tuple(add), aliases, documents)
    source.check_edit(edit)
    return edit


def _check(rows: Rows, written: Rows, record: TableRecord, progress: Progress) -> None:
    """The written table against the product of the factors: only rounding may differ."""
    found, dtype = measured_errors(rows, written, progress).plain, written.dtype
    # Values next to zero are rounded to a multiple of the smallest one, which may be all that a table has.
    allowed = 2 * dtype.unit_roundoff * math.sqrt(found.table) + dtype.smallest * math.sqrt(
        math.prod(rows.shape)
    )
    if written.shape != record.shape or math.sqrt(found.difference) > allowed:
        raise EmbcompressError(
            f"{record.name}: the written table differs from its factors by {found.relative:.3g}, "
            "so nothing was kept"
        )
