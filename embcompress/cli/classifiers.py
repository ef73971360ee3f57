"""The commands that train text classifiers: train, finetune, compress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embcompress.cli.options import (
    Result,
    force,
    keys,
    output,
    output_options,
    progress,
    show,
    source,
    targets,
)

if TYPE_CHECKING:
    from embcompress.runs.sessions import Session
    from embcompress.runs.texts import Texts
    from embcompress.training.records import Recipe, Watcher

F = TypeVar("F", bound=Callable[..., Any])

ARCHITECTURES = ("dan", "lstm")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
SCHEDULES = ("calr", "clr", "cosine", "linear", "constant")
"""The names of four registries, whose modules import torch: too much for ``--help``. A test compares."""

_FILE = click.Path(path_type=Path, readable=False)


def _options(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that adds ``options`` in the order in which help shows them."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _numbers(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers from 1 on with commas between them, such as ``1024,512``; an option callback."""
    if value is None:
        return None
    try:
        numbers = tuple(map(int, value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers; write 1024,512", ctx, param) from None
    if min(numbers) < 1:
        raise click.BadParameter(f"{value!r} holds a number below 1", ctx, param)
    return numbers


def _settings(
    ctx: click.Context | None, param: click.Parameter | None, values: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    """Settings of a schedule, each ``name=number``; an option callback."""
    settings = []
    for value in values:
        name, _, number = value.partition("=")
        try:
            settings.append((name, float(number)))
        except ValueError:
            raise click.BadParameter(f"{value!r} is no setting; write decay=0.1", ctx, param) from None
    return tuple(settings)


columns = _options(
    click.option("--text-column", help="Header of the texts.  [default: text, or as it was trained]"),
    click.option("--label-column", help="Header of the labels.  [default: label, or as it was trained]"),
    click.option("--delimiter", help="Between fields.  [default: a tab in .tsv files, else a comma]"),
)
own_module = click.option(
    "--model", "factory", metavar="PACKAGE.MODULE:FUNCTION", help="A module of your own; runs that code."
)
device = click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute."
)
resume = click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
_run = _options(
    click.option(
        "--dev", type=_FILE, help="CSV that chooses the best epoch.  [default: a part of the texts]"
    ),
    click.option("--dev-share", type=float, help="That part, of a new classifier.  [default: 0.1]"),
    click.option(
        "--epochs", type=click.IntRange(min=1), help="Passes over the texts.  [default: 8; 3 to retrain]"
    ),
    click.option(
        "--batch-size", type=click.IntRange(min=1), help="Texts a step.  [default: 50; 32 for transformers]"
    ),
    click.option(
        "--optimizer",
        type=click.Choice(OPTIMIZERS),
        help="How gradients become steps.  [default: adam; adamw for transformers]",
    ),
    click.option(
        "--learning-rate",
        type=float,
        help="The highest.  [default: the optimizer's; to retrain 3e-3, transformers 1e-4]",
    ),
    click.option(
        "--schedule", type=click.Choice(SCHEDULES), help="How the learning rate moves.  [default: linear]"
    ),
    click.option(
        "--schedule-option",
        "schedule_options",
        metavar="NAME=X",
        callback=_settings,
        multiple=True,
        help="Repeats: decay=0.1.",
    ),
    click.option("--weight-decay", type=float, help="L2 penalty.  [default: 0]"),
    click.option(
        "--clip", type=float, help="Largest norm of the gradient.  [default: none; 1 for transformers]"
    ),
    click.option("--patience", type=click.IntRange(min=1), help="Stop after so many epochs without gain."),
    click.option("--seed", type=click.IntRange(min=0), help="Of split, shuffling and dropout.  [default: 0]"),
    device,
    click.option(
        "--mixed/--no-mixed", default=None, help="bfloat16 passes.  [default: on GPUs that have it]"
    ),
    click.option("--history", type=_FILE, help="File that gets one JSON line an epoch."),
    click.option("--plot", type=_FILE, help="Picture of the learning curves; needs embcompress[plot]."),
    resume,
)
_only_factors = click.option("--only-factors", is_flag=True, help="Train the factors and nothing else.")


@click.command()
@click.argument("texts", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="Where to write, .pt or .safetensors.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="lstm", show_default=True, help="Network.")
@own_module
@click.option("--vectors", type=_FILE, help="Pretrained: GloVe, word2vec, .npy, or a checkpoint's table.")
@click.option(
    "--tokenizer", default="words", show_default=True, help="words, whitespace, or a tokenizer.json file."
)
@click.option(
    "--dimension", type=click.IntRange(min=1), help="Of the table.  [default: the vectors', or 300]"
)
@click.option(
    "--hidden", metavar="N[,N]", callback=_numbers, help="Units a layer.  [default: dan 1024,512, lstm 150]"
)
@click.option("--dropout", type=float, help="Share of units dropped.  [default: 0.4]")
@click.option("--bidirectional", is_flag=True, help="An LSTM that reads backwards as well.")
@click.option("--min-count", type=click.IntRange(min=1), default=1, help="Drop rarer tokens.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Most rows of the table, frequent tokens first."
)
@click.option(
    "--max-length", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens read of a text."
)
@columns
@_run
@force
@output_options
def train(texts: Path, *, output: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Train a classifier on the labelled CSV TEXTS; it describes itself, so later commands need no flags."""
    import embcompress
    from embcompress.workflows.train import TRAIN_RECIPE, NewClassifier

    with _watched(quiet=quiet) as watcher, progress(quiet=quiet, verbose=verbose) as bars:
        result = embcompress.train(
            _texts(texts, options),
            output=output,
            recipe=_recipe(TRAIN_RECIPE, options),
            session=_session(options, watcher),
            new=NewClassifier(**options),
            progress=bars,
        )
    show(result, as_json=as_json, quiet=quiet, screen="learning_terminal")


@click.command()
@source
@click.argument("texts", type=_FILE)
@output
@own_module
@columns
@_only_factors
@_run
@force
@output_options
def finetune(
    path: Path, texts: Path, *, output: Path | None, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Train the classifier PATH on with the labelled CSV TEXTS, to recover what compression lost."""
    import embcompress

    _retrain(
        embcompress.finetune, path, texts, output, options, quiet=quiet, verbose=verbose, as_json=as_json
    )


@click.command()
@source
@click.argument("texts", type=_FILE)
@targets
@keys
@click.option(
    "--smoothing",
    type=float,
    help="Exponent s of a token's weight (count+1)^s.  [default: of 1, 0.5, 0 the best on dev]",
)
@output
@click.option("--test", type=_FILE, help="CSV to measure on.  [default: the dev texts]")
@own_module
@columns
@_only_factors
@_run
@force
@output_options
def compress(
    path: Path, texts: Path, *, output: Path | None, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Factorize the classifier PATH, retrain it on the labelled CSV TEXTS and measure it, in one go."""
    import embcompress

    _retrain(
        embcompress.compress, path, texts, output, options, quiet=quiet, verbose=verbose, as_json=as_json
    )


def _retrain(
    workflow: Callable[..., Result],
    path: Path,
    texts: Path,
    output: Path | None,
    options: dict[str, Any],
    *,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Carry out a command that trains an existing classifier on; ``options`` are those of its own."""
    from embcompress.workflows.finetune import usual_recipe

    with _watched(quiet=quiet) as watcher, progress(quiet=quiet, verbose=verbose) as bars:
        result = workflow(
            path,
            _texts(texts, options),
            output=output,
            recipe=_recipe(usual_recipe(path), options),
            session=_session(options, watcher),
            progress=bars,
            **options,
        )
    show(result, as_json=as_json, quiet=quiet, screen="learning_terminal")


def _watched(*, quiet: bool) -> Any:
    from embcompress.reports.learning_terminal import TrainingProgress

    return TrainingProgress(quiet=quiet)


def _take(options: dict[str, Any], kind: type[Any]) -> Mapping[str, Any]:
    """Remove from ``options`` what has the name of a field of the dataclass ``kind``, and return it."""
    return {name: options.pop(name) for name in kind.__dataclass_fields__ if name in options}


def _texts(path: Path, options: dict[str, Any]) -> Texts:
    from embcompress.runs.texts import Texts

    return Texts(path, **_take(options, Texts))


def _recipe(usual: Recipe, options: dict[str, Any]) -> Recipe:
    """The usual recipe with what the user says otherwise."""
    from dataclasses import replace

    given = {name: value for name, value in _take(options, type(usual)).items() if value is not None}
    if "optimizer" in given and not _like_rates(given["optimizer"], usual.optimizer):
        given.setdefault("learning_rate", None)  # another optimizer has another usual rate
    return replace(usual, **{**given, "schedule_options": dict(given["schedule_options"])})


def _like_rates(one: str, other: str) -> bool:
    from embcompress.training.optimizers import optimizer_for

    return optimizer_for(one).learning_rate == optimizer_for(other).learning_rate


def _session(options: dict[str, Any], watcher: Watcher) -> Session:
    from embcompress.runs.sessions import Session

    return Session(watcher=watcher, **_take(options, Session))
