"""open classifier → read texts → loop → the same write path as factorize → check → publish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Edit, NewTensor, Progress, silent
from embcompress.checkpoint.dtypes import DType, Floats
from embcompress.checkpoint.staging import check_space, check_target, staged
from embcompress.classifiers.storage import OpenedClassifier, open_classifier
from embcompress.errors import TargetError
from embcompress.methods.base import Blocks
from embcompress.reports.learning import TrainingResult
from embcompress.training.loop import State
from embcompress.training.records import Recipe
from embcompress.workflows.common import check_format, check_unchanged, default_output, hashed, stamps
from embcompress.workflows.learning import (
    USUAL_SESSION,
    Session,
    Texts,
    check_written,
    dataset,
    finish,
    learn,
)

FINETUNE_RECIPE = Recipe(epochs=3, schedule_options={"window": 3})
"""How a compressed classifier is retrained unless the user says otherwise."""


def finetune(
    path: str | Path,
    texts: str | Path | Texts,
    *,
    output: str | Path | None = None,
    factory: str | None = None,
    recipe: Recipe = FINETUNE_RECIPE,
    session: Session = USUAL_SESSION,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a classifier on, compressed or dense, and write it as it was stored.

    The output has the format, the names and the element types of the input; weights are trained in
    float32. Epoch 0 is the input itself: where training makes nothing better on dev, it is kept.

    Args:
        path: a classifier written by ``train``, ``factorize`` or ``finetune``.
        texts: a CSV file with the columns ``text`` and ``label``, or where and how to read them.
        output: where to write; by default beside the input with ``-tuned`` in its name.
        factory: ``package.module:function`` of a classifier of the user's own.
        recipe: how it is trained.
        session: where, and what is recorded.
        progress: called as ``progress(stage, done, total)`` while it is written.

    Raises:
        UsageError: the request cannot be carried out as it stands.
        InputError: the checkpoint or the texts are corrupt.
        TargetError: a trained value is too large for the stored type.
        Interrupted: by Ctrl-C; see ``workflows.learning.learn``.
        OSError: the output cannot be written.
    """
    wanted = texts if isinstance(texts, Texts) else Texts(Path(texts))
    source_path = Path(path)
    place = Path(output) if output is not None else default_output(source_path, "tuned")
    check_target(place, (source_path, *wanted.files), force=session.force)
    session.check(place)
    with staged(place, force=session.force) as stage:
        result = retrain(source_path, wanted, stage, place, factory, recipe, session, progress)
    finish(session, place, result.epochs)
    return result


def retrain(
    path: Path,
    texts: Texts,
    stage: Path,
    place: Path,
    factory: str | None,
    recipe: Recipe,
    session: Session,
    progress: Progress,
) -> TrainingResult:
    """Everything between opening and publishing: read, train, write to ``stage`` and check.

    What is kept of an interrupted run stands beside ``place``; see :func:`finetune` for the rest.
    """
    opened = open_classifier(path, factory=factory)
    record = opened.record
    train_texts, dev_texts = texts.read(recipe.seed, record.labels)
    train_set, dev_set = dataset(record, train_texts), dataset(record, dev_texts)
    with open_checkpoint(path) as source:
        before = stamps(source)
        check_format(place, source)
        check_space(place, source.size)

        def write(target: Path, state: State) -> None:
            _write(source, opened, target, state, progress)

        epochs, best, state = learn(opened.model, train_set, dev_set, recipe, session, place, write)
        write(stage, state)
        check_unchanged(source, before)
        written = check_written(stage, state, dev_set, session, factory)
    return TrainingResult(
        source=path,
        output=place,
        classifier=record.architecture.factory or record.architecture.name,
        labels=record.labels,
        tokens=len(record.tokenizer.vocabulary),
        pretrained=0,
        train_texts=len(train_set),
        dev_texts=len(dev_set),
        epochs=epochs,
        best=best.epoch,
        dev_accuracy=written.dev_accuracy,
        size=written.size,
        notes=source.notes if source.needs_guard else (),
    )


def _write(
    source: Checkpoint, opened: OpenedClassifier, target: Path, state: State, progress: Progress
) -> None:
    """A copy of ``source`` with the values of ``state``; its record says that factors were trained."""
    description = opened.description
    with hashed(source.weight_files) as digests:
        if description is not None:
            tables = tuple(replace(table, trained=True) for table in description.tables)
            description = replace(description, source=digests.result(), tables=tables)
        source.write(target, _with_values(source, state), description, progress)


def _with_values(source: Checkpoint, state: State) -> Edit:
    """Every stored tensor replaced by the one of that name in ``state``, in its stored type."""
    add = []
    for name, info in source.tensors.items():
        if name in source.aliases or name not in state or info.dtype is None:
            continue
        add.append(NewTensor(name, info.dtype, info.shape, name, _whole(name, state[name], info.dtype)))
    replaced = {new.name for new in add} | source.aliases.keys()
    return Edit(frozenset(replaced), tuple(add), source.aliases)


def _whole(name: str, values: Tensor, dtype: DType) -> Blocks:
    """The values of one tensor as the one block it is written in.

    Raises:
        TargetError: when they are written, if one would become infinite.
    """

    def blocks() -> Iterator[Floats]:
        peak = float(values.abs().max()) if dtype.is_table and values.numel() else 0.0
        if not peak <= dtype.largest and dtype.is_table:
            raise TargetError(
                f"{name}: a trained value is {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
                remedy="train with a lower --learning-rate, or factorize with --dtype float32",
            )
        yield values.numpy()

    return blocks
