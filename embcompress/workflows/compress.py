"""factorize → finetune → evaluate, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embcompress.checkpoint import open_checkpoint
from embcompress.choices import AUTO, DEFAULT_METHOD, SMOOTHINGS
from embcompress.classifiers.opening import record_of
from embcompress.classifiers.record import ClassifierRecord
from embcompress.compression.check import check_size
from embcompress.compression.column_metric import ColumnMetric, metric_of
from embcompress.compression.outputs import check_format, output_path
from embcompress.compression.request import Request, target_of
from embcompress.compression.weighting import WeightSource
from embcompress.data.counting import Counts
from embcompress.data.labelled import LabelledTexts
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress, silent
from embcompress.reports.learning import CompressResult, EvaluateResult
from embcompress.reports.results import FactorizeResult
from embcompress.runs.learning import finish
from embcompress.runs.sessions import USUAL_SESSION, Session
from embcompress.runs.texts import Texts, dataset
from embcompress.storage.staging import staged
from embcompress.tables import locate
from embcompress.training.records import Recipe
from embcompress.workflows.evaluate import measure
from embcompress.workflows.factorize import factorize_request
from embcompress.workflows.finetune import Retraining, retrain, usual_recipe


def compress(
    path: str | Path,
    texts: str | Path | Texts,
    *,
    rank: int | None = None,
    ratio: float | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    max_size: int | None = None,
    keys: Sequence[str] | str = (),
    method: str | None = None,
    dtype: str | None = None,
    split_scale: str | None = None,
    smoothing: float | None = None,
    metric: bool = True,
    output: str | Path | None = None,
    test: str | Path | None = None,
    factory: str | None = None,
    recipe: Recipe | None = None,
    session: Session = USUAL_SESSION,
    progress: Progress = silent,
) -> CompressResult:
    """Factorize a classifier's table, retrain the classifier, and measure it before and after.

    Tokens are weighted by how often they occur in the training texts, since tokens that the classifier
    never reads are not worth bytes. The dev texts choose how steeply, before retraining. Directions of a row
    are weighted by how much they move the scores, since most of them hardly do.

    Args:
        path: a dense classifier written by ``train``, or the Hugging Face directory of one.
        texts: a file of labelled texts, or where they are and how to read them.
        rank: target, as in :func:`embcompress.factorize`; exactly one of the five is given.
        ratio: target.
        energy: target; weighted and in the metric, like the error.
        max_error: target.
        max_size: target.
        keys: names of the tables; empty to have them found.
        method: registry name of the method, or ``"auto"``; None for ``"auto"``, or with a rank, which that
            does not take, for ``choices.DEFAULT_METHOD``.
        dtype: element type of the factors; None for the table's own.
        split_scale: where the singular values go, as in :func:`embcompress.factorize`.
        smoothing: exponent s of a token's weight (count + 1)^s, 0 to 2; 0 weighs all tokens alike; None
            takes the one of ``choices.SMOOTHINGS`` that is best on the dev texts.
        metric: whether errors count by how much they move the scores of the training texts. Where that cannot
            be measured, or the method makes no use of it, all columns count alike.
        output: where to write; by default next to the input with ``-compressed`` in its name.
        test: file of labelled texts to measure on; None for the dev texts.
        factory: ``package.module:function`` of a classifier of the user's own.
        recipe: how it is retrained; None for :func:`usual_recipe`.
        session: where it runs, and what it records.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        What each of the three steps did.

    Raises:
        UsageError, InputError, TargetError, Interrupted, OSError: as the three steps do.
    """
    request = Request(
        path=Path(path),
        target=target_of(rank=rank, ratio=ratio, energy=energy, max_error=max_error, max_size=max_size),
        keys=keys,
        method=method or (AUTO if rank is None else DEFAULT_METHOD),
        dtype=dtype,
        split_scale=split_scale,
    )
    source, wanted = request.path, Texts.of(texts)
    place = output_path(output, source, "compressed")
    recipe = recipe or usual_recipe(source)
    tests = None if test is None else Path(test)
    session.check(place, (source, *wanted.files, *([tests] if tests else [])), recipe)

    with staged(place, force=session.force) as stage:
        tried = stage.with_name(".tried")  # in the staging folder, and never published
        tried.mkdir()
        record = _dense_record(source, place)
        split = wanted.split(recipe.seed, record)
        counts = _counts(record, split.train)
        tested = split.dev if tests is None else wanted.read_file(tests, record)
        measured, notes = (None, ()) if not metric else _metric(request, split.train, factory, progress)

        def factorized_by(exponent: float) -> _Candidate:
            # With 0 there is nothing to count: the record says that all rows are alike.
            weights = WeightSource(counts if exponent else None, smoothing=exponent, prior=False)
            output = tried / f"{exponent:g}-{stage.name}"
            result = factorize_request(
                replace(request, weights=weights, metric=measured, output=output), progress
            )
            return _Candidate(result, measure(result.output, lambda _: split.dev, factory, session))

        exponents = SMOOTHINGS if smoothing is None else (smoothing,)
        best = max(map(factorized_by, exponents), key=lambda one: one.on_dev.accuracy)
        factorized, small = best.result, best.result.output
        before = measure(source, lambda _: tested, factory, session)
        without = best.on_dev if tests is None else measure(small, lambda _: tested, factory, session)
        with open_checkpoint(small) as made:
            assert made.description is not None
            sources = made.description.source
        tuned = retrain(Retraining(small, wanted, recipe, place, factory, sources), stage, session, progress)
        if max_size is not None:
            check_size(tuned.size, max_size)
        after = measure(stage, lambda _: tested, factory, session)
    finish(session, place, tuned.epochs)
    return CompressResult(
        factorized=replace(factorized, output=place),
        tuned=replace(tuned, source=source),
        before=before,
        without_training=replace(without, path=place),
        after=replace(after, path=place),
        notes=(*notes, *tuned.notes),  # what factorize says of its error no longer holds after training
    )


@dataclass(frozen=True)
class _Candidate:
    """A factorized classifier, and how it does on the dev texts."""

    result: FactorizeResult
    on_dev: EvaluateResult


def _dense_record(source: Path, place: Path) -> ClassifierRecord:
    """The record of a dense classifier.

    Raises:
        UsageError: ``source`` is compressed already or no classifier, or ``place`` names another format.
    """
    with open_checkpoint(source) as checkpoint:
        if checkpoint.description is not None and checkpoint.description.tables:
            raise UsageError(
                f"{source}: compressed already", remedy="give the dense classifier, or use finetune"
            )
        record = record_of(source)
        check_format(place, checkpoint)
    return record


def _metric(
    request: Request, texts: LabelledTexts, factory: str | None, progress: Progress
) -> tuple[ColumnMetric | None, tuple[str, ...]]:
    """The metric over the columns of the only table, and what the user should know where there is none."""
    if request.chosen_method is not None and request.chosen_method.by_rows:
        return None, ()  # it stores the same in any metric
    with open_checkpoint(request.path) as source:
        tables = locate(source, request.keys)
        if len(tables) > 1:
            return None, ()
        try:
            return metric_of(source, tables[0], texts.texts, texts.path, progress, factory), ()
        except (UsageError, InputError) as error:
            return None, (f"all columns count alike: {error.message}",)


def _counts(record: ClassifierRecord, texts: LabelledTexts) -> Counts:
    """How often each token of a classifier occurs in the texts it is trained on."""
    tokens = dataset(record, texts).texts.tokens
    return np.bincount(tokens, minlength=len(record.tokenizer.vocabulary)).astype(np.float64)
