"""Make other libraries load what this package writes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from embcompress.errors import UsageError


def register() -> None:
    """Make transformers load compressed directories; importing ``integrations.transformers`` does the same.

    From then on ``AutoModel….from_pretrained`` loads a directory that ``embcompress factorize`` wrote, and
    ``save_pretrained`` writes one. A second call changes nothing.

    Raises:
        UsageError: transformers is missing or too old.
    """
    _module("transformers").register()


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
