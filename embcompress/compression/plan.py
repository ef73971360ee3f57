"""Everything that is decided about an output before its first byte is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.choices import CLASSIFIER_SPLIT, DEFAULT_SPLIT
from embcompress.compression.advice import advice
from embcompress.compression.column_metric import ColumnMetric, metric_for
from embcompress.compression.command_line import command_line
from embcompress.compression.edit import Replacement, describe, replacing, sketch
from embcompress.compression.leftover import left_notes
from embcompress.compression.lookups import check_loadable, check_lookups
from embcompress.compression.neighbours import check_not_adapter, quantized_notes, quantizer_of
from embcompress.compression.request import Request
from embcompress.compression.storage_layout import StorageLayout, storage_layout
from embcompress.compression.weighting import Weighting, weighting_for
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.errors import TargetError, listed
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.planning import TablePlan, plan_tables
from embcompress.methods.stats import Advance
from embcompress.progress import Progress, Steps
from embcompress.reports.results import FactorizeResult, TableResult
from embcompress.reports.units import human_bytes
from embcompress.rows import count_nonfinite, filled_up, keep_freed_memory
from embcompress.tables import Table, locate

_SPARE = 0.01
"""Most of the bytes of all tables that those hold which stay dense where the target is out of their reach."""


Counted = tuple[Weighting, ColumnMetric | None]
"""How rows and columns are weighted; None if all columns count alike."""


@dataclass(frozen=True)
class OutputPlan:
    """What an output will hold.

    Attributes:
        source: the checkpoint it is made from.
        request: what the user asks for.
        storage: the layout in which the parts of tables are stored.
        weighting: how rows are weighted.
        metric: how columns are weighted; None if all count alike.
        tables: one plan per table.
        edit: what is replaced by what.
        description: the output's record, with predicted errors.
        size: bytes of its weight files.
        notes: what the user should know, one sentence each.
    """

    source: Checkpoint
    request: Request
    storage: StorageLayout
    weighting: Weighting
    metric: ColumnMetric | None
    tables: tuple[TablePlan, ...]
    edit: Edit
    description: Description
    size: int
    notes: tuple[str, ...]

    def result(
        self,
        place: Path,
        measured: Sequence[TableRecord] | None = None,
        size: int | None = None,
        notes: Sequence[str] = (),
    ) -> FactorizeResult:
        """The result that the user sees.

        Args:
            place: where the output is, or would be.
            measured: one record per table, with the errors of the written parts; None if nothing was written.
            size: bytes of the written weight files; None for what was planned.
            notes: further notes, after those of the plan.
        """
        records = measured or (None,) * len(self.tables)
        return FactorizeResult(
            source=self.source.path,
            output=place,
            written=measured is not None,
            tables=tuple(self._table_result(*each) for each in zip(self.tables, records, strict=True)),
            size_before=self.source.size,
            size_after=self.size if size is None else size,
            notes=(*self.notes, *notes),
        )

    def _table_result(self, plan: TablePlan, measured: TableRecord | None) -> TableResult:
        table, layout = plan.table, plan.layout
        return TableResult(
            name=table.name,
            ties=table.ties,
            shape=table.rows.shape,
            dtype=table.rows.dtype.torch,
            method=plan.method.name,
            layout=self.storage.name_for(plan.method),
            rank=layout.rank,
            stored_dtype=layout.dtype.torch,
            bytes_before=plan.bytes_before,
            bytes_after=plan.bytes_after,
            ratio=plan.ratio,
            predicted_error=layout.predicted_error,
            relative_error=measured.relative_error if measured else None,
            weighting=self.weighting.origin,
            weighted_error=measured.weighted_error if measured else None,
            metric=self.metric.origin if self.metric else None,
            metric_error=measured.metric_error if measured else None,
            rivals=plan.rivals if self.request.chosen_method is None else {},
        )


def plan_output(source: Checkpoint, request: Request, progress: Progress) -> OutputPlan:
    """Tables → storage layout → weights and metric → method and size of each table → edit → record.

    Args:
        source: the checkpoint to be compressed.
        request: what the user asks for.
        progress: called as ``progress(stage, done, total)``; called again later, when the output is written
            and the tables are encoded.

    Raises:
        UsageError: the request does not fit the checkpoint, or the model could not be loaded afterwards.
        InputError: a table cannot be read, or is of a type that cannot be compressed.
        TargetError: the target is out of reach, or would make a table larger.
    """
    keep_freed_memory()
    check_not_adapter(source)
    check_lookups(source)
    quantizer = quantizer_of(source)
    request = replace(request, split_scale=request.split_scale or _usual_split(source, request))
    tables = _tables(source, request)
    storage = storage_layout(source, tables, request, quantizer)
    weighting = weighting_for(source, tables, request.weights, progress, usual=request.has_prior)
    given = request.weights
    metric = metric_for(source, tables, request.metric, given.text_column, given.text_format, progress)
    plans = plan_tables(
        tables,
        request.target,
        request.chosen_method,
        request.float_type,
        split_scale=request.split_scale or DEFAULT_SPLIT,
        mirrored=storage.mirrored,
        budget=_budget(source, tables, request, storage, (weighting, metric), quantizer),
        advance=Steps(progress, "spectrum", sum(table.rows.shape[0] for table in tables)),
        weights=weighting.weights,
        metric=None if metric is None else metric.metric,
        spare=_spare(tables) if request.all_tables and not request.keys else (),
    )
    encoding = Steps(progress, "code", sum(table.rows.shape[0] for table in tables))
    edit = replacing(source, [_replacement(plan, storage, encoding) for plan in plans])
    records = [_record(plan, storage, (weighting, metric)) for plan in plans]
    description = describe(source, records, command_line(request), quantizer)
    size = source.size_after(edit, description)
    notes = (
        *source.notes,
        *quantized_notes(quantizer),
        *storage.notes,
        *weighting.notes,
        *_filling_notes([plan.table for plan in plans]),
        *_dense_notes(tables, plans),
        *advice(source, plans, size),
        *left_notes(source, tables, chosen=bool(request.keys)),
    )
    return OutputPlan(source, request, storage, weighting, metric, plans, edit, description, size, notes)


def _usual_split(source: Checkpoint, request: Request) -> str:
    """Where the singular values go if nothing is said."""
    method, is_classifier = request.chosen_method, source.sidecar(RECORD_KEY) is not None
    return CLASSIFIER_SPLIT if is_classifier and (method is None or method.is_factors) else DEFAULT_SPLIT


def _tables(source: Checkpoint, request: Request) -> tuple[Table, ...]:
    """The tables to be compressed, with NaN and infinity read as zeros where that is asked for."""
    tables = locate(source, request.keys, every=request.all_tables)
    if request.keys:
        check_loadable(source, tables)
    return tuple(_filled(table) for table in tables) if request.nan == "zero" else tables


def _spare(tables: Sequence[Table]) -> set[str]:
    """Names of the smallest tables, which hold little together: a target need not be in their reach."""
    smallest = sorted(tables, key=lambda table: table.rows.nbytes)
    held = itertools.accumulate(table.rows.nbytes for table in smallest)
    most = _SPARE * sum(table.rows.nbytes for table in tables)
    return {table.name for table, nbytes in zip(smallest, held, strict=True) if nbytes <= most}


def _dense_notes(tables: Sequence[Table], plans: Sequence[TablePlan]) -> Iterator[str]:
    planned = {plan.table.name for plan in plans}
    left = [table for table in tables if table.name not in planned]
    if left:
        shown = listed([f"{table.name} {list(table.rows.shape)}" for table in left])
        total = human_bytes(sum(table.rows.nbytes for table in left))
        yield f"out of reach of the target, so left dense: {shown}; {total}"


def _filled(table: Table) -> Table:
    """The table with its NaN and infinite numbers read as zeros; one pass counts them."""
    count = count_nonfinite(table.rows)
    return replace(table, rows=filled_up(table.rows), nonfinite=count) if count else table


def _filling_notes(tables: Sequence[Table]) -> Iterator[str]:
    for table in tables:
        if table.nonfinite:
            numbers = f"{table.nonfinite:,} of {table.rows.shape[0] * table.rows.shape[1]:,} numbers"
            yield f"{table.name}: {numbers} are NaN or infinite and were read as zeros"


def _budget(
    source: Checkpoint,
    tables: Sequence[Table],
    request: Request,
    storage: StorageLayout,
    counted: Counted,
    quantizer: str | None,
) -> int:
    """Most bytes that all parts together may take under ``max_size``; 0 for other targets.

    What everything else takes is computed from a trial edit, which has the longest possible records.

    Raises:
        TargetError: the input is small enough already, or everything but the tables is too large.
    """
    if request.target.kind != "max_size":
        return 0
    max_size = int(request.target.value)
    if source.size <= max_size:
        raise TargetError(
            f"{source.path}: takes {source.size:,} bytes, which max_size {max_size:,} allows",
            remedy="nothing needs to be done; ask for less to make it smaller still",
        )
    method = request.chosen_method or max(METHODS.values(), key=lambda m: len(m.suffixes))
    trial = []
    for table in tables:
        settings = Settings(request.float_type or table.rows.dtype, mirrored=storage.mirrored)
        widest = method.widest(table.rows.shape, settings)
        trial.append(Replacement(table, method, widest, form=storage.form))
    records = [sketch(new, *_origins(counted)) for new in trial]
    described = describe(source, records, command_line(request), quantizer)
    size = source.size_after(replacing(source, trial), described)
    rest = size - sum(new.layout.nbytes for new in trial)
    if rest >= max_size:
        raise TargetError(
            f"max_size {max_size:,}: all but the tables takes {rest:,} bytes",
            remedy="allow more, or compress further tables with --all or --key",
        )
    return max_size - rest


def _replacement(plan: TablePlan, storage: StorageLayout, advance: Advance) -> Replacement:
    contents = plan.method.encode(plan.stats, plan.layout, plan.settings, advance)
    return Replacement(plan.table, plan.method, plan.layout, contents, storage.form)


def _origins(counted: Counted) -> tuple[str | None, str | None]:
    """What the record says of how rows and columns are weighted."""
    weighting, metric = counted
    return weighting.origin, None if metric is None else metric.origin


def _record(plan: TablePlan, storage: StorageLayout, counted: Counted) -> TableRecord:
    """The record of a table; until the error is measured, it holds the predicted one."""
    new = Replacement(plan.table, plan.method, plan.layout, form=storage.form)
    error = plan.layout.predicted_error
    return replace(
        sketch(new, *_origins(counted)),
        ratio=plan.ratio,
        relative_error=error,
        weighted_error=None if counted[0].weights is None else error,
        metric_error=error if counted[1] else None,
    )
