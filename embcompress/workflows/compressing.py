"""factorize → finetune → evaluate, in one go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Progress, silent
from embcompress.checkpoint.staging import check_target, staged
from embcompress.classifiers.record import read_record
from embcompress.data.counting import Counts
from embcompress.data.labelled import LabelledTexts
from embcompress.reports.learning import CompressResult
from embcompress.training.records import Recipe
from embcompress.workflows.common import default_output
from embcompress.workflows.evaluating import measure
from embcompress.workflows.factorizing import factorize
from embcompress.workflows.finetuning import FINETUNE_RECIPE, retrain
from embcompress.workflows.learning import USUAL_SESSION, Session, Texts, dataset, finish


def compress(
    path: str | Path,
    texts: str | Path | Texts,
    *,
    output: str | Path | None = None,
    test: str | Path | None = None,
    factory: str | None = None,
    recipe: Recipe = FINETUNE_RECIPE,
    session: Session = USUAL_SESSION,
    progress: Progress = silent,
    **target: Any,
) -> CompressResult:
    """Factorize a classifier's table, retrain it, and measure it before and after.

    Tokens are weighted by how often they occur in the training texts, unless ``target`` says otherwise:
    what the classifier never reads is not worth bytes.

    Args:
        path: a dense classifier written by ``train``.
        texts: a CSV file with the columns ``text`` and ``label``, or where and how to read them.
        output: where to write; by default beside the input with ``-compressed`` in its name.
        test: CSV file to measure on; the dev texts when None.
        factory: ``package.module:function`` of a classifier of the user's own.
        recipe: how it is retrained.
        session: where, and what is recorded.
        progress: called as ``progress(stage, done, total)``.
        **target: what :func:`embcompress.factorize` takes, above all how small: ``ratio=0.9``.

    Raises:
        UsageError, InputError, TargetError, Interrupted, OSError: as the three steps do.
    """
    wanted = texts if isinstance(texts, Texts) else Texts(Path(texts))
    source = Path(path)
    place = Path(output) if output is not None else default_output(source, "compressed")
    tests = None if test is None else Path(test)
    check_target(place, (source, *wanted.files, *([tests] if tests else [])), force=session.force)
    session.check(place)

    def measured_on(labels: tuple[str, ...]) -> LabelledTexts:
        return wanted.read(recipe.seed, labels)[1] if tests is None else wanted.read_file(tests, labels)

    with staged(place, force=session.force) as stage:
        small = stage.with_name(f"factorized{stage.suffix}")
        before = measure(source, measured_on, factory, session)
        if "weights" not in target and "corpus" not in target:
            target["weights"] = _counts(source, wanted, recipe.seed)
        factorized = factorize(source, output=small, progress=progress, **target)
        without = measure(small, measured_on, factory, session)
        tuned = retrain(small, wanted, stage, place, factory, recipe, session, progress)
        after = measure(stage, measured_on, factory, session)
    finish(session, place, tuned.epochs)
    return CompressResult(
        factorized=replace(factorized, output=place),
        tuned=replace(tuned, source=source),
        before=before,
        without_training=replace(without, path=place),
        after=replace(after, path=place),
        notes=tuned.notes,  # what factorize says of its error no longer holds after training
    )


def _counts(source: Path, texts: Texts, seed: int) -> Counts:
    """How often each token of a classifier occurs in the texts it is trained on."""
    with open_checkpoint(source) as checkpoint:
        record = read_record(checkpoint)
    train = dataset(record, texts.read(seed, record.labels)[0])
    return np.bincount(train.texts.tokens, minlength=len(record.tokenizer.vocabulary)).astype(np.float64)
