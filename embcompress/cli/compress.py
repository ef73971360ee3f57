"""``embcompress compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.choices import AUTO, DEFAULT_METHOD, SMOOTHINGS
from embcompress.cli.options import (
    INPUT,
    Terminal,
    factors,
    keys,
    method,
    output,
    source,
    targets,
    with_terminal,
)
from embcompress.cli.training import retrain, retraining


@click.command()
@source
@click.argument("texts", type=INPUT)
@targets
@method(None, f"{AUTO}; {DEFAULT_METHOD} with --rank")
@factors
@keys
@click.option(
    "--smoothing",
    type=float,
    help="Exponent s of a token's weight (count+1)^s.  [default: of "
    f"{', '.join(f'{s:g}' for s in SMOOTHINGS)} the best on dev]",
)
@click.option(
    "--no-metric",
    "metric",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Count all errors alike, whether they move the classifier's scores or not.",
)
@output
@click.option("--test", type=INPUT, help="Texts to measure on.  [default: the dev texts]")
@retraining
@with_terminal
def compress(path: Path, texts: Path, *, output: Path | None, terminal: Terminal, **options: Any) -> None:
    """Factorize the classifier PATH, retrain it on the labelled TEXTS and measure it, in one go."""
    import embcompress

    retrain(embcompress.compress, path, texts, output, terminal, options)
