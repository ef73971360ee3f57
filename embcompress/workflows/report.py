"""open → locate tables → sizes, FLOPs, and what each ratio would cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embcompress.checkpoint import Reading, open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.rows import rows_of
from embcompress.choices import DEFAULT_METHOD, SMOOTHING, TEXT_COLUMN
from embcompress.compression.edit import Replacement, describe, replacing, sketch
from embcompress.compression.leftover import left_dense, left_notes
from embcompress.compression.lookups import check_loadable, check_lookups
from embcompress.compression.neighbours import check_not_adapter, quantized_notes, quantizer_of
from embcompress.compression.outputs import check_side_file
from embcompress.compression.residuals import measured_error
from embcompress.compression.sources import check_holds, compressed, reading_of
from embcompress.compression.weighting import Weighting, WeightSource, weighting_for
from embcompress.data.counting import Counts
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.dtypes import DTYPES
from embcompress.errors import EmbcompressError, UsageError
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import RankedMethod, Settings, TableLayout
from embcompress.methods.decoding import decoded
from embcompress.methods.planning import PRECISE_BELOW, bytes_for_ratio, predicted_errors
from embcompress.methods.stats import TableStats, measure
from embcompress.progress import Progress, Steps, silent
from embcompress.reports.flops import dense_flops, factored_flops
from embcompress.reports.plots import check_plot, plot_curves
from embcompress.reports.record import Comparison, CompressedTable, DenseTable, Option, Report
from embcompress.rows import filled_up, keep_freed_memory
from embcompress.tables import Table, count_heads, locate

RATIOS = (0.5, 0.75, 0.9, 0.95)
"""Ratios that every report shows."""

CURVE = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88, 0.9, 0.925, 0.94, 0.95, 0.96, 0.97, 0.98)
"""Ratios of its curves; ``RATIOS`` is a part of them."""


def report(
    path: str | Path,
    *,
    against: str | Path | None = None,
    keys: Sequence[str] = (),
    weights: str | Path | Counts | None = None,
    corpus: str | Path | None = None,
    text_column: str = TEXT_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    smoothing: float = SMOOTHING,
    weights_only: bool = False,
    state: str | None = None,
    curve: bool = False,
    plot: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Say where the bytes of a checkpoint are, and what compressing its tables would cost.

    Args:
        path: a .safetensors, PyTorch or ONNX file, a Hugging Face directory, or a file of word vectors.
        against: the original of a compressed checkpoint; errors are then measured against it.
        keys: names of the tables; empty for every token table.
        weights: how often each token occurs; see :func:`embcompress.factorize`.
        corpus: texts to count tokens in.
        text_column: header of the texts where they are in columns; a number where there is no header.
        text_format: how the texts are written.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        weights_only: leave out what is neither weights nor plain data in a PyTorch file, and take the state
            dict of a whole module, instead of refusing the file.
        state: which state dict of a PyTorch file to take: the keys that lead to it, with dots between them,
            such as ``"ema"``; None for the likeliest one.
        curve: also compare the methods at the ratios of ``CURVE``.
        plot: picture of that comparison (.png, .svg, .pdf); needs ``embcompress[plot]``.
        force: replace an existing picture.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What each table takes, and what each method is predicted to make of it.

    Raises:
        UsageError: there is no table, or none of the kind that is asked about; ``against`` does not hold the
            same tables; the weights do not fit, or the picture cannot be drawn.
        InputError: a file is corrupt or unsafe.
        OSError: the picture cannot be written.
    """
    given = WeightSource(
        weights, corpus, text_column=text_column, smoothing=smoothing, text_format=text_format
    )
    picture = None if plot is None else Path(plot)
    if picture is not None:
        check_plot(picture)
        inputs = [Path(file) for file in (path, against) if file is not None]
        check_side_file(picture, (*inputs, *given.files), replace=force)
    keep_freed_memory()
    with open_checkpoint(path, progress, Reading(weights_only, state)) as source:
        records = source.description.tables if source.description else ()
        if not records:
            check_not_adapter(source)
        found = [] if records and not keys else locate(source, keys, every=True)
        if not found and (curve or picture or given.is_given):
            raise UsageError(
                f"{source.path}: holds no dense table to compare methods on",
                remedy="give the checkpoint that was compressed",
            )
        weighting = weighting_for(source, found, given, progress)
        ratios = CURVE if curve or picture else RATIOS
        tables = tuple(_dense(source, table, ratios, weighting, progress) for table in found)
        if picture is not None:
            plot_curves(tables, picture)
        if against is None:
            small = tuple(_compressed(source, record, None) for record in records)
            return _report(source, found, tables, small, None, weighting, chart=curve, plot=picture)
        described = compressed(source, remedy="leave out --against")
        with open_checkpoint(against, progress, reading_of(described)) as original:
            small = tuple(
                _compressed(source, r, _error_against(original, source, r, progress)) for r in records
            )
            return _report(source, found, tables, small, original, weighting, chart=curve, plot=picture)


def _report(
    source: Checkpoint,
    found: Sequence[Table],
    tables: tuple[DenseTable, ...],
    compressed: tuple[CompressedTable, ...],
    original: Checkpoint | None,
    weighting: Weighting | None,
    *,
    chart: bool,
    plot: Path | None,
) -> Report:
    return Report(
        path=source.path,
        format=source.format,
        size=source.size,
        tensors=len(source.tensors),
        tables=tables,
        compressed=compressed,
        left=left_dense(source, found, chosen=True),
        against=None if original is None else original.path,
        against_size=None if original is None else original.size,
        chart=chart,
        plot=plot,
        notes=(
            *source.notes,
            *quantized_notes(quantizer_of(source)),
            *(() if weighting is None else weighting.notes),
            *(f"factorize refuses {table.name}: {table.obstacle}" for table in tables if table.obstacle),
            *left_notes(source, found, chosen=True),
        ),
    )


