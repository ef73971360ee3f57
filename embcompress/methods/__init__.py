"""The registry of methods, and the planning of rank and bytes that serves them all."""

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
"""Every method by name; contract tests run over it."""


DEFAULT_METHOD = SVD.name
"""The method when none is named."""

AUTO = "auto"
"""What a user writes for whichever method is foretold to serve best; no output is written with it."""


def method_for(name: str, where: str = "") -> Method:
    """The method of that name.

    Args:
        name: registry name, or ``screen+`` before that of another method.
        where: the file whose record names it, empty when the user did.

    Raises:
        UsageError: the user named no method.
        InputError: a file names one that this version does not have.
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
