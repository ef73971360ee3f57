"""``embcompress verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import ANY_PATH, Terminal, source, weighting, with_terminal
from embcompress.errors import printable


@click.command()
@source
@click.option("--against", type=ANY_PATH, help="Original that PATH was made from.")
@weighting
@with_terminal
def verify(path: Path, *, terminal: Terminal, **options: Any) -> None:
    """Check that the compressed checkpoint PATH is as it was written, and all else as in its original.

    If it is not, the exit code is 1, with a line for each difference. With --weights or --corpus, as they
    were given to factorize, errors weighted by counts are measured again too.
    """
    import embcompress

    with terminal.progress() as progress:
        result = embcompress.verify(path, progress=progress, **options)
    terminal.show(result)
    if terminal.quiet and not terminal.as_json:
        for difference in result.differences:
            click.echo(f"Error: {printable(difference.line, 2000)}", err=True)
    if not result.is_right:
        click.get_current_context().exit(1)
