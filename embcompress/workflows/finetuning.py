"""open classifier → read texts → loop → the same write path as factorize → check → publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import part_name
from embcompress.checkpoint.dtypes import DTYPES, DType, Floats
from embcompress.checkpoint.progress import Progress, silent
from embcompress.checkpoint.staging import check_space, staged
from embcompress.checkpoint.tensors import NewTensor
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.pretrained import is_directory
from embcompress.errors import TargetError
from embcompress.methods.base import Blocks
from embcompress.nn.stored import RIGHT, RIGHT_PARTS, module_parts, trained_right
from embcompress.reports.learning import TrainingResult
from embcompress.training.loop import State
from embcompress.training.records import Recipe
from embcompress.workflows.common import check_format, check_unchanged, default_output, hashed, stamps
from embcompress.workflows.learning import Learned, Task, check_written, finish, learn
from embcompress.workflows.sealing import seal, unsealed
from embcompress.workflows.sessions import USUAL_SESSION, Session
from embcompress.workflows.texts import Texts, dataset

FINETUNE_RECIPE = Recipe(epochs=3, learning_rate=3e-3)
"""How a compressed classifier is retrained unless the user says otherwise: what measured best at large
ratios, see examples/paper/RESULTS.md. CALR's rates fall too fast for three epochs."""

PRETRAINED_RECIPE = Recipe(epochs=3, batch_size=32, optimizer="adamw", learning_rate=1e-4, clip=1.0)
"""The same for a model of a Hugging Face directory. On all-MiniLM-L6-v2, trained on TREC-6 to 93.4 % on dev,
then with a table ten times smaller (45.8 %), rates of 2e-5, 5e-5, 1e-4 and 2e-4 came to 87.6, 88.5, 89.4 and
89.4 %; large models want the lower ones."""


