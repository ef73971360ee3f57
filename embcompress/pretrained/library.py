"""The transformers library, and how to give it a directory that is not trusted."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embcompress.checkpoint.directory.shards import JSON_LIMIT, read_json
from embcompress.data.charsmaps import check_maps, check_model
from embcompress.errors import EmbcompressError, InputError, UsageError, reason_of
from embcompress.storage.regular import check_small, read_limited

OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options with which transformers downloads nothing and runs no code from a directory."""


def library() -> Any:
    """Import transformers.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "models in Hugging Face directories need the library transformers",
            remedy="pip install 'embcompress[transformers]'",
        ) from None
    return transformers


_TEXT = (
    *("*config.json", "*token*.json", "*vocab*", "merges.txt", "bpe.codes", "dict.txt", "tekken.json"),
    *("emoji.json", "word_*.json", "normalizer.json", "byte_maps.json", "prophetnet.tokenizer"),
    *("chat_template.*", "additional_chat_templates/*.jinja"),
)
"""Names of the text files besides weights that transformers reads whole, by itself."""
_MODELS = ("*.model", "*.spm")
"""Names of the models of SentencePiece that it reads whole."""
_MODEL_LIMIT = 16 << 20
"""Longest model of SentencePiece accepted, in bytes; real ones stay under 5 MB."""

_PATHS = ("vocab", "merges")
"""Entries of tokenizer_config.json that the libraries read as a file, wherever it is, if they are text."""

_COUNT = re.compile(r"(?i)(layer|label|head|expert|block|group|attention_type)s?$")
"""Keys of config.json that count things made one by one: layers and their kinds, labels."""
_MOST = 100_000
"""The largest such count that is accepted; no real model has more."""
_NAMES = frozenset({"id2label", "label2id", "task_specific_params"})
"""Keys whose entries have names of the user's choice, so that their keys mean nothing here."""


def check_files(path: Path) -> None:
    """Refuse a directory whose configuration or tokenizer would harm transformers or the libraries it calls.

    Raises:
        InputError: a file is endless, or no file; a count in config.json is above the limit; a tokenizer
            leads to other files, or holds a map that is shorter than it claims.
    """
    for file in _matching(path, _TEXT):
        check_small(file, JSON_LIMIT)
    for file in _matching(path, _MODELS):
        check_model(file, _MODEL_LIMIT)
    for file in _matching(path, ("tokenizer.*json",)):
        with reading(path):
            check_maps(read_limited(file, JSON_LIMIT).decode())
    if (path / "config.json").exists():
        _check_counts(path, read_json(path / "config.json"))
    file = path / "tokenizer_config.json"
    raw = read_json(file) if file.exists() else {}
    for key in _PATHS:
        if isinstance(raw.get(key), str):
            raise InputError(
                f"{file}: {key} leads to the file {raw[key]!r}", remedy="remove this entry from it"
            )


def _matching(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files, or whatever they are, with a name of one of ``patterns``, sorted."""
    return sorted({file for pattern in patterns for file in path.glob(pattern) if not file.is_dir()})


def _check_counts(path: Path, raw: object) -> None:
    """Refuse counts that no real model has, before transformers makes that many names.

    Raises:
        InputError: a count is above the limit.
    """
    for key, value in _integers(raw):
        if value > _MOST and _COUNT.search(key):
            raise InputError(
                f"{path}: config.json gives {key} as {value:,}, limit {_MOST:,}",
                remedy="download the directory again",
            )


def _integers(value: object, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in a configuration, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _NAMES:
                yield from _integers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _integers(inner, key)
    elif isinstance(value, int):
        yield key, value


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Silence transformers while it reads a directory, and turn whatever it raises into an error of one line.

    Raises:
        UsageError: a library that transformers needs for it is missing.
        InputError: transformers cannot read the directory.
    """
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (EmbcompressError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except ImportError as error:  # some tokenizers need a library of their own
        raise UsageError(
            f"{path}: transformers needs another library to load it ({reason_of(error)})",
            remedy="install that library with pip",
        ) from None
    except BaseException as error:  # a wrong file can make it raise anything; a panic is no Exception
        raise InputError(
            f"{path}: transformers cannot load it ({reason_of(error)})", remedy="download the directory again"
        ) from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def running(path: Path) -> Iterator[None]:
    """Turn whatever a model raises when it runs into an error of one line.

    Many mistakes in config.json show only then.

    Raises:
        InputError: the model does not run.
        MemoryError: there is not enough memory.
    """
    try:
        yield
    except (EmbcompressError, MemoryError):
        raise
    except Exception as error:
        if "memory" in str(error):  # this machine is too small; the model may be right
            raise MemoryError from error
        raise InputError(
            f"{path}: the model does not run ({reason_of(error)})",
            remedy="config.json must belong to these weights: download the directory again",
        ) from error
