"""Methods that compress a table, one folder each, and their registry."""

from __future__ import annotations

import importlib
from functools import cache

from embcompress import choices
from embcompress.errors import InputError, UsageError
from embcompress.methods.base import Method


def _entry(name: str, folder: str) -> Method:
    """The method of that name that a folder holds."""
    held: tuple[Method, ...] = importlib.import_module(f"{__name__}.{folder}.method").METHODS
    (found,) = (method for method in held if method.name == name)
    return found


METHODS: dict[str, Method] = {name: _entry(name, folder) for name, folder in choices.METHODS.items()}
"""Every method by name, as ``choices.METHODS`` lists them; contract tests run over it."""


def method_for(name: str, where: str = "") -> Method:
    """Return the method called ``name``.

    Args:
        name: registry name, or ``OUTER+INNER`` for a method that wraps another.
        where: the file whose record names it, empty when the user did.

    Raises:
        UsageError: the user gave a name that no method has.
        InputError: a file names a method that this version does not have.
    """
    if name in METHODS:
        return METHODS[name]
    outer, _, inner = name.partition("+")
    if outer in METHODS and inner in METHODS and (wrapped := _wrapped(METHODS[outer], METHODS[inner])):
        return wrapped
    if where:
        raise InputError(f"{where}: written with method {name!r}", remedy="install a newer embcompress")
    known = ", ".join((*METHODS, choices.SCREENED, choices.AUTO))
    raise UsageError(f"method {name!r}", remedy=f"choose from {known}")


@cache
def _wrapped(outer: Method, inner: Method) -> Method | None:
    return outer.around(inner)
