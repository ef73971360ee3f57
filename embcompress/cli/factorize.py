"""``embcompress factorize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.choices import DEFAULT_METHOD, DEFAULT_NAN, LAYOUTS, METRIC_TEXTS, NANS
from embcompress.cli.options import (
    ANY_PATH,
    INPUT,
    Terminal,
    factors,
    force,
    keys,
    method,
    output,
    reading,
    source,
    targets,
    weighting,
    with_terminal,
)


@click.command()
@source
@targets
@method(DEFAULT_METHOD, DEFAULT_METHOD)
@factors
@output
@keys
@click.option("--all", "all_tables", is_flag=True, help="Compress every token table.")
@weighting
@reading
@click.option(
    "--importance",
    type=ANY_PATH,
    help="Texts to weigh tokens by how much they move a classifier's predictions: .csv, .jsonl or .txt.",
)
@click.option(
    "--metric",
    type=ANY_PATH,
    help=f"Texts, of which {METRIC_TEXTS:,} are drawn, on which to measure what of a row matters to a "
    "transformers model or a classifier of embcompress: .csv, .jsonl or .txt.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="How factors are stored: in the form of the model's own library, or as nn.Sequential has them.  "
    "[default: native where it is exact]",
)
@click.option(
    "--nan",
    type=click.Choice(NANS),
    default=DEFAULT_NAN,
    show_default=True,
    help="Tables that hold NaN or infinity: refuse them, or read such numbers as zeros.",
)
@click.option(
    "--check",
    type=INPUT,
    help="Texts to compare the result with its original on, as 'evaluate --teacher' does: .csv, .jsonl or "
    ".txt. For directories of encoders and language models.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@force
@with_terminal
def factorize(path: Path, *, terminal: Terminal, **options: Any) -> None:
    """Write a smaller copy of the checkpoint PATH, its embedding table replaced by factors or codes.

    The copy of a file of word vectors is a .safetensors file.
    Give exactly one target. Without -o the output is written next to the input, named after the target.
    Methods that can use it weigh tokens by how frequent the model's vocabulary shows them to be.
    """
    import embcompress

    with terminal.progress() as progress:
        result = embcompress.factorize(path, progress=progress, **options)
    terminal.show(result)
