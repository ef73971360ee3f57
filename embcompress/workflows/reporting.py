"""open → locate → sizes, FLOPs and what each ratio would cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Progress, Steps, silent
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.dtypes import DTYPES
from embcompress.errors import UsageError
from embcompress.methods import method_for
from embcompress.methods.base import Layout, Settings
from embcompress.methods.decoding import decoded
from embcompress.methods.known import measure
from embcompress.methods.planning import PRECISE_BELOW, bytes_for_ratio
from embcompress.methods.svd import SVD
from embcompress.reports.flops import dense_flops, factored_flops
from embcompress.reports.record import CompressedTable, DenseTable, Option, Report
from embcompress.rows import rows_of
from embcompress.tables import Table, count_heads, locate
from embcompress.workflows.common import keep_freed_memory, measured_error

_SVD = SVD()

RATIOS = (0.5, 0.75, 0.9, 0.95)
"""Ratios a report looks at."""


def report(
    path: str | Path,
    *,
    against: str | Path | None = None,
    keys: Sequence[str] = (),
    progress: Progress = silent,
) -> Report:
    """Say where the bytes of a checkpoint are, and what compressing its tables would cost.

    Args:
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        against: the original of a compressed checkpoint; errors are then measured against it.
        keys: names of the tables; every token table when empty.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: there is no table, or ``against`` does not hold the same tables.
        InputError: a checkpoint is corrupt or unsafe.
    """
    keep_freed_memory()
    with open_checkpoint(path) as source:
        records = source.description.tables if source.description else ()
        found = [] if records and not keys else locate(source, keys, every=True)
        tables = tuple(_dense(source, table, progress) for table in found)
        if against is None:
            compressed = tuple(_compressed(source, record, None) for record in records)
            return _report(source, tables, compressed, None, None)
        if not records:
            raise UsageError(
                f"{source.path}: holds no compressed table to compare", remedy="leave out --against"
            )
        with open_checkpoint(against) as original:
            compressed = tuple(
                _compressed(source, r, _error_against(original, source, r, progress)) for r in records
            )
            return _report(source, tables, compressed, original.path, original.size)


def _report(
    source: Checkpoint,
    tables: tuple[DenseTable, ...],
    compressed: tuple[CompressedTable, ...],
    against: Path | None,
    against_size: int | None,
) -> Report:
    return Report(
        path=source.path,
        format=source.format,
        size=source.size,
        tensors=len(source.tensors),
        tables=tables,
        compressed=compressed,
        against=against,
        against_size=against_size,
        notes=source.notes,
    )


def _dense(source: Checkpoint, table: Table, progress: Progress) -> DenseTable:
    rows, settings = table.rows, Settings(table.rows.dtype)
    advance = Steps(progress, f"spectrum of {table.name}", rows.shape[0])
    known = measure(rows, table.name, advance=advance)
    heads = count_heads(source, table)
    limits = [bytes_for_ratio(rows, ratio) for ratio in RATIOS]
    layouts = [_SVD.fit(known, limit, settings) for limit in limits]
    if any(layout and layout.predicted_error < PRECISE_BELOW for layout in layouts):
        known = measure(rows, table.name, precise=True, advance=advance)
        layouts = [_SVD.fit(known, limit, settings) for limit in limits]
    largest = float(known.spectrum.eigenvalues[0]) or 1.0
    return DenseTable(
        name=table.name,
        shape=rows.shape,
        dtype=rows.dtype.torch,
        nbytes=rows.nbytes,
        share=rows.nbytes * (1 + len(table.copies)) / source.size,
        ties=table.ties,
        heads=heads,
        flops=dense_flops(rows.shape, heads),
        effective_rank=known.spectrum.effective_rank,
        break_even_rank=_SVD.break_even(rows, rows.dtype),
        spectrum=tuple(float((value / largest) ** 0.5) for value in known.spectrum.eigenvalues),
        options=tuple(
            _option(source, table, ratio, layout, heads)
            for ratio, layout in zip(RATIOS, layouts, strict=True)
        ),
    )


def _option(source: Checkpoint, table: Table, ratio: float, layout: Layout | None, heads: int) -> Option:
    rows = table.rows
    rank, nbytes = (layout.rank or 0, layout.nbytes) if layout else (0, 0)
    return Option(
        ratio=ratio,
        rank=rank,
        table_bytes=nbytes,
        model_bytes=source.size - rows.nbytes * (1 + len(table.copies)) + nbytes,
        relative_error=layout.predicted_error if layout else 1.0,
        flops=factored_flops(_SVD, rows.shape, rank, heads),
    )


def _compressed(source: Checkpoint, record: TableRecord, measured: float | None) -> CompressedTable:
    method = method_for(record.method, str(source.path))
    stand_in = Table(record.name, decoded(source, record), record.ties, record.copies)
    dense = DTYPES[record.dtype]
    return CompressedTable(
        name=record.name,
        shape=record.shape,
        dtype=dense.torch,
        method=record.method,
        rank=record.rank,
        stored_dtype=DTYPES[record.stored_dtype].torch,
        ties=record.ties,
        dense_bytes=dense.nbytes(record.shape[0] * record.shape[1]),
        nbytes=sum(source.tensors[name].nbytes for name in record.part_names),
        flops=factored_flops(method, record.shape, record.rank, count_heads(source, stand_in)),
        recorded_error=record.relative_error,
        trained=record.trained,
        weighting=record.weighting,
        weighted_error=record.weighted_error,
        measured_error=measured,
    )


def _error_against(
    original: Checkpoint, source: Checkpoint, record: TableRecord, progress: Progress
) -> float:
    """Relative error of a compressed table against the dense one in ``original``."""
    if record.name not in original.tensors or original.tensors[record.name].shape != record.shape:
        raise UsageError(
            f"{original.path}: holds no {record.name} of shape {list(record.shape)}",
            remedy="give the checkpoint that was compressed with --against",
        )
    dense = rows_of(original, record.name)
    precise = record.relative_error < PRECISE_BELOW
    return measured_error(dense, decoded(source, record, precise=precise), progress, precise=precise)
