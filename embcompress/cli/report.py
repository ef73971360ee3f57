"""``embcompress report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import ANY_PATH, Terminal, force, keys, reading, source, weighting, with_terminal


@click.command()
@source
@click.option("--against", type=ANY_PATH, help="Original to measure a compressed PATH against.")
@keys
@weighting
@reading
@click.option("--curve", is_flag=True, help="Draw error over ratio for every method.")
@click.option(
    "--plot",
    type=ANY_PATH,
    help="The same as a picture: .png, .svg or .pdf; needs embcompress[plot].",
)
@force
@with_terminal
def report(path: Path, *, terminal: Terminal, **options: Any) -> None:
    """Show where the bytes of the checkpoint PATH are and what each ratio would cost."""
    import embcompress

    with terminal.progress() as progress:
        result = embcompress.report(path, progress=progress, **options)
    terminal.show(result, "report_terminal")
