"""The library transformers, and how a directory from a stranger is given to it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embcompress.errors import EmbcompressError, InputError, UsageError, reason_of

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
