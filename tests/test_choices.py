"""Names and defaults stand once: each registry offers what ``choices`` lists, and defaults are among it."""

from __future__ import annotations

import inspect

import pytest

import embcompress
from embcompress import choices
from embcompress.classifiers import CLASSIFIERS
from embcompress.cli import COMMANDS, cli
from embcompress.data.tokenizing import SPLITTING
from embcompress.dtypes import TABLE_DTYPES
from embcompress.methods import METHODS
from embcompress.training.optimizers import OPTIMIZERS
from embcompress.training.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("listed", "registry"),
    [
        (choices.METHODS, METHODS),
        (choices.ARCHITECTURES, CLASSIFIERS),
        (choices.TOKENIZERS, SPLITTING),
        (choices.OPTIMIZERS, OPTIMIZERS),
        (choices.SCHEDULES, SCHEDULES),
    ],
)
def test_a_list_is_its_registry(listed, registry):
    """The same names in the same order: a new member is found by the command line."""
    assert tuple(listed) == tuple(registry)


def test_types_of_factors_are_those_of_tables():
    assert {*choices.DTYPES} == {dtype.torch for dtype in TABLE_DTYPES}


def test_every_default_can_be_chosen():
    assert choices.DEFAULT_METHOD in choices.METHODS
    assert choices.AUTO not in choices.METHODS
    assert choices.DEFAULT_SPLIT in choices.SPLITS
    assert choices.DEFAULT_NAN in choices.NANS
    assert choices.DEFAULT_ARCHITECTURE in choices.ARCHITECTURES
    assert choices.DEFAULT_TOKENIZER in choices.TOKENIZERS
    assert choices.DEFAULT_DEVICE in choices.DEVICES
    assert choices.SMOOTHING in choices.SMOOTHINGS
    assert {*choices.HIDDEN} == {*choices.ARCHITECTURES}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_has_the_default_of_its_argument(name):
    """An option left out of a command means what an argument left out of a call means."""
    workflow = inspect.signature(getattr(embcompress, name)).parameters
    defaults = {option.name: option.default for option in cli.commands[name].params}
    for option, parameter in workflow.items():
        if option in defaults and type(parameter.default) in (str, float):
            assert defaults[option] == parameter.default, option
