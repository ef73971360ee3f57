"""Make the embedding tables of saved models small.

The public names are imported when they are first used, so that ``import embcompress`` and the
command line cost neither NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embcompress.version import __version__

if TYPE_CHECKING:
    from embcompress.errors import EmbcompressError, InputError, TargetError, UsageError
    from embcompress.loading import load
    from embcompress.nn import FactorizedEmbedding, FactorizedHead
    from embcompress.workflows import expand, factorize, report

__all__ = [
    "EmbcompressError",
    "FactorizedEmbedding",
    "FactorizedHead",
    "InputError",
    "TargetError",
    "UsageError",
    "__version__",
    "expand",
    "factorize",
    "load",
    "report",
]

_HOMES = {
    "EmbcompressError": "errors",
    "FactorizedEmbedding": "nn",
    "FactorizedHead": "nn",
    "InputError": "errors",
    "TargetError": "errors",
    "UsageError": "errors",
    "expand": "workflows",
    "factorize": "workflows",
    "load": "loading",
    "report": "workflows",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
