"""The transformers library, and how to give it a directory that is not trusted."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from embcompress.checkpoint.directory.shards import JSON_LIMIT
from embcompress.errors import EmbcompressError, InputError, UsageError, reason_of
from embcompress.storage.regular import check_small

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


_SMALL = ("*config.json", "*token*.json", "vocab*.*", "merges.txt", "*.model", "chat_template.*")
"""Names of the files besides weights that transformers reads whole, by itself."""


def check_small_files(path: Path) -> None:
    """Refuse a directory in which a file that transformers would read whole is endless, or no file.

    Raises:
        InputError: with its name.
    """
    for file in sorted(path.iterdir()):
        if any(fnmatch(file.name, pattern) for pattern in _SMALL):
            check_small(file, JSON_LIMIT)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Silence transformers while it reads a directory, and turn whatever it raises into an error of one line.

    Raises:
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
    except (EmbcompressError, MemoryError):
        raise
    except Exception as error:  # a wrong file can make it raise anything
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
