"""The library transformers, and how a directory from a stranger is given to it."""

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
"""Nothing is fetched, and no code that lies in a directory is asked for or run."""


def library() -> Any:
    """The package transformers.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError(
            "models of Hugging Face directories need the library transformers",
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
    """What transformers raises of a directory as one line of ours, and nothing of its own on stderr.

    Raises:
        InputError: it cannot read the directory.
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
    except Exception as error:  # whatever a wrong file makes of them
        raise InputError(
            f"{path}: transformers cannot load it ({reason_of(error)})", remedy="download the directory again"
        ) from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def running(path: Path) -> Iterator[None]:
    """What a directory's model raises when it runs as one line of ours: much of config.json shows only then.

    Raises:
        InputError: it does not run.
        MemoryError: there is too little for it.
    """
    try:
        yield
    except (EmbcompressError, MemoryError):
        raise
    except Exception as error:
        if "memory" in str(error):  # of this machine, which says nothing of the model
            raise MemoryError from error
        raise InputError(
            f"{path}: the model does not run ({reason_of(error)})",
            remedy="config.json must be that of these weights: download the directory again",
        ) from error
