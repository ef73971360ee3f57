"""Builds modules on the meta device: names and shapes, without memory for values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from embcompress.errors import InputError

SAME_MODEL = "both must be of one model: make or download them again"
"""Remedy for a model description that does not fit its weights."""

_SPARE = 1000
"""Tensors that a model may have beyond four times the number in its weights: buffers, a new head."""
_MAKERS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.rand, torch.randn, torch.tensor}
)
"""Functions with which modules create parameters and buffers."""


@contextlib.contextmanager
def outlined() -> Iterator[None]:
    """Build modules on the meta device within this context: with shapes, without values."""
    with torch.device("meta"), _NoStart():
        yield


@contextlib.contextmanager
def outlined_for(tensors: int, what: str) -> Iterator[None]:
    """Like :func:`outlined`, with a limit on the number of tensors created.

    A description of a kilobyte can ask for millions of modules, which take memory and hours even on the meta
    device. Only their number is limited: large tensors cost nothing there (at most address space, if a class
    chooses the device of its parameters itself), and callers check sizes.

    Args:
        tensors: number of stored tensors.
        what: name of the model, for the error message.

    Raises:
        InputError: the model has many more tensors than are stored.
    """
    with outlined(), _Bounded(tensors, what):
        yield


class _NoStart(TorchFunctionMode):
    """Skips ``torch.nn.init``, which does nothing to meta tensors but takes a second of imports."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class _Bounded(TorchFunctionMode):
    """Counts the tensors created, and raises an error if there are too many."""

    def __init__(self, tensors: int, what: str) -> None:
        super().__init__()
        self._tensors, self._what = tensors, what
        self._left = 4 * tensors + _SPARE

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._left -= function in _MAKERS
        if self._left < 0:
            raise InputError(
                f"{self._what} describes a model of far more tensors than its weights, which are "
                f"{self._tensors:,}",
                remedy=SAME_MODEL,
            )
        return function(*args, **(kwargs or {}))
