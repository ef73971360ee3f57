"""Options of the commands that train classifiers, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embcompress.choices import DEV_SHARE, LABEL_COLUMN, OPTIMIZERS, SCHEDULES, TEXT_COLUMN
from embcompress.cli.options import (
    INPUT,
    Result,
    Terminal,
    device,
    force,
    resume,
    together,
    with_text_format,
)
from embcompress.training.records import CALR_RECIPE, FINETUNE_RECIPE, PRETRAINED_RECIPE, TRAIN_RECIPE

if TYPE_CHECKING:
    from embcompress.runs.sessions import Session
    from embcompress.runs.texts import Texts
    from embcompress.training.records import Recipe, Watcher

VIEW = "learning_terminal"
"""The module of ``reports`` that shows results of training."""


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
            raise click.BadParameter(f"{value!r} is not a setting; write decay=0.1", ctx, param) from None
    return tuple(settings)


def _written(settings: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items())


columns = together(
    click.option(
        "--text-column",
        help=f"Header or key of the texts; with --no-header a number.  [default: {TEXT_COLUMN}, or as it was "
        "trained]",
    ),
    click.option(
        "--label-column", help=f"The same for the labels.  [default: {LABEL_COLUMN}, or as it was trained]"
    ),
    with_text_format,
)
own_module = click.option(
    "--model", "factory", metavar="PACKAGE.MODULE:FUNCTION", help="A module of your own; runs that code."
)
training = together(
    click.option(
        "--dev", type=INPUT, help="Texts that choose the best epoch.  [default: a part of the texts]"
    ),
    click.option(
        "--dev-share",
        type=float,
        help=f"How large that part is, for a new classifier.  [default: {DEV_SHARE:g}]",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        help=f"Passes over the texts.  [default: {TRAIN_RECIPE.epochs}; {FINETUNE_RECIPE.epochs} to retrain]",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help=f"Texts a step.  [default: {TRAIN_RECIPE.batch_size}; {PRETRAINED_RECIPE.batch_size} for "
        "transformers]",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(OPTIMIZERS),
        help=f"How gradients become steps.  [default: {TRAIN_RECIPE.optimizer}; "
        f"{PRETRAINED_RECIPE.optimizer} for transformers]",
    ),
    click.option(
        "--learning-rate",
        type=float,
        help="The highest learning rate.  [default: the optimizer's; to retrain "
        f"{FINETUNE_RECIPE.learning_rate:g}, transformers {PRETRAINED_RECIPE.learning_rate:g}]",
    ),
    click.option(
        "--schedule",
        type=click.Choice(SCHEDULES),
        help=f"How the learning rate moves.  [default: {TRAIN_RECIPE.schedule}]",
    ),
    click.option(
        "--schedule-option",
        "schedule_options",
        metavar="NAME=X",
        callback=_settings,
        multiple=True,
        help="Setting of the schedule, such as decay=0.1; may be given several times.  [default for calr to "
        f"retrain: {_written(CALR_RECIPE.schedule_options)}]",
    ),
    click.option(
        "--weight-decay",
        type=float,
        help=f"Weight of the L2 penalty.  [default: {TRAIN_RECIPE.weight_decay:g}]",
    ),
    click.option(
        "--clip",
        type=float,
        help=f"Largest norm of the gradient.  [default: none; {PRETRAINED_RECIPE.clip:g} for transformers]",
    ),
    click.option(
        "--patience", type=click.IntRange(min=1), help="Stop after so many epochs without improvement."
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        help=f"Seed of split, shuffling and dropout.  [default: {TRAIN_RECIPE.seed}]",
    ),
    device,
    click.option(
        "--mixed/--no-mixed", default=None, help="bfloat16 passes.  [default: on GPUs that have it]"
    ),
    click.option("--history", type=INPUT, help="File that gets one JSON line an epoch."),
    click.option("--plot", type=INPUT, help="Picture of the learning curves; needs embcompress[plot]."),
    resume,
)
"""How a classifier is trained, where, and what is recorded."""

retraining = together(
    own_module,
    columns,
    click.option("--only-factors", is_flag=True, help="Train the factors and nothing else."),
    training,
    force,
)
"""The same for an existing classifier, and how to read it and the texts."""


def retrain(
    workflow: Callable[..., Result],
    path: Path,
    texts: Path,
    output: Path | None,
    terminal: Terminal,
    options: dict[str, Any],
) -> None:
    """Call a workflow that trains an existing classifier, and show its result.

    Args:
        workflow: the workflow.
        path: the classifier.
        texts: what it learns from.
        output: where to write.
        terminal: where to show progress and result.
        options: all other options of the command.
    """
    from embcompress.reports.learning_terminal import TrainingProgress
    from embcompress.workflows.finetune import usual_recipe

    with TrainingProgress(quiet=terminal.quiet) as watcher, terminal.progress() as progress:
        result = workflow(
            path,
            take_texts(texts, options),
            output=output,
            recipe=take_recipe(usual_recipe(path, options["schedule"]), options),
            session=take_session(watcher, options),
            progress=progress,
            **options,
        )
    terminal.show(result, VIEW)


def take_texts(path: Path, options: dict[str, Any]) -> Texts:
    """The texts of a run; what says how to read them is removed from ``options``."""
    from embcompress.runs.texts import Texts

    return Texts(path, **_take(Texts, options))


def take_recipe(usual: Recipe, options: dict[str, Any]) -> Recipe:
    """The usual recipe with what the user changes, which is removed from ``options``."""
    given = {name: value for name, value in _take(type(usual), options).items() if value is not None}
    if "optimizer" in given and not _share_rate(given["optimizer"], usual.optimizer):
        given.setdefault("learning_rate", None)  # the usual rate is for the usual optimizer
    settings = {**usual.schedule_options, **dict(given["schedule_options"])}
    return replace(usual, **{**given, "schedule_options": settings})


def _share_rate(one: str, other: str) -> bool:
    """Whether two optimizers have the same default learning rate."""
    from embcompress.training.optimizers import optimizer_for

    return optimizer_for(one).learning_rate == optimizer_for(other).learning_rate


def take_session(watcher: Watcher, options: dict[str, Any]) -> Session:
    """Where a run computes and what it records, which is removed from ``options``."""
    from embcompress.runs.sessions import Session

    return Session(watcher=watcher, **_take(Session, options))


def _take(kind: type[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Remove from ``options`` what has the name of a field of the dataclass ``kind``, and return it."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
