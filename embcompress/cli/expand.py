"""``embcompress expand``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import Terminal, force, output, source, with_terminal


@click.command()
@source
@output
@force
@with_terminal
def expand(path: Path, *, terminal: Terminal, **options: Any) -> None:
    """Write a copy of the compressed checkpoint PATH with dense tables again."""
    import embcompress

    with terminal.progress() as progress:
        result = embcompress.expand(path, progress=progress, **options)
    terminal.show(result)
