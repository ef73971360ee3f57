"""open classifier → read texts → loop → the same write path as factorize → check → publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.pretrained import is_directory
from embcompress.compression.outputs import check_format, output_path
from embcompress.compression.sources import check_unchanged, stamps
from embcompress.progress import Progress, silent
from embcompress.reports.learning import TrainingResult
from embcompress.runs.learning import Learned, Task, check_written, finish, learn
from embcompress.runs.sessions import USUAL_SESSION, Session
from embcompress.runs.texts import Texts, dataset
from embcompress.runs.trained import with_names, write_trained
from embcompress.storage.staging import check_space, staged
from embcompress.training.loop import State
from embcompress.training.records import CALR_RECIPE, FINETUNE_RECIPE, PRETRAINED_RECIPE, Recipe


def usual_recipe(path: Path, schedule: str | None = None) -> Recipe:
    """How the classifier at ``path`` is retrained, with this schedule, unless the user says otherwise."""
    if is_directory(path):
        return PRETRAINED_RECIPE
    return CALR_RECIPE if schedule == CALR_RECIPE.schedule else FINETUNE_RECIPE


def finetune(
    path: str | Path,
    texts: str | Path | Texts,
    *,
    output: str | Path | None = None,
    factory: str | None = None,
    recipe: Recipe | None = None,
    session: Session = USUAL_SESSION,
    progress: Progress = silent,
) -> TrainingResult:
    """Continue to train a classifier, compressed or dense, and write it as it was stored.

    The output has the format, the names and the element types of the input; weights are trained in
    float32. The codes of a coded table stay as they are; its codebooks and its right factor are trained.
    Epoch 0 is the input itself, and is kept if training improves nothing on dev.

    Args:
        path: a classifier written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a model for sequence classification.
        texts: a file of labelled texts, or where they are and how to read them.
        output: where to write; by default next to the input with ``-tuned`` in its name.
        factory: ``package.module:function`` of a classifier of the user's own.
        recipe: how it is trained; None for :func:`usual_recipe`.
        session: where it runs, and what it records.
        progress: called as ``progress(stage, done, total)`` while the output is written.

    Returns:
        How each epoch went, and the dev accuracy of what was written.

    Raises:
        UsageError: the checkpoint is no classifier, or the texts, the recipe or the output place do not do.
        InputError: the checkpoint or the texts are corrupt.
        TargetError: a trained value is too large for the stored type.
        Interrupted: by Ctrl-C; see ``runs.learning.learn``.
        OSError: the output cannot be written.
    """
    source_path, wanted = Path(path), Texts.of(texts)
    place = output_path(output, source_path, "tuned")
    recipe = recipe or usual_recipe(source_path)
    session.check(place, (source_path, *wanted.files), recipe)
    with staged(place, force=session.force) as stage:
        result = retrain(Retraining(source_path, wanted, recipe, place, factory), stage, session, progress)
    finish(session, place, result.epochs)
    return result


@dataclass(frozen=True)
class Retraining:
    """A classifier that is trained further.

    Attributes:
        path: the classifier.
        texts: what it learns from.
        recipe: how it is trained.
        place: the output; what is kept of an unfinished run is written next to it.
        factory: of a classifier of the user's own.
        sources: file name -> SHA-256 of what the output is made from; None for ``path`` itself.
    """

    path: Path
    texts: Texts
    recipe: Recipe
    place: Path
    factory: str | None = None
    sources: Mapping[str, str] | None = None


def retrain(what: Retraining, stage: Path, session: Session, progress: Progress) -> TrainingResult:
    """Everything between opening and publishing: read, train, write to ``stage``, and check."""
    with open_checkpoint(what.path) as source:
        before = stamps(source)
        opened = open_classifier(what.path, factory=what.factory)
        record = opened.record
        split = what.texts.split(what.recipe.seed, record)
        train, dev = dataset(record, split.train), dataset(record, split.dev)
        task = Task(opened.model, train, dev, what.recipe, what.place, source.weight_files)
        with_names(source, opened.stored_state(opened.model.state_dict()))  # or it would all be for nothing
        check_format(what.place, source)
        check_space(what.place, source.size)

        def write(target: Path, learned: Learned) -> State:
            return write_trained(
                source,
                target,
                opened.stored_state(learned.state),
                progress,
                trained=learned.best.epoch > 0,
                sources=what.sources,
            )

        learned = learn(task, session, write)
        values = write(stage, learned)
        check_unchanged(source, before)
        written = check_written(stage, values, dev, session, what.factory)
    notes = [*opened.notes, *split.notes]
    if learned.best.epoch == 0:
        notes.append("training improved nothing on dev: the weights are as they were")
    return TrainingResult(
        source=what.path,
        output=what.place,
        classifier=record.architecture.factory or record.architecture.name,
        labels=record.labels,
        tokens=len(record.tokenizer.vocabulary),
        pretrained=0,
        train_texts=len(train),
        dev_texts=len(dev),
        epochs=learned.epochs,
        best=learned.best.epoch,
        dev_accuracy=written.dev_accuracy,
        size=written.size,
        notes=tuple(notes),
    )
