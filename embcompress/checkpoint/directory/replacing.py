"""Which directories an output may replace: our own, and models that hold nothing else."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.directory.checkpoint import Directory
from embcompress.checkpoint.directory.files import CONFIG, QUANTIZATION, is_our_record
from embcompress.checkpoint.directory.shards import read_json
from embcompress.errors import EmbcompressError, UsageError

_REMEDY = "remove it yourself, or name another output with -o"


def check_replaceable(path: Path) -> None:
    """Refuse to replace a directory with anything in it that is no part of a model.

    Replaced are empty directories, those that carry our record, and models in which there is nothing but
    what a copy of them would carry over.

    Raises:
        UsageError: with what is in the way.
    """
    if not any(path.iterdir()) or _says_it_is_ours(path / CONFIG):
        return
    try:
        with Directory.open(path) as model:
            is_ours, left_out = model.description is not None, model.left_out
    except EmbcompressError:
        first = min(entry.name for entry in path.iterdir())
        raise UsageError(
            f"{path}: holds {first} and no model that can be read; --force does not replace it",
            remedy=_REMEDY,
        ) from None
    if left_out and not is_ours:
        raise UsageError(
            f"{path}: holds {left_out[0]}, which is no part of the model in use; --force does not replace it",
            remedy=_REMEDY,
        )


def _says_it_is_ours(config: Path) -> bool:
    """Whether a config.json carries our record; the weights beside it may be broken."""
    try:
        found = read_json(config).get(QUANTIZATION) if config.is_file() else None
    except EmbcompressError:
        return False
    return is_our_record(found)
