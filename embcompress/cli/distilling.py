"""The commands that measure a model, and the one that brings it nearer to its original without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.classifiers import columns, device, own_module, resume
from embcompress.cli.options import force, output, output_options, progress, show, source
from embcompress.training.recovery import PARTS, USUAL_EPOCHS, DistilRecipe

_FILE = click.Path(path_type=Path, readable=False)
_RATES = ", ".join(f"{part.learning_rate:g} for {part.name}" for part in PARTS.values())

_max_length = click.option(
    "--max-length", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens read of a text."
)


@click.command()
@source
@click.argument("labelled", metavar="[TEXTS]", type=_FILE, required=False)
@click.option("--teacher", type=_FILE, help="Directory of the original model to measure PATH against.")
@click.option("--texts", type=_FILE, help="Texts to compare it on, without labels: .csv or .txt.")
@own_module
@columns
@_max_length
@device
@output_options
def evaluate(
    path: Path,
    labelled: Path | None,
    *,
    teacher: Path | None,
    texts: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Measure the classifier PATH on the labelled CSV TEXTS: accuracy, macro-F1, each label, confusion.

    With --teacher, measure what compression did to the model of the Hugging Face directory PATH, on texts
    without labels: sentence vectors, nearest neighbours, and the perplexity of a language model.
    """
    file = labelled or texts
    if file is None or (labelled and texts):
        raise click.UsageError("Give one file of texts." if file else "Missing argument 'TEXTS'.")
    if teacher is None:
        if texts:
            raise click.UsageError("--texts is for --teacher; a classifier's are the argument TEXTS.")
        _evaluate(path, file, options, as_json=as_json, quiet=quiet, verbose=verbose)
        return
    for name in ("factory", "label_column", "delimiter"):
        if options.pop(name) is not None:
            flag = "--model" if name == "factory" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for classifiers, not for --teacher.")
    import embcompress

    options["text_column"] = options["text_column"] or "text"
    with progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.compare(path, teacher, file, progress=bars, **options)
    show(result, as_json=as_json, quiet=quiet, screen="comparison_terminal")


def _evaluate(
    path: Path, texts: Path, options: dict[str, Any], *, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Measure a classifier."""
    import embcompress
    from embcompress.runs.sessions import Session
    from embcompress.runs.texts import Texts

    with progress(quiet=quiet, verbose=verbose):
        wanted = Texts(
            texts,
            text_column=options["text_column"],
            label_column=options["label_column"],
            delimiter=options["delimiter"],
        )
        session = Session(device=options["device"])
        result = embcompress.evaluate(path, wanted, factory=options["factory"], session=session)
    show(result, as_json=as_json, quiet=quiet, screen="learning_terminal")


@click.command()
@source
@click.option("--teacher", type=_FILE, required=True, help="Directory of the original model.")
@click.option("--texts", type=_FILE, required=True, help="Texts to learn from, without labels: .csv or .txt.")
@click.option("--text-column", default="text", show_default=True, help="Header of the texts of a .csv.")
@output
@click.option(
    "--train",
    type=click.Choice([*PARTS]),
    default="all",
    show_default=True,
    help="; ".join(f"{part.name}: {part.description}" for part in PARTS.values()) + ".",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help=f"Passes over the texts.  [default: {USUAL_EPOCHS}, or as many as --minutes allows]",
)
@click.option("--minutes", type=float, help="Time after which it ends, however many passes that were.")
@click.option("--learning-rate", type=float, help=f"The highest.  [default: {_RATES}]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Texts a step.")
@_max_length
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of split and shuffling."
)
@device
@resume
@force
@output_options
def distil(
    path: Path,
    *,
    teacher: Path,
    texts: Path,
    output: Path | None,
    text_column: str,
    device: str,
    resume: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Bring the compressed model of the directory PATH nearer to its original, on texts without labels.

    It learns to have the original's last hidden states; a language model also its next tokens. A part of
    the texts is set aside and chooses the best weights. Ctrl-C keeps these in NAME.interrupted, and --resume
    goes on.
    """
    import embcompress
    from embcompress.reports.comparison_terminal import DistilProgress

    recipe = DistilRecipe(**options)
    with DistilProgress(quiet=quiet) as watcher, progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.distil(
            path,
            teacher,
            texts,
            output=output,
            recipe=recipe,
            text_column=text_column,
            device=device,
            resume=resume,
            force=force,
            watcher=watcher,
            progress=bars,
        )
    show(result, as_json=as_json, quiet=quiet, screen="comparison_terminal")
