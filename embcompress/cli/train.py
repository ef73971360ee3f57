"""``embcompress train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.choices import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    DEFAULT_TOKENIZER,
    DIMENSION,
    DROPOUT,
    HIDDEN,
    TOKENIZERS,
)
from embcompress.cli.options import INPUT, Terminal, force, max_length, with_terminal
from embcompress.cli.training import (
    VIEW,
    columns,
    own_module,
    take_recipe,
    take_session,
    take_texts,
    training,
)
from embcompress.training.records import TRAIN_RECIPE

_UNITS = ", ".join(f"{name} {','.join(map(str, units))}" for name, units in HIDDEN.items())


def _numbers(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers from 1 on with commas between them, such as ``1024,512``; an option callback."""
    if value is None:
        return None
    try:
        numbers = tuple(map(int, value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers; write 1024,512", ctx, param) from None
    if min(numbers) < 1:
        raise click.BadParameter(f"{value!r} holds a number below 1", ctx, param)
    return numbers


@click.command()
@click.argument("texts", type=INPUT)
@click.option("-o", "--output", type=INPUT, required=True, help="Where to write, .pt or .safetensors.")
@click.option(
    "--arch",
    type=click.Choice(ARCHITECTURES),
    default=DEFAULT_ARCHITECTURE,
    show_default=True,
    help="Network.",
)
@own_module
@click.option(
    "--vectors",
    type=INPUT,
    help="Pretrained: GloVe, word2vec, fastText, gensim, .npy, or a checkpoint's table.",
)
@click.option(
    "--tokenizer",
    default=DEFAULT_TOKENIZER,
    show_default=True,
    help=f"{', '.join(TOKENIZERS)}, or a tokenizer.json file.",
)
@click.option(
    "--dimension",
    type=click.IntRange(min=1),
    help=f"Of the table.  [default: the vectors', or {DIMENSION}]",
)
@click.option("--hidden", metavar="N[,N]", callback=_numbers, help=f"Units a layer.  [default: {_UNITS}]")
@click.option("--dropout", type=float, help=f"Share of units dropped.  [default: {DROPOUT:g}]")
@click.option("--bidirectional", is_flag=True, help="An LSTM that reads backwards as well.")
@click.option("--min-count", type=click.IntRange(min=1), default=1, help="Drop rarer tokens.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Most rows of the table, frequent tokens first."
)
@max_length(1)
@columns
@training
@force
@with_terminal
def train(texts: Path, *, output: Path, terminal: Terminal, **options: Any) -> None:
    """Train a classifier on the labelled TEXTS; it describes itself, so later commands need no flags."""
    import embcompress
    from embcompress.reports.learning_terminal import TrainingProgress

    with TrainingProgress(quiet=terminal.quiet) as watcher, terminal.progress() as progress:
        result = embcompress.train(
            take_texts(texts, options),
            output=output,
            recipe=take_recipe(TRAIN_RECIPE, options),
            session=take_session(watcher, options),
            new=embcompress.NewClassifier(**options),
            progress=progress,
        )
    terminal.show(result, VIEW)
