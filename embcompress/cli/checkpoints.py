"""The commands on checkpoints of any model: factorize, report, expand, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embcompress.cli.options import (
    force,
    keys,
    output,
    output_options,
    progress,
    show,
    source,
    targets,
    weighting,
)
from embcompress.errors import printable


@click.command()
@source
@targets
@output
@keys
@click.option("--all", "all_tables", is_flag=True, help="Take every token table.")
@weighting
@click.option(
    "--importance",
    type=click.Path(path_type=Path),
    help="Texts to weigh tokens by, as they move a classifier's predictions: .csv or .txt.",
)
@click.option(
    "--layout",
    type=click.Choice(["native", "sequential", "embcompress"]),
    help="How factors are stored: in the form of the model's own library, or as nn.Sequential has them.  "
    "[default: native where it is exact]",
)
@click.option(
    "--nan",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="Tables that hold NaN or infinity: refuse them, or take such numbers for zeros.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, write nothing.")
@force
@output_options
def factorize(path: Path, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Write a smaller copy of the checkpoint PATH, its embedding table replaced by factors or codes.

    PATH may be a file of word vectors too, whose copy is a .safetensors file.
    Give exactly one target. Without -o the output stands beside the input, named after the target.
    """
    import embcompress

    with progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.factorize(path, progress=bars, **options)
    show(result, as_json=as_json, quiet=quiet)


@click.command()
@source
@click.option(
    "--against", type=click.Path(path_type=Path), help="Original to measure a compressed PATH against."
)
@keys
@weighting
@click.option("--curve", is_flag=True, help="Draw error over ratio for every method.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="The same as a picture: .png, .svg or .pdf; needs embcompress[plot].",
)
@force
@output_options
def report(path: Path, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Show where the bytes of the checkpoint PATH are and what each ratio would cost."""
    import embcompress

    with progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.report(path, progress=bars, **options)
    show(result, as_json=as_json, quiet=quiet, screen="report_terminal")


@click.command()
@source
@output
@force
@output_options
def expand(
    path: Path, *, output: Path | None, force: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Write a copy of the compressed checkpoint PATH with dense tables again."""
    import embcompress

    with progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.expand(path, output=output, force=force, progress=bars)
    show(result, as_json=as_json, quiet=quiet)


@click.command()
@source
@click.option("--against", type=click.Path(path_type=Path), help="Original that PATH was made from.")
@weighting
@output_options
def verify(path: Path, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Check that the compressed checkpoint PATH is as it was written, and all else as in its original.

    Exit code 1 and a line for each difference where it is not. With --weights or --corpus, as they were
    given to factorize, weighted errors are measured again too.
    """
    import embcompress

    with progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.verify(path, progress=bars, **options)
    show(result, as_json=as_json, quiet=quiet)
    if quiet and not as_json:
        for difference in result.differences:
            click.echo(f"Error: {printable(difference.line, 2000)}", err=True)
    if not result.is_right:
        click.get_current_context().exit(1)
