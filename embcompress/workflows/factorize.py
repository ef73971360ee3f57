"""open → locate tables → plan → factors, streamed → stage → verify → publish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.compression.advice import advice
from embcompress.compression.check import check_tables, check_whole
from embcompress.compression.command_line import command_line
from embcompress.compression.edit import Replacement, describe, replacing, sketch
from embcompress.compression.outputs import check_format, default_output
from embcompress.compression.request import Request, check_nan, dtype_of, filled, label_of, target_of
from embcompress.compression.sources import check_unchanged, hashed, stamps
from embcompress.compression.storage_layout import storage_layout
from embcompress.compression.weighting import SMOOTHING, Weighting, weighting_for
from embcompress.data.counting import Counts
from embcompress.errors import TargetError, UsageError
from embcompress.methods import AUTO, DEFAULT_METHOD, METHODS, method_for
from embcompress.methods.base import SPLITS
from embcompress.methods.planning import TablePlan, Target, plan_tables
from embcompress.methods.stats import Advance
from embcompress.progress import Progress, Steps, silent
from embcompress.reports.results import FactorizeResult, TableResult
from embcompress.rows import keep_freed_memory
from embcompress.storage.staging import check_space, check_target, staged, synced_in_background
from embcompress.tables import Table, locate


def factorize(
    path: str | Path,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    max_size: int | None = None,
    output: str | Path | None = None,
    keys: Sequence[str] | str = (),
    all_tables: bool = False,
    method: str = DEFAULT_METHOD,
    dtype: str | None = None,
    split_scale: str = "left",
    layout: str | None = None,
    nan: str = "error",
    weights: str | Path | Counts | None = None,
    corpus: str | Path | None = None,
    importance: str | Path | None = None,
    text_column: str = "text",
    smoothing: float = SMOOTHING,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> FactorizeResult:
    """Write a smaller copy of a checkpoint, its embedding tables replaced by factors.

    Exactly one of the five targets is given. The input is only read; the output appears whole
    and checked, or not at all.

    Args:
        path: a .safetensors, PyTorch or ONNX file, a Hugging Face directory, or a file of word vectors.
        rank: components kept.
        ratio: fraction of each table's bytes removed, between 0 and 1.
        energy: share of the squared singular values kept, up to 1.
        max_error: largest relative Frobenius error, between 0 and 1.
        max_size: bytes of the written weight files.
        output: where to write; by default beside the input, named after method and target.
        keys: names of the tables, or one name; found by themselves when empty.
        all_tables: take every token table.
        method: registry name of the method.
        dtype: element type of the factors, ``"float32"``, ``"float16"``, ``"bfloat16"`` or
            ``"float64"``; the table's own when None.
        split_scale: where the singular values go, ``"left"``, ``"even"`` or ``"right"``.
        layout: ``"native"``, in the form of the model's own library, where its outputs are those of the
            factors (taken by itself there); ``"sequential"``, the names of ``nn.Sequential(nn.Embedding,
            nn.Linear)``; or ``"embcompress"``, the same names, and codes.
        nan: what becomes of numbers that are NaN or infinite: with ``"error"`` the table is refused, with
            ``"zero"`` they are taken for zeros.
        weights: how often each token occurs, as a file (``.csv``, ``.tsv``, ``.txt``, ``.npy``) or an array
            (V); errors of frequent tokens then count more.
        corpus: texts to count tokens in with the checkpoint's own tokenizer (``.csv``, ``.tsv``, ``.txt``).
        importance: texts by which to measure how much each token moves the predictions of a classifier
            written by ``train``; that then takes the place of counts (``.csv``, ``.tsv``, ``.txt``).
        text_column: header of the texts where ``corpus`` or ``importance`` is a CSV.
        smoothing: exponent s of the weight (count + 1)^s; 0 weighs all tokens alike.
        dry_run: plan only, write nothing.
        force: replace an existing output.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: the request does not fit the input or the output place.
        InputError: the input is corrupt, unsafe or not a table that can be compressed.
        TargetError: the target is out of reach or would make the table larger.
        EmbcompressError: the written bytes are not what was planned.
        OSError: the output cannot be written.
    """
    command = command_line(factorize, locals())  # first of all: these are the arguments
    target = target_of(rank=rank, ratio=ratio, energy=energy, max_error=max_error, max_size=max_size)
    if split_scale not in SPLITS:
        raise UsageError(f"split_scale {split_scale!r}", remedy=f"choose from {', '.join(SPLITS)}")
    request = Request(None if method == AUTO else method_for(method), dtype_of(dtype), split_scale, command)
    check_nan(nan)
    keep_freed_memory()
    with open_checkpoint(path, progress) as source:
        before = stamps(source)
        label, suffix = label_of(method, target), source.form(dense=False).suffix
        place = Path(output) if output is not None else default_output(source.path, label, suffix)
        given = [Path(file) for file in (weights, corpus, importance) if isinstance(file, str | Path)]
        check_target(place, (source.path, *source.weight_files, *given), force=force or dry_run)
        check_format(place, source)
        source.check_editable()
        source.check_integrity(progress)
        tables = filled(locate(source, (keys,) if isinstance(keys, str) else keys, every=all_tables), nan)
        storage = storage_layout(source, tables, request, layout)
        request = replace(request, form=storage.form)
        weighting = weighting_for(
            source,
            tables,
            counts=weights,
            corpus=corpus,
            importance=importance,
            text_column=text_column,
            smoothing=smoothing,
            progress=progress,
        )
        plans = _plan(source, tables, target, request, progress, weighting)
        coded = Steps(progress, "code", sum(table.rows.shape[0] for table in tables))
        edit = replacing(source, [_replacement(plan, request, coded) for plan in plans])
        predicted = describe(source, [_record(plan, request, weighting) for plan in plans], request.command)
        size = source.size_after(edit, predicted)
        notes = (*source.notes, *storage.notes, *_fillings(tables), *advice(source, plans, size))
        if dry_run:
            return _result(source, place, request, plans, None, size, notes, weighting)
        check_space(place, size)
        with hashed(source.weight_files) as digests, staged(place, force=force) as stage:
            notes += source.write(stage, edit, predicted, progress)
            with synced_in_background(stage):
                measured = check_tables(stage, plans, predicted, target, progress)
            described = replace(predicted, source=digests.result(), tables=measured)
            type(source).amend(stage, described)
            size = check_whole(stage, described, max_size)
            check_unchanged(source, before)
        return _result(source, place, request, plans, measured, size, notes, weighting)


def _plan(
    source: Checkpoint,
    tables: Sequence[Table],
    target: Target,
    request: Request,
    progress: Progress,
    weighting: Weighting | None,
) -> tuple[TablePlan, ...]:
    budget = 0
    if target.kind == "max_size":
        budget = _budget(source, tables, int(target.value), request, weighting)
    return plan_tables(
        tables,
        target,
        request.method,
        request.dtype,
        split_scale=request.split_scale,
        mirrored=request.mirrored,
        budget=budget,
        advance=Steps(progress, "spectrum", sum(t.rows.shape[0] for t in tables)),
        weights=None if weighting is None else weighting.weights,
    )


def _budget(
    source: Checkpoint,
    tables: Sequence[Table],
    max_size: int,
    request: Request,
    weighting: Weighting | None,
) -> int:
    """Bytes that all parts may take together so that the weight files take at most ``max_size``.

    Raises:
        TargetError: there is nothing to do, or nothing can be done.
    """
    if source.size <= max_size:
        raise TargetError(
            f"{source.path}: takes {source.size:,} bytes, which max_size {max_size:,} allows",
            remedy="nothing needs to be done; ask for less to make it smaller still",
        )
    method = request.method or max(METHODS.values(), key=lambda m: len(m.suffixes))
    largest = [
        Replacement(t, method, method.widest(t.rows.shape, request.settings(t.rows.dtype)), form=request.form)
        for t in tables
    ]
    records = [sketch(new, weighting.origin if weighting else None) for new in largest]
    whole = source.size_after(replacing(source, largest), describe(source, records, request.command))
    rest = whole - sum(new.layout.nbytes for new in largest)
    if rest >= max_size:
        raise TargetError(
            f"max_size {max_size:,}: all but the tables takes {rest:,} bytes",
            remedy="allow more, or take further tables with --all or --key",
        )
    return max_size - rest


def _fillings(tables: Sequence[Table]) -> Iterator[str]:
    for table in tables:
        if table.nonfinite:
            numbers = f"{table.nonfinite:,} of {table.rows.shape[0] * table.rows.shape[1]:,} numbers"
            yield f"{table.name}: {numbers} are NaN or infinite, and were taken for zeros"


def _replacement(plan: TablePlan, request: Request, advance: Advance) -> Replacement:
    contents = plan.method.encode(plan.stats, plan.layout, plan.settings, advance)
    return Replacement(plan.table, plan.method, plan.layout, contents, request.form)


def _record(plan: TablePlan, request: Request, weighting: Weighting | None) -> TableRecord:
    new = Replacement(plan.table, plan.method, plan.layout, form=request.form)
    error = plan.layout.predicted_error
    return replace(
        sketch(new, weighting.origin if weighting else None),
        ratio=plan.ratio,
        relative_error=error,
        weighted_error=error if weighting else None,
    )


def _result(
    source: Checkpoint,
    place: Path,
    request: Request,
    plans: Sequence[TablePlan],
    measured: Sequence[TableRecord] | None,
    size: int,
    notes: tuple[str, ...],
    weighting: Weighting | None,
) -> FactorizeResult:
    tables = tuple(
        TableResult(
            name=plan.table.name,
            ties=plan.table.ties,
            shape=plan.table.rows.shape,
            dtype=plan.table.rows.dtype.torch,
            method=plan.method.name,
            layout=request.layout_of(plan.method),
            rank=plan.layout.rank,
            stored_dtype=plan.layout.dtype.torch,
            bytes_before=plan.bytes_before,
            bytes_after=plan.bytes_after,
            ratio=plan.ratio,
            predicted_error=plan.layout.predicted_error,
            relative_error=measured[i].relative_error if measured else None,
            weighting=weighting.origin if weighting else None,
            weighted_error=measured[i].weighted_error if measured else None,
            rivals=plan.rivals if request.method is None else {},
        )
        for i, plan in enumerate(plans)
    )
    return FactorizeResult(source.path, place, measured is not None, tables, source.size, size, notes)
