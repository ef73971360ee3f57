"""open → plan → write, streamed → measure what was written → publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from embcompress.checkpoint import Reading, open_checkpoint
from embcompress.choices import DEFAULT_METHOD, DEFAULT_NAN, SMOOTHING, TEXT_COLUMN
from embcompress.compression.check import check_tables, check_whole
from embcompress.compression.outputs import check_format, check_output, output_path, write_copy
from embcompress.compression.plan import plan_output
from embcompress.compression.request import GivenCounts, GivenMetric, Request, WeightSource, target_of
from embcompress.compression.sources import check_unchanged, hashed, stamps
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.progress import Progress, silent
from embcompress.reports.results import FactorizeResult
from embcompress.storage.staging import check_space, staged, synced_in_background

if TYPE_CHECKING:
    from embcompress.workflows.compare import Comparison

_UNCHECKED = "a dry run writes nothing that --check could measure; the model and the texts can be read"


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
    split_scale: str | None = None,
    layout: str | None = None,
    nan: str = DEFAULT_NAN,
    weights: GivenCounts = None,
    corpus: str | Path | None = None,
    importance: str | Path | None = None,
    text_column: str = TEXT_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    smoothing: float = SMOOTHING,
    metric: GivenMetric = None,
    check: str | Path | None = None,
    weights_only: bool = False,
    state: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> FactorizeResult:
    """Write a smaller copy of a checkpoint, with its embedding tables replaced by factors or codes.

    Exactly one of the five targets is given. The input is only read. The output appears whole and
    checked, or not at all.

    Args:
        path: a .safetensors, PyTorch or ONNX file, a Hugging Face directory, or a file of word vectors.
        rank: components kept, from 1.
        ratio: fraction of each table's bytes removed, between 0 and 1.
        energy: share of the squared singular values kept, above 0 and up to 1.
        max_error: largest relative Frobenius error, between 0 and 1.
        max_size: most bytes of the written weight files.
        output: where to write; by default next to the input, named after method and target.
        keys: names of the tables, or one name; empty to have them found.
        all_tables: take every token table.
        method: registry name of the method, or ``"auto"``.
        dtype: element type of the factors, ``"float32"``, ``"float16"``, ``"bfloat16"`` or
            ``"float64"``; None for the table's own.
        split_scale: where the singular values go, ``"left"``, ``"even"`` or ``"right"``; None for
            ``"even"`` in classifiers written by ``train``, and ``"left"`` in any other model.
        layout: how factors are stored: ``"native"``, in the form of the model's own library;
            ``"sequential"``, under the names of ``nn.Sequential(nn.Embedding, nn.Linear)``; or
            ``"embcompress"``, which also holds codes. None takes the native form where the model's
            outputs with it are exactly those of the factors.
        nan: what to do with NaN and infinity in a table: ``"error"`` refuses it, ``"zero"`` reads such
            numbers as zeros.
        weights: how often each token occurs, as a file (``.csv``, ``.tsv``, ``.txt``, ``.npy``) or an array
            (V); errors of frequent tokens then count more. Such counts and those of ``corpus`` are mixed with
            what the model's vocabulary suggests. Without counts, methods with ``Method.weighs`` weigh by that
            alone, and with ``"auto"`` all do. ``"none"`` leaves it out, and ``"none+FILE"`` takes the counts
            of a file alone.
        corpus: texts to count tokens in with the checkpoint's own tokenizer (``.csv``, ``.tsv``, ``.txt``).
        importance: texts on which to measure how much each token moves the predictions of a classifier
            written by ``train``; this then takes the place of counts (``.csv``, ``.tsv``, ``.txt``).
        text_column: header of the texts where they are in columns; a number where there is no header.
        text_format: how the texts are written.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2; 0 weighs all tokens alike.
        metric: texts on which to measure which directions of a row matter to a transformers model or to a
            classifier written by ``train`` (``.csv``, ``.tsv``, ``.txt``), in the format of the others, or a
            symmetric matrix (d×d) that says so; errors in these directions then count more. See
            ``compression.column_metric``.
        check: texts on which to compare the result with the original, as :func:`embcompress.compare` does;
            of more than ``choices.CHECK_TEXTS`` a sample is taken. For Hugging Face directories of encoders
            and language models.
        weights_only: leave out what is neither weights nor plain data in a PyTorch file, and take the state
            dict of a whole module, instead of refusing the file.
        state: which state dict of a PyTorch file to take: the keys that lead to it, with dots between them,
            such as ``"ema"``; None for the likeliest one.
        dry_run: plan, and write nothing.
        force: replace an existing output.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What was done with each table, with its predicted and its measured error, and what ``check`` found.

    Raises:
        UsageError: the request does not fit the input or the output place.
        InputError: the input is corrupt, unsafe, or holds no table that can be compressed.
        TargetError: the target is out of reach, or would make the table larger.
        EmbcompressError: the written bytes are not what was planned.
        OSError: the output cannot be written.
    """
    request = Request(
        path=Path(path),
        target=target_of(rank=rank, ratio=ratio, energy=energy, max_error=max_error, max_size=max_size),
        output=None if output is None else Path(output),
        keys=keys,
        all_tables=all_tables,
        method=method,
        dtype=dtype,
        split_scale=split_scale,
        layout=layout,
        nan=nan,
        weights=WeightSource(weights, corpus, importance, text_column, smoothing, text_format),
        metric=metric,
        check=None if check is None else Path(check),
        reading=Reading(weights_only, state),
        dry_run=dry_run,
        force=force,
    )
    return factorize_request(request, progress)


def factorize_request(request: Request, progress: Progress) -> FactorizeResult:
    """Do what :func:`factorize` does, for a request."""
    with open_checkpoint(request.path, progress, request.reading) as source:
        before = stamps(source)
        suffix = source.form(dense=False).suffix
        place = output_path(request.output, source.path, request.label, suffix)
        inputs = (source.path, *source.weight_files, *request.files)
        check_output(place, inputs, force=request.force or request.dry_run)
        check_format(place, source)
        source.check_editable()
        source.check_integrity(progress)

        comparison = _comparison(request)
        plan = plan_output(source, request, progress)
        if request.dry_run:
            return plan.result(place, notes=(() if comparison is None else (_UNCHECKED,)))

        check_space(place, plan.size)
        with hashed(source) as digests, staged(place, force=request.force, inputs=inputs) as stage:
            notes = write_copy(source, stage, plan.edit, plan.description, progress)
            with synced_in_background(stage):
                tables = check_tables(stage, plan, progress)
            description = replace(plan.description, source=digests.result(), tables=tables)
            type(source).amend(stage, description)
            size = check_whole(stage, description, request.target)
            likeness = None if comparison is None else comparison.likeness(stage, progress)
            check_unchanged(source, before)
        notes += () if comparison is None else comparison.notes
        return replace(plan.result(place, tables, size, notes), check=likeness)


def _comparison(request: Request) -> Comparison | None:
    """The original and the texts that the result is to be compared on, None where that is not asked for."""
    if request.check is None:
        return None
    # Imported here: it needs torch, and everything else works without.
    from embcompress.workflows.compare import Comparison

    given = request.weights
    return Comparison.prepare(request.path, request.check, given.text_column, given.text_format)
