"""Make other libraries load what this package writes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType

from embcompress.errors import UsageError


def register() -> None:
    """Make transformers and sentence-transformers load compressed directories.

    From then on ``AutoModel….from_pretrained`` and ``SentenceTransformer`` load a directory that
    ``embcompress factorize`` wrote, and ``save_pretrained`` and ``save`` write one. A second call changes
    nothing. Importing ``integrations.transformers`` does the same for transformers alone.

    Raises:
        UsageError: transformers is missing or too old.
    """
    _module("transformers").register()
    if importlib.util.find_spec("sentence_transformers") is not None:
        with contextlib.suppress(ImportError):  # another version of it
            importlib.import_module("embcompress.integrations.static_modules").register()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Do what :func:`register` does for the length of a ``with`` block, and undo it afterwards.

    Raises:
        UsageError: transformers is missing or too old.
    """
    with _module("quantizer").registered():
        yield


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"embcompress.integrations.{name}")
    except ImportError as error:
        raise UsageError(
            f"transformers cannot be set up to load compressed tables ({error})",
            remedy="run: pip install --upgrade 'embcompress[transformers]'",
        ) from error