def _dense(
    source: Checkpoint,
    table: Table,
    ratios: Sequence[float],
    weighting: Weighting | None,
    progress: Progress,
) -> DenseTable:
    """What a dense table takes, and what it would take and lose at each ratio."""
    rows, settings = table.rows, Settings(table.rows.dtype)
    method, heads = _default_method(), count_heads(source, table)
    limits = [bytes_for_ratio(rows, ratio) for ratio in RATIOS]

    def fitted(*, precise: bool) -> tuple[TableStats, list[TableLayout | None]]:
        advance = Steps(progress, f"spectrum of {table.name}", rows.shape[0])
        weights = weighting.weights if weighting else None
        stats = measure(rows, table.name, precise=precise, advance=advance, weights=weights)
        return stats, [method.fit(stats, limit, settings) for limit in limits]

    stats, layouts = fitted(precise=False)
    if any(layout and layout.predicted_error < PRECISE_BELOW for layout in layouts):
        stats, layouts = fitted(precise=True)
    some = next(filter(None, layouts), None) or method.widest(rows.shape, settings)
    rest, obstacle = _rest(source, table, some)
    eigenvalues = stats.spectrum.eigenvalues
    largest = float(eigenvalues[0]) or 1.0
    compared = _compared(stats, ratios, settings, progress)
    return DenseTable(
        name=table.name,
        shape=rows.shape,
        dtype=rows.dtype.torch,
        nbytes=rows.nbytes,
        share=rows.nbytes * (1 + len(table.copies)) / source.copied_size,
        ties=table.ties,
        heads=heads,
        flops=dense_flops(rows.shape, heads),
        effective_rank=stats.spectrum.effective_rank,
        break_even_rank=method.break_even(rows, settings),
        spectrum=tuple(float((value / largest) ** 0.5) for value in eigenvalues),
        options=tuple(
            _option(rest, table, ratio, layout, heads) for ratio, layout in zip(RATIOS, layouts, strict=True)
        ),
        comparisons=tuple(each for each in compared if each.ratio in RATIOS),
        curve=compared if ratios is CURVE else (),
        weighting=weighting.origin if weighting else None,
        obstacle=obstacle,
    )


def _rest(source: Checkpoint, table: Table, layout: TableLayout) -> tuple[int, str | None]:
    """Bytes of the model without the parts of a compressed table, and why it cannot be compressed, if so."""
    new = Replacement(table, _default_method(), layout)
    try:
        check_lookups(source)
        check_loadable(source, [table])
        size = source.size_after(replacing(source, [new]), describe(source, [sketch(new, None)], None))
    except EmbcompressError as error:
        return source.copied_size - table.rows.nbytes * (1 + len(table.copies)), str(error)
    return size - layout.nbytes, None


def _default_method() -> RankedMethod:
    method = METHODS[DEFAULT_METHOD]
    assert isinstance(method, RankedMethod), "options and break-even are stated as ranks"
    return method


def _compared(
    stats: TableStats, ratios: Sequence[float], settings: Settings, progress: Progress
) -> tuple[Comparison, ...]:
    """What each method is predicted to make of a table at each ratio."""
    advance = Steps(progress, f"methods on {stats.name}", len(ratios))
    compared = []
    for ratio in ratios:
        limit = bytes_for_ratio(stats.rows, ratio)
        compared.append(
            Comparison(
                ratio=ratio,
                nbytes=limit,
                errors=predicted_errors(stats, limit, settings),
                bound=stats.spectrum.gaussian_bound(8 * limit / stats.rows.shape[0]),
            )
        )
        advance(1)
    return tuple(compared)


def _option(rest: int, table: Table, ratio: float, layout: TableLayout | None, heads: int) -> Option:
    """What one ratio would cost with the default method; ``layout`` is None where not even rank 1 fits.

    ``rest`` is what the model takes without the table.
    """
    rows = table.rows
    rank, nbytes = (layout.rank or 0, layout.nbytes) if layout else (0, 0)
    return Option(
        ratio=ratio,
        rank=rank,
        table_bytes=nbytes,
        model_bytes=rest + nbytes,
        relative_error=layout.predicted_error if layout else 1.0,
        flops=factored_flops(_default_method(), rows.shape, rank, heads),
    )


def _compressed(source: Checkpoint, record: TableRecord, measured: float | None) -> CompressedTable:
    """What a compressed table takes; ``measured`` is its error against the original, if that is given."""
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
        metric=record.metric,
        metric_error=record.metric_error,
        measured_error=measured,
    )


def _error_against(
    original: Checkpoint, source: Checkpoint, record: TableRecord, progress: Progress
) -> float:
    """Relative error of a compressed table against the dense one in ``original``.

    Raises:
        UsageError: ``original`` does not hold it.
    """
    check_holds(original, record)
    dense = rows_of(original, record.name)
    dense = filled_up(dense) if record.nonfinite else dense
    precise = record.relative_error < PRECISE_BELOW
    return measured_error(dense, decoded(source, record, precise=precise), progress, precise=precise)
