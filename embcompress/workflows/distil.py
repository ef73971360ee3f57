"""open both models → tokens → learn from the teacher → the same write path as finetune → check → publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.directory.modules import static_modules
from embcompress.choices import DEFAULT_DEVICE, TEXT_COLUMN
from embcompress.compression.outputs import check_format, check_output, output_path
from embcompress.compression.sources import check_unchanged, compressed, stamps
from embcompress.data.counting import read_texts
from embcompress.data.priors import prior_of
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.errors import UsageError
from embcompress.pretrained.models import open_pretrained
from embcompress.pretrained.tokenizer import converted
from embcompress.progress import Progress, silent
from embcompress.reports.comparison import DistilResult
from embcompress.rows import keep_freed_memory
from embcompress.runs.learning import check_read_back
from embcompress.runs.trained import with_names, write_trained
from embcompress.runs.unfinished import carry_out, check_unfinished, forget, keep_best
from embcompress.storage.staging import check_space, staged
from embcompress.training.devices import multiplies_bfloat16, runtime
from embcompress.training.distillation import Distilled, Distiller, State, held_out
from embcompress.training.likeness import measure
from embcompress.training.recovery import DistilRecipe, DistilWatcher
from embcompress.training.snapshots import Snapshots, fingerprint
from embcompress.workflows.compare import open_pair, tokens_of

USUAL_RECIPE = DistilRecipe()
QUIET_WATCHER = DistilWatcher()


def distil(
    path: str | Path,
    teacher: str | Path,
    texts: str | Path,
    *,
    output: str | Path | None = None,
    recipe: DistilRecipe = USUAL_RECIPE,
    text_column: str = TEXT_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    device: str = DEFAULT_DEVICE,
    resume: bool = False,
    force: bool = False,
    watcher: DistilWatcher = QUIET_WATCHER,
    progress: Progress = silent,
) -> DistilResult:
    """Train a compressed model of a Hugging Face directory to behave like its original, without labels.

    Codes stay as they are. What is trained is written in the types it is stored in, everything else byte
    for byte. A part of the texts is set aside and chooses the best weights; if training improves nothing
    on them, the weights stay as they were.

    Args:
        path: the directory of the compressed model.
        teacher: the directory of the model it was made from.
        texts: a file of texts.
        output: where to write; by default next to the input with ``-tuned`` in its name.
        recipe: what is trained, and how.
        text_column: header of the texts where they are in columns; a number where there is no header.
        text_format: how the texts are written.
        device: where to compute, one of ``choices.DEVICES``.
        resume: go on with an interrupted run. On a CPU this gives bitwise the same model, unless the run
            is limited by time, of which it gets what was left.
        force: replace an existing output, or what is left of an interrupted run.
        watcher: is told how training goes.
        progress: called as ``progress(stage, done, total)`` while the output is written.

    Returns:
        How alike the models were before and are now, measured on the written output.

    Raises:
        UsageError: nothing is compressed, the models cannot be compared, or the output place does not do.
        InputError: a model or the texts are corrupt.
        TargetError: a trained value is too large for the stored type.
        Interrupted: by Ctrl-C; the state and the best weights so far are on disk.
        OSError: the output cannot be written.
    """
    keep_freed_memory()
    student_path, teacher_path, file = Path(path), Path(teacher), Path(texts)
    where = runtime(device)
    if where.device.type == "cpu" and multiplies_bfloat16():
        where = replace(where, mixed=True)
    place = output_path(output, student_path, "tuned")
    inputs = (student_path, teacher_path, file)
    check_output(place, inputs, force=force)
    check_unfinished(place, inputs, resume=resume, force=force)
    with open_checkpoint(student_path) as source:
        before = stamps(source)
        compressed(source, remedy="run 'embcompress factorize' first")
        if static_modules(student_path):
            raise UsageError(
                f"{student_path}: is a static model, its table is all there is to train",
                remedy="pass the texts to 'embcompress factorize' with --corpus instead",
            )
        check_format(place, source)
        check_space(place, source.size)
        student, original = open_pair(student_path, teacher_path)
        recipe = recipe.settled(causal=student.causal, layers=len(student.layers))
        data = tokens_of(student, file, read_texts(file, text_column, text_format), recipe.max_length)
        train, held = (data.take(rows) for rows in held_out(len(data), recipe.seed))
        begun_with = fingerprint(
            {"the starting model": student.model, "the teacher": original.model},
            {"the training texts": train, "the texts set aside": held},
            recipe,
        )
        prior = prior_of(source, student.vocabulary, lambda: converted(source)) if recipe.mixture else None
        shares = None if prior is None else prior.shares
        distiller = Distiller(student, original, train, held, recipe, where, shares)
        named = student.model.named_parameters(remove_duplicate=False)
        trained: State = {name: value for name, value in named if value.requires_grad}
        with_names(source, student.stored_state(trained))  # or it would all be for nothing

        def write(target: Path, done: Distilled) -> State:
            state = student.stored_state(done.state)
            return write_trained(source, target, state, progress, trained=done.changed)

        def learn(stop: Callable[[], bool], save: Callable[[], None]) -> str | None:
            if distiller.run(watcher, stop, save):
                return None
            found, kept = distiller.stopped(watcher), "nothing is better than the start yet"
            if found.changed:
                kept = f"the best so far is {keep_best(place, lambda target: write(target, found))}"
            return f"interrupted after step {found.steps:,}; {kept}"

        with staged(place, force=force) as stage:
            carry_out(
                distiller, Snapshots(place, begun_with, source.weight_files), learn, watcher, resume=resume
            )
            done = distiller.result
            written = write(stage, done)
            check_unchanged(source, before)
            after = open_pretrained(stage)
            read = {name: value for name, value in after.model.state_dict().items() if name in done.state}
            check_read_back(stage, written, after.stored_state(read))
            after.model.to(where.device)
            found = measure(after, original, held, where)
    forget(place)
    notes = list(student.notes)
    if not done.changed:
        notes.append("training improved nothing on the texts set aside: the weights are as they were")
    return DistilResult(
        source=student_path,
        teacher=teacher_path,
        output=place,
        recipe=recipe,
        learning_rate=distiller.highest_rate,
        train_texts=len(train),
        steps=done.steps,
        parameters=sum({id(value): value.numel() for value in done.state.values()}.values()),
        checks=done.checks,
        best=done.checks.index(done.best),
        after=found.likeness,
        size=after.size,
        notes=tuple(notes),
    )
