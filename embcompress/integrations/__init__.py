"""Other libraries taught to read what this package writes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

from embcompress.errors import UsageError


def register() -> None:
    """Teach transformers to load compressed directories; the same as importing ``integrations.transformers``.

    From then on ``AutoModel….from_pretrained`` takes a directory that ``embcompress factorize`` wrote, and
    ``save_pretrained`` writes one. A second call changes nothing.

    Raises:
        UsageError: there is no transformers to be taught, or one that is too old.
    """
    _module("transformers").register()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Like :func:`register`, and transformers is as it was afterwards.

    Raises:
        UsageError: there is no transformers to be taught, or one that is too old.
    """
    with _module("quantizer").registered():
        yield


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"embcompress.integrations.{name}")
    except ImportError as error:
        raise UsageError(
            f"transformers cannot be taught ({error})",
            remedy="run: pip install --upgrade 'embcompress[transformers]'",
        ) from error
