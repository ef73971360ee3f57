"""``embcompress distil``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import (
    INPUT,
    Terminal,
    device,
    force,
    max_length,
    output,
    resume,
    source,
    text_column,
    with_terminal,
    with_text_format,
)
from embcompress.training.recovery import MIXTURE, PARTS, USUAL_EPOCHS, DistilRecipe

_USUAL = DistilRecipe()
_RATES = ", ".join(
    f"{part.learning_rate:g} for {part.name}"
    + (" (times the root of the error before)" if part.by_error else "")
    for part in PARTS.values()
)


@click.command()
@source
@click.option("--teacher", type=INPUT, required=True, help="Directory of the original model.")
@click.option(
    "--texts", type=INPUT, required=True, help="Texts to learn from, without labels: .csv, .jsonl or .txt."
)
@text_column
@with_text_format
@output
@click.option(
    "--train",
    type=click.Choice([*PARTS]),
    help="; ".join(f"{part.name}: {part.description}" for part in PARTS.values())
    + ".  [default: first; all for language models]",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help=f"Passes over the texts.  [default: {USUAL_EPOCHS}, or as many as --minutes allows]",
)
@click.option("--minutes", type=float, help="Time after which it ends, however many passes that is.")
@click.option("--learning-rate", type=float, help=f"The highest learning rate.  [default: {_RATES}]")
@click.option(
    "--mixture",
    type=float,
    help="Share of each text's tokens that are replaced by ones drawn from the vocabulary.  "
    f"[default: {MIXTURE:g}; 0 for language models]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=_USUAL.batch_size,
    show_default=True,
    help="Texts a step.",
)
@max_length(2)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=_USUAL.seed,
    show_default=True,
    help="Seed of split and shuffling.",
)
@device
@resume
@force
@with_terminal
def distil(path: Path, *, teacher: Path, texts: Path, terminal: Terminal, **options: Any) -> None:
    """Train the compressed model of the directory PATH to be like its original, on texts without labels.

    By default, the first layers of an encoder learn the states that the original's have, on texts into which
    other tokens are mixed; a language model learns the last hidden states and the next tokens. A part of the
    texts is set aside and chooses the best weights. Ctrl-C keeps these in NAME.interrupted, and --resume goes
    on.
    """
    import embcompress
    from embcompress.reports.comparison_terminal import DistilProgress

    recipe = DistilRecipe(**{field.name: options.pop(field.name) for field in fields(DistilRecipe)})
    with DistilProgress(quiet=terminal.quiet) as watcher, terminal.progress() as progress:
        result = embcompress.distil(
            path, teacher, texts, recipe=recipe, watcher=watcher, progress=progress, **options
        )
    terminal.show(result, "comparison_terminal")
