"""open → decode → write dense tables → compare what was written → publish."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from embcompress.checkpoint import Reading, open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Edit, NewParameters
from embcompress.checkpoint.description import Description, TableRecord, part_name
from embcompress.checkpoint.rows import part_rows, rows_of
from embcompress.checkpoint.tensors import NewTensor
from embcompress.compression.outputs import BAD_DISK, check_format, check_output, output_path, write_copy
from embcompress.compression.residuals import measured_errors
from embcompress.compression.sources import check_unchanged, compressed, stamps
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError
from embcompress.methods import method_for
from embcompress.methods.decoding import decoded
from embcompress.methods.parts import parameter_shapes
from embcompress.native import native_named
from embcompress.native.base import Documents
from embcompress.progress import Progress, silent
from embcompress.reports.results import ExpandResult
from embcompress.rows import Rows, keep_freed_memory, within
from embcompress.storage.staging import check_space, staged


def expand(
    path: str | Path, *, output: str | Path | None = None, force: bool = False, progress: Progress = silent
) -> ExpandResult:
    """Write a copy of a compressed checkpoint with dense tables under their old names.

    Each table is decoded into the element type it once had; what compression lost stays lost. Word
    vectors come back in the format of the file they were in.

    Args:
        path: a checkpoint written by :func:`embcompress.factorize`.
        output: where to write; by default next to the input with ``-dense`` in its name.
        force: replace an existing output.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: the input holds no compressed table, or the output place does not do.
        InputError: the input is corrupt, or not what its record says.
        EmbcompressError: the written tables are not those that were decoded.
        OSError: the output cannot be written.
    """
    keep_freed_memory()
    with open_checkpoint(path, progress) as source:
        before = stamps(source)
        suffix = source.form(dense=True).suffix
        place = output_path(output, source.path, "dense", suffix)
        inputs = (source.path, *source.weight_files)
        check_output(place, inputs, force=force)
        check_format(place, source, dense=True)
        described = compressed(source, remedy="it is dense already")
        records, same_state = described.tables, Reading(state=described.state)
        source.check_integrity(progress)
        tables = [(record, _decoded(source, record)) for record in records]
        edit = _edit(source, tables)
        check_space(place, source.size_after(edit, None))
        with staged(place, force=force, inputs=inputs) as stage:
            notes = write_copy(source, stage, edit, None, progress)
            check_unchanged(source, before)  # or it would be compared with something else
            with open_checkpoint(stage, progress, same_state) as written:
                for record, rows in tables:
                    _check(rows, rows_of(written, record.name), record, progress)
                size = written.size
            check_unchanged(source, before)
        names = tuple(record.name for record in records)
        notes = (*source.notes, *notes, *_state_notes(described))
        return ExpandResult(source.path, place, names, source.size, size, notes)


def _state_notes(described: Description) -> Iterator[str]:
    """A note where the record was all that said which of several state dicts is meant."""
    if described.state is not None:
        yield (
            f"commands without --state may take another state dict of the output than '{described.state}': "
            "where they do, save that one alone"
        )


def _decoded(source: Checkpoint, record: TableRecord) -> Rows:
    """The table, with values that the approximation pushed out of its type's range put back into it."""
    rows, largest = decoded(source, record), DTYPES[record.dtype].largest
    return within(rows, largest) if largest < DTYPES["F32"].largest else rows


def _edit(source: Checkpoint, tables: list[tuple[TableRecord, Rows]]) -> Edit:
    """Dense tables in the place of their parts; ties are stored or shared as they were in the original.

    Raises:
        UsageError: a tensor that is no part has the name of a table that becomes dense.
    """
    remove: set[str] = set()
    add: list[NewTensor] = []
    aliases: dict[str, str] = {}
    documents: Documents = {}
    parameters: dict[str, NewParameters] = {}
    for record, rows in tables:
        method = method_for(record.method, str(source.path))
        shapes = {
            suffix: part_rows(source, name).shape
            for suffix, name in zip(record.parts, record.part_names, strict=True)
        }
        before = parameter_shapes(method.parts, shapes, record.shape[1])
        parameters[record.part_names[0]] = NewParameters(len(before), (record.shape,))
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
    edit = Edit(
        frozenset(remove & source.tensors.keys()), tuple(add), aliases, documents, parameters=parameters
    )
    source.check_edit(edit)
    return edit


def _check(rows: Rows, written: Rows, record: TableRecord, progress: Progress) -> None:
    """Compare a written table with the decoded one: only rounding may differ.

    Raises:
        EmbcompressError: they differ by more.
    """
    found, dtype = measured_errors(rows, written, progress).plain, written.dtype
    # Values next to zero are rounded to multiples of the type's smallest one; a table may hold no others.
    allowed = 2 * dtype.unit_roundoff * math.sqrt(found.table) + dtype.smallest * math.sqrt(
        math.prod(rows.shape)
    )
    if written.shape != record.shape or math.sqrt(found.difference) > allowed:
        raise EmbcompressError(
            f"{record.name}: the written table differs from the decoded one by {found.relative:.3g}; "
            "nothing was kept",
            remedy=BAD_DISK,
        )
