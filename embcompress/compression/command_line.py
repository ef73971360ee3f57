"""The command that does what a request asks, for the record of an output."""

from __future__ import annotations

import shlex
from pathlib import Path

from embcompress.choices import (
    DEFAULT_METHOD,
    DEFAULT_NAN,
    DEFAULT_QUOTING,
    DEFAULT_SPLIT,
    ENCODING,
    SMOOTHING,
    TEXT_COLUMN,
)
from embcompress.compression.request import Request
from embcompress.data.text_format import TextFormat


def command_line(request: Request) -> str | None:
    """The ``factorize`` command for a request; None where an array cannot be written in a command line.

    Files are called by their names alone: where they were is nobody's business. Options that change
    nothing in the output are left out, and so are those at their defaults.
    """
    given = request.weights
    if not all(value is None or isinstance(value, str | Path) for value in given.options.values()):
        return None
    words = ["embcompress", "factorize", _name(request.path)]
    words += [f"--{request.target.kind.replace('_', '-')}", _number(request.target.value)]
    for key in request.keys:
        words += ["--key", key]
    if request.all_tables:
        words.append("--all")
    if request.reading.weights_only:
        words.append("--weights-only")
    for option, value, default in (
        ("method", request.method, DEFAULT_METHOD),
        ("dtype", request.dtype, None),
        ("split-scale", request.split_scale, DEFAULT_SPLIT),
        ("layout", request.layout, None),
        ("nan", request.nan, DEFAULT_NAN),
        ("state", request.reading.state, None),
    ):
        if value is not None and value != default:
            words += [f"--{option}", value]
    words += given.words
    if given.text_column != TEXT_COLUMN:
        words += ["--text-column", given.text_column]
    words += _format_options(given.text_format)
    if given.smoothing != SMOOTHING:
        words += ["--smoothing", _number(given.smoothing)]
    return shlex.join(words)


def _format_options(given: TextFormat) -> list[str]:
    """The options that say how texts are written."""
    words = [] if given.kind is None else ["--text-format", given.kind]
    if given.header is False:
        words.append("--no-header")
    if given.quoting != DEFAULT_QUOTING:
        words += ["--quoting", given.quoting]
    if given.encoding != ENCODING:
        words += ["--encoding", given.encoding]
    return words


def _name(path: Path) -> str:
    """The last part of a path; of ``.`` the name of the directory."""
    return path.name or path.resolve().name


def _number(value: float) -> str:
    """A whole number without a fraction, any other as Python writes it."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
