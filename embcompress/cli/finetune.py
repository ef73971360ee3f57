"""``embcompress finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import INPUT, Terminal, output, source, with_terminal
from embcompress.cli.training import retrain, retraining


@click.command()
@source
@click.argument("texts", type=INPUT)
@output
@retraining
@with_terminal
def finetune(path: Path, texts: Path, *, output: Path | None, terminal: Terminal, **options: Any) -> None:
    """Train the classifier PATH on with the labelled TEXTS, to recover what compression lost."""
    import embcompress

    retrain(embcompress.finetune, path, texts, output, terminal, options)