def usual_recipe(path: Path) -> Recipe:
    """How the classifier at ``path`` is retrained unless the user says otherwise."""
    return PRETRAINED_RECIPE if is_directory(path) else FINETUNE_RECIPE


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
    """Train a classifier on, compressed or dense, and write it as it was stored.

    The output has the format, the names and the element types of the input; weights are trained in
    float32. The codes of a coded table stay, its codebooks and right factor are trained. Epoch 0 is
    the input itself: where training makes nothing better on dev, it is kept.

    Args:
        path: a classifier written by ``train``, ``factorize`` or ``finetune``, or the Hugging Face directory
            of a model for sequence classification.
        texts: a CSV file with the columns ``text`` and ``label``, or where and how to read them.
        output: where to write; by default beside the input with ``-tuned`` in its name.
        factory: ``package.module:function`` of a classifier of the user's own.
        recipe: how it is trained; :func:`usual_recipe` when None.
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
    recipe = recipe or usual_recipe(source_path)
    session.check(place, (source_path, *wanted.files), recipe)
    with staged(place, force=session.force) as stage:
        result = retrain(Retraining(source_path, wanted, recipe, place, factory), stage, session, progress)
    finish(session, place, result.epochs)
    return result


@dataclass(frozen=True)
class Retraining:
    """What is trained on, and where it goes.

    Attributes:
        path: the classifier.
        texts: what it learns from.
        recipe: how.
        place: the output; what is kept of an unfinished run stands beside it.
        factory: of a classifier of the user's own.
        sources: file name -> SHA-256 of what the output was made from; None for ``path`` itself.
    """

    path: Path
    texts: Texts
    recipe: Recipe
    place: Path
    factory: str | None = None
    sources: Mapping[str, str] | None = None


def retrain(what: Retraining, stage: Path, session: Session, progress: Progress) -> TrainingResult:
    """Everything between opening and publishing: read, train, write to ``stage`` and check."""
    opened = open_classifier(what.path, factory=what.factory)
    record = opened.record
    split = what.texts.split(what.recipe.seed, record)
    train, dev = dataset(record, split.train), dataset(record, split.dev)
    task = Task(opened.model, train, dev, what.recipe, what.place)
    with open_checkpoint(what.path) as source:
        before = stamps(source)
        check_format(what.place, source)
        check_space(what.place, source.size)

        def write(target: Path, learned: Learned) -> State:
            return write_trained(
                source,
                target,
                learned.state,
                opened.renamed,
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
        notes.append("training made nothing better on dev: the weights are those it began with")
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


def write_trained(
    source: Checkpoint,
    target: Path,
    state: State,
    renamed: Callable[[str], str],
    progress: Progress,
    *,
    trained: bool,
    sources: Mapping[str, str] | None = None,
) -> State:
    """Write ``source`` with the values of a trained module.

    Args:
        source: what was trained.
        target: does not exist yet.
        state: state dict of the module.
        renamed: the name in ``state`` of a name in the files.
        progress: called as ``progress(stage, done, total)``.
        trained: whether these are other values than those of ``source``.
        sources: file name -> SHA-256 of what the output was made from; None for ``source`` itself.

    Returns:
        The values as they are stored, by their names in the files.

    Raises:
        TargetError: a trained value is not finite, or too large for the stored type.
    """
    description = source.description
    with hashed(source.weight_files) as digests:
        values = stored_values(source, state, renamed)
        if description is not None:
            tables = tuple(unsealed(replace(t, trained=t.trained or trained)) for t in description.tables)
            description = replace(description, source=sources or digests.result(), tables=tables)
        source.write(target, with_values(source, values), description, progress)
    if description is not None:
        seal(target)
    return values


def stored_values(source: Checkpoint, state: State, renamed: Callable[[str], str]) -> State:
    """Trained values by their names in the files of ``source``, as they are read from there.

    Args:
        source: what was trained.
        state: state dict of the trained module.
        renamed: the name in ``state`` of a name in the files.

    Raises:
        TargetError: a trained value is not finite.
    """
    tables = source.description.tables if source.description else ()
    rights = {part_name(name, RIGHT) for table in tables for name in (table.name, *table.ties)}
    names = {name: renamed(name) for name in {*source.tensors, *rights}}
    return _rounded(source, {name: state[other] for name, other in names.items() if other in state})


def _rounded(source: Checkpoint, state: State) -> State:
    """``state`` with the right factors that are stored in integers as they will be read, and these integers.

    Raises:
        TargetError: a trained value is not finite.
    """
    values = dict(state)
    for table in source.description.tables if source.description else ():
        names = dict(zip(table.parts, table.part_names, strict=True))
        parts = {
            suffix: torch.from_numpy(source.rows(names[suffix], 0, source.tensors[names[suffix]].shape[0]))
            for suffix in RIGHT_PARTS
            if suffix in names
        }
        if not parts:
            continue
        trained, columns = part_name(table.name, RIGHT), table.shape[1]
        _check_range(trained, state[trained], DTYPES["F32"])
        integers = trained_right(state[trained], parts, columns)
        read_back = module_parts({**parts, **integers}, columns)[RIGHT]
        values |= {names[suffix]: part for suffix, part in integers.items()}
        values |= {
            n: read_back for n in (part_name(o, RIGHT) for o in (table.name, *table.ties)) if n in state
        }
    return values


def with_values(source: Checkpoint, state: State) -> Edit:
    """Every stored tensor replaced by the one of that name in ``state``, in its stored type.

    Those that ``state`` does not name are carried over.
    """
    add = []
    for name, info in source.tensors.items():
        if name in source.aliases or name not in state or info.dtype is None or not info.dtype.storage:
            continue
        add.append(NewTensor(name, info.dtype, info.shape, name, _whole(name, state[name], info.dtype)))
    replaced = {new.name for new in add}
    aliases = {alias: name for alias, name in source.aliases.items() if name in replaced}
    return Edit(frozenset(replaced | aliases.keys()), tuple(add), aliases)


def _whole(name: str, values: Tensor, dtype: DType) -> Blocks:
    """The values of one tensor as the one block it is written in.

    Raises:
        TargetError: when they are written, if one would become infinite.
    """

    def blocks() -> Iterator[Floats]:
        _check_range(name, values, dtype)
        yield values.numpy()

    return blocks


def _check_range(name: str, values: Tensor, dtype: DType) -> None:
    """Refuse values that would become infinite in a float type.

    Raises:
        TargetError: with the greatest.
    """
    peak = float(values.abs().max()) if dtype.is_table and values.numel() else 0.0
    if not peak <= dtype.largest and dtype.is_table:
        raise TargetError(
            f"{name}: a trained value is {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
            remedy="train with a lower --learning-rate, or factorize with --dtype float32",
        )
