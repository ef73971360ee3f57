"""The registry of methods, and the planning that all methods share."""

from __future__ import annotations

from functools import cache

from embcompress.errors import InputError, UsageError
from embcompress.methods.base import Method
from embcompress.methods.integer.method import Integers
from embcompress.methods.lplr.method import LPLR
from embcompress.methods.pq.method import PQ
from embcompress.methods.screen.method import Screen
from embcompress.methods.svd.method import SVD

METHODS: dict[str, Method] = {
    m.name: m for m in (SVD(), PQ(), LPLR(), Integers(8), Integers(4), Integers(3), Screen())
}
"""All methods by name; contract tests run over this registry."""


DEFAULT_METHOD = SVD.name
"""Name of the method that is used when none is named."""

AUTO = "auto"
"""What a user writes to get the method predicted to be best. Outputs record that method, never this word."""


def method_for(name: str, where: str = "") -> Method:
    """Return the method called ``name``.

    Args:
        name: registry name of a method, with or without ``screen+`` before it.
        where: file whose record holds the name; empty if the user gave it.

    Raises:
        UsageError: the user gave a name that no method has.
        InputError: a file names a method that this version does not have.
    """
    if name in METHODS:
        return METHODS[name]
    screen, _, inner = name.partition("+")
    if screen == Screen.name and inner in METHODS and inner != Screen.name:
        return _screened(inner)
    if where:
        raise InputError(f"{where}: written with method {name!r}", remedy="install a newer embcompress")
    raise UsageError(f"method {name!r}", remedy=f"choose from {', '.join((*METHODS, 'screen+METHOD', AUTO))}")


@cache
def _screened(inner: str) -> Screen:
    return Screen(METHODS[inner])
