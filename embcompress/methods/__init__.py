"""The registry of methods, and the planning of rank and bytes that serves them all."""

from __future__ import annotations

from embcompress.errors import InputError, UsageError
from embcompress.methods.base import Method
from embcompress.methods.svd import SVD

METHODS: dict[str, Method] = {method.name: method for method in (SVD(),)}
"""Every method by name; contract tests run over it."""


DEFAULT_METHOD = SVD.name
"""The method when none is named."""


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
    raise UsageError(f"method {name!r}", remedy=f"choose from {', '.join(METHODS)}")
