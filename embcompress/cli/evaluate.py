"""``embcompress evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.choices import TEXT_COLUMN
from embcompress.cli.options import INPUT, Terminal, device, max_length, source, with_terminal
from embcompress.cli.training import VIEW, columns, own_module

_OF_CLASSIFIERS = {"factory": "--model", "label_column": "--label-column"}
"""Options that mean nothing with --teacher, and how they are written."""


@click.command()
@source
@click.argument("labelled", metavar="[TEXTS]", type=INPUT, required=False)
@click.option("--teacher", type=INPUT, help="Directory of the original model to measure PATH against.")
@click.option("--texts", type=INPUT, help="Texts to compare it on, without labels: .csv, .jsonl or .txt.")
@own_module
@columns
@max_length(2)
@device
@with_terminal
def evaluate(
    path: Path,
    labelled: Path | None,
    *,
    teacher: Path | None,
    texts: Path | None,
    terminal: Terminal,
    **options: Any,
) -> None:
    """Measure the classifier PATH on the labelled TEXTS: accuracy, macro-F1, each label, confusion.

    With --teacher, measure what compression did to the model of the Hugging Face directory PATH, on texts
    without labels: sentence vectors, nearest neighbours, and the perplexity of a language model.
    """
    file = labelled or texts
    if file is None or (labelled and texts):
        raise click.UsageError("Give one file of texts." if file else "Missing argument 'TEXTS'.")
    if teacher is not None:
        _compare(path, teacher, file, terminal, options)
    elif texts is not None:
        raise click.UsageError("--texts is for --teacher; a classifier's are the argument TEXTS.")
    else:
        _evaluate(path, file, terminal, options)


def _evaluate(path: Path, texts: Path, terminal: Terminal, options: dict[str, Any]) -> None:
    """Measure a classifier."""
    import embcompress

    columns = {name: options[name] for name in ("text_column", "label_column", "text_format")}
    with terminal.progress():
        result = embcompress.evaluate(
            path,
            embcompress.Texts(texts, **columns),
            factory=options["factory"],
            session=embcompress.Session(device=options["device"]),
        )
    terminal.show(result, VIEW)


def _compare(path: Path, teacher: Path, texts: Path, terminal: Terminal, options: dict[str, Any]) -> None:
    """Compare a compressed model with its original.

    Raises:
        click.UsageError: an option of classifiers is given.
    """
    import embcompress

    for name, option in _OF_CLASSIFIERS.items():
        if options.pop(name) is not None:
            raise click.UsageError(f"{option} is for classifiers, not for --teacher.")
    options["text_column"] = options["text_column"] or TEXT_COLUMN
    with terminal.progress() as progress:
        result = embcompress.compare(path, teacher, texts, progress=progress, **options)
    terminal.show(result, "comparison_terminal")
