"""Modules without memory: their names and shapes are known before anything is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from embcompress.errors import InputError

SAME_MODEL = "both must be of one model: make or download them again"
"""What to do about a description that does not fit its weights."""

_SPARE = 1000
"""Tensors that a model may have beyond four times those of its weights: buffers, a head that is fresh."""
_MAKERS = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.rand, torch.randn, torch.tensor}
)
"""What modules make their parameters and buffers by."""


@contextlib.contextmanager
def outlined() -> Iterator[None]:
    """Within it, modules are built on the meta device, with shapes and without values."""
    with torch.device("meta"), _NoStart():
        yield


@contextlib.contextmanager
def outlined_for(tensors: int, what: str) -> Iterator[None]:
    """Like :func:`outlined`, for a model whose weights are so many tensors.

    A description of a kilobyte can ask for millions of modules, which take memory and hours on the meta
    device too. Sizes cost nothing there (addresses at most, where a class does not ask a device for its
    parameters), and are left to the caller.

    Args:
        tensors: that are stored.
        what: describes the model, for the message.

    Raises:
        InputError: the model has many more.
    """
    with outlined(), _Bounded(tensors, what):
        yield


class _NoStart(TorchFunctionMode):
    """Leaves out what ``torch.nn.init`` does: on meta tensors nothing, after a second of imports."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class _Bounded(TorchFunctionMode):
    """Counts what is made, and ends it where that is too much."""

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
