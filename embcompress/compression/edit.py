"""Builds the edit of a checkpoint, and the record of it, from tables and their replacements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from embcompress.checkpoint.base import Checkpoint, Edit, NewParameters
from embcompress.checkpoint.description import NO_DIGEST, Description, TableRecord, part_name
from embcompress.checkpoint.rows import part_rows
from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import DTYPES, Floats
from embcompress.errors import InputError
from embcompress.methods import method_for
from embcompress.methods.base import Blocks, Method, TableLayout
from embcompress.methods.parts import Part, parameter_shapes
from embcompress.native import native_named
from embcompress.native.base import Documents, NativeForm
from embcompress.tables import Table
from embcompress.version import __version__


@dataclass(frozen=True)
class Replacement:
    """A table and the parts that replace it.

    Attributes:
        table: the table.
        method: the method that it is stored with.
        layout: the parts that are stored.
        contents: contents of each part by suffix; None if only sizes matter.
        form: the model library's own form, in which the parts are stored; None for this package's form.
    """

    table: Table
    method: Method
    layout: TableLayout
    contents: Mapping[str, Blocks] | None = None
    form: NativeForm | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        if self.form is not None:
            return self.form.names(self.table)
        return tuple(part_name(self.table.name, suffix) for suffix in self.layout.suffixes)

    @property
    def parameters(self) -> tuple[tuple[int, int], ...]:
        """Shapes of the parameters that a model has in the table's place."""
        shapes = {part.suffix: part.shape for part in self.layout.parts}
        return parameter_shapes(self.method.parts, shapes, self.table.rows.shape[1])


def replacing(source: Checkpoint, replacements: Sequence[Replacement]) -> Edit:
    """The edit that puts parts in the place of each table, points ties at them, and adds guards if needed.

    Raises:
        UsageError: a part would get the name of a tensor that stays.
    """
    remove: set[str] = set()
    add: list[NewTensor] = []
    aliases: dict[str, str] = {}
    documents: Documents = {}
    for new in replacements:
        table = new.table
        remove |= {table.name, *table.ties}
        if new.form is not None:
            documents = new.form.documents(source, table.rows.shape, new.layout.rank or 0)
            aliases |= dict.fromkeys(table.ties, new.names[0])
        elif source.needs_guard:
            add.append(NewTensor(table.name, table.rows.dtype, (0,), table.name, _nothing))
        parts = new.layout.parts
        files = new.form.files(source) if new.form else (None,) * len(parts)
        for name, part, file in zip(new.names, parts, files, strict=True):
            blocks = new.contents[part.suffix] if new.contents else _nothing
            add.append(NewTensor(name, part.dtype, part.shape, table.name, blocks, file))
            if new.form is None:
                aliases |= {part_name(tie, part.suffix): name for tie in table.ties}
    graphs = {new.table.name: new.method.graph for new in replacements}
    parameters = {new.table.name: NewParameters(1, new.parameters) for new in replacements}
    edit = Edit(frozenset(remove), tuple(add), aliases, documents, graphs, parameters)
    source.check_edit(edit)
    return edit


def edit_behind(
    original: Checkpoint, written: Checkpoint, described: Description, tables: Sequence[Table]
) -> Edit:
    """The edit that made ``written`` from ``original``; its new parts are those that ``written`` holds.

    Args:
        original: the source.
        written: the output.
        described: the record of the output.
        tables: the dense tables in ``original``, one for each table in the record.

    Raises:
        UsageError: the source cannot be edited in this way.
        InputError: a part is missing, or is not a readable matrix.
    """
    replacements = []
    for record, table in zip(described.tables, tables, strict=True):
        missing = [name for name in record.part_names if name not in written.tensors]
        if missing:
            raise InputError(f"{written.path}: {missing[0]} is missing")
        read = [part_rows(written, name) for name in record.part_names]
        parts = tuple(Part(s, rows.dtype, rows.shape) for s, rows in zip(record.parts, read, strict=True))
        layout = TableLayout(parts, record.rank, DTYPES[record.stored_dtype], record.bits, 0.0, 0.0)
        method = method_for(record.method, str(written.path))
        form = None if record.native is None else native_named(record.native, written.path)
        contents = {suffix: rows.blocks for suffix, rows in zip(record.parts, read, strict=True)}
        replacements.append(Replacement(table, method, layout, contents, form))
    return replacing(original, replacements)


def describe(
    source: Checkpoint, records: Sequence[TableRecord], command: str | None, quantizer: str | None = None
) -> Description:
    """The record before the work: errors are predicted, and the source is not hashed yet."""
    digests = {f.name: NO_DIGEST for f in source.weight_files}
    reading = source.reading
    return Description(
        __version__, digests, tuple(records), command, reading.weights_only, reading.state, quantizer
    )


def sketch(new: Replacement, weighting: str | None, metric: str | None = None) -> TableRecord:
    """A record as long as any that the table can get, to compute sizes with.

    Args:
        new: the table and its replacement.
        weighting: what its rows are weighted by; None if all count alike.
        metric: what its columns are weighted by; None if all count alike.
    """
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
        native=new.form.name if new.form else None,
        names=new.names if new.form else (),
        digests=(NO_DIGEST,) * len(new.layout.suffixes),
        nonfinite=new.table.nonfinite,
        metric=metric,
        metric_error=None if metric is None else -1 / 3e-10,
    )


def _nothing() -> Iterator[Floats]:
    return iter(())
