"""The registry of methods, and the planning of rank and bytes that serves them all."""

from __future__ import annotations

from embcompress.errors import InputError, UsageError
from embcompress.methods.base import Method
from embcompress.methods.integer import Integers
from embcompress.methods.pq import PQ
from embcompress.methods.svd import SVD

METHODS: dict[str, Method] = {m.name: m for m in (SVD(), PQ(), Integers(8), Integers(4), Integers(3))}
"""Every method by name; contract tests run over it."""


DEFAULT_METHOD = SVD.name
"""The method when none is named."""

AUTO = "auto"
"""What a user writes for whichever method is foretold to serve best; no output is written with it."""


def method_for(name: str, where: str = "") -> Method:
    """The method of that name.

    Args:
        name: registry name.
        where: the file whose record names it, empty when the user did.

    Raises:
        UsageError: the user named no method.
        InputError: a file names one that this version does not have.
    """
    if name in METHODS:
        return METHODS[name]
    if where:
        raise InputError(f"{where}: written with method {name!r}", remedy="install a newer embcompress")
    raise UsageError(f"method {name!r}", remedy=f"choose from {', '.join((*METHODS, AUTO))}")
