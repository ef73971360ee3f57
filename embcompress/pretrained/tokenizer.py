"""Open the tokenizer of a directory with transformers, from whatever files it has."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import home_of
from embcompress.data.counting import Encode
from embcompress.data.encoded import Encoded
from embcompress.data.static_tokens import static_counting
from embcompress.data.tokenizing import tokenizer_of
from embcompress.data.vectors.words import words_of
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.library import OFFLINE, check_files, library, reading

_SENTENCEPIECE = (".model", ".spm")
"""Suffixes of the models of SentencePiece."""
_CONVERTED = ("merges.txt", *(f"*{suffix}" for suffix in _SENTENCEPIECE))
"""Files of tokenizers that transformers converts to a tokenizer.json."""
_LIBRARIES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""What transformers needs to read them: packages, and the modules by which they are imported."""


def tokenizer_in(path: Path) -> Any:
    """Open the tokenizer of a directory with ``AutoTokenizer``.

    Raises:
        UsageError: the directory has none, or a library that reads it is missing.
        InputError: it cannot be read.
    """
    auto = library().AutoTokenizer
    path = home_of(path)
    check_files(path)
    try:
        with reading(path):
            made = auto.from_pretrained(path, **OFFLINE)
    except (InputError, UsageError):
        _check_libraries(path)
        raise
    # Without its files, transformers makes a tokenizer that knows its special tokens alone.
    names = {"tokenizer.json", *made.vocab_files_names.values()} - {"tokenizer_config.json"}
    if made.vocab_files_names and not any((path / name).is_file() for name in names):
        raise UsageError(
            f"{path}: has no tokenizer, none of {', '.join(sorted(names))}",
            remedy="put the files of the model's tokenizer there",
        )
    return made


def _check_libraries(path: Path) -> None:
    """Refuse a directory with a SentencePiece model where what reads it is missing.

    Raises:
        UsageError: with what is missing.
    """
    models = sorted(file.name for file in path.iterdir() if file.suffix in _SENTENCEPIECE)
    missing = [package for package, module in _LIBRARIES.items() if not _is_installed(module)]
    if models and missing:
        raise UsageError(
            f"{path}: {models[0]} needs {' and '.join(missing)}",
            remedy="pip install 'embcompress[transformers]'",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package around it is missing
        return False


def counting_of(checkpoint: Checkpoint, rows: int) -> Encode:
    """The function that turns texts into the rows that a model would read, for counting.

    Word vectors are read by their words. The tokenizer of a model is the one that a static model reads with,
    or in the checkpoint's own record, or else in tokenizer.json next to its weights, or else the one that
    transformers makes of the other files there.

    Args:
        checkpoint: the model or the word vectors.
        rows: rows of the table, V.

    Raises:
        UsageError: there is none, or a library that reads it is missing.
        InputError: it cannot be read.
    """
    if (words := words_of(checkpoint, rows)) is not None:
        return words.count
    if (static := static_counting(checkpoint)) is not None:
        return static
    if (own := tokenizer_of(checkpoint)) is not None:
        return own.count
    folder = checkpoint.folder
    if not (folder / "config.json").is_file():  # it names the class of the tokenizer
        raise UsageError(
            f"{checkpoint.path}: has no tokenizer to count tokens with",
            remedy=f"put the model's tokenizer.json into {folder}, or give counts with --weights",
        )
    try:
        library()
    except UsageError as error:
        place = repr(str(folder))
        raise UsageError(
            f"{checkpoint.path}: has no tokenizer.json, and other tokenizers need the library transformers",
            remedy=f"{error.remedy}, or make the file where it is installed: "
            f"AutoTokenizer.from_pretrained({place}).save_pretrained({place})",
        ) from None
    made = tokenizer_in(folder)

    def count(texts: Sequence[str]) -> Encoded:
        with reading(folder):
            return Encoded.of(made(list(texts))["input_ids"])

    return count


def converted(checkpoint: Checkpoint) -> str | None:
    """The text of the tokenizer.json that transformers makes of a directory's other files; None without them.

    It is imported, which takes seconds, only where there are files that it converts.

    Raises:
        UsageError: transformers, or a library that it needs for these files, is missing.
        InputError: they cannot be read, or belong to a model that it does not know.
    """
    folder = checkpoint.folder
    if not (checkpoint.path.is_dir() and (folder / "config.json").is_file()):
        return None
    if not any(file.is_file() for pattern in _CONVERTED for file in folder.glob(pattern)):
        return None
    made = tokenizer_in(folder)
    backend = getattr(made, "backend_tokenizer", None)  # tokenizers written in Python have none
    return None if backend is None else str(backend.to_str())
