"""Make the embedding tables of saved models small.

The public names are imported when they are first used, so that ``import embcompress`` and the
command line cost neither NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embcompress.version import __version__

if TYPE_CHECKING:
    from embcompress.errors import EmbcompressError, InputError, Interrupted, TargetError, UsageError
    from embcompress.integrations import register
    from embcompress.loading import load
    from embcompress.nn import FactorizedEmbedding, FactorizedHead
    from embcompress.training.calr import CALR
    from embcompress.training.records import Recipe
    from embcompress.training.recovery import DistilRecipe
    from embcompress.workflows import (
        compare,
        compress,
        distil,
        evaluate,
        expand,
        factorize,
        finetune,
        predict,
        report,
        train,
        verify,
    )
    from embcompress.workflows.sessions import Session
    from embcompress.workflows.texts import Texts
    from embcompress.workflows.training import NewClassifier

__all__ = [
    "CALR",
    "DistilRecipe",
    "EmbcompressError",
    "FactorizedEmbedding",
    "FactorizedHead",
    "InputError",
    "Interrupted",
    "NewClassifier",
    "Recipe",
    "Session",
    "TargetError",
    "Texts",
    "UsageError",
    "__version__",
    "compare",
    "compress",
    "distil",
    "evaluate",
    "expand",
    "factorize",
    "finetune",
    "load",
    "predict",
    "register",
    "report",
    "train",
    "verify",
]

_HOMES = {
    "CALR": "training.calr",
    "DistilRecipe": "training.recovery",
    "EmbcompressError": "errors",
    "FactorizedEmbedding": "nn",
    "FactorizedHead": "nn",
    "InputError": "errors",
    "Interrupted": "errors",
    "NewClassifier": "workflows.training",
    "Recipe": "training.records",
    "Session": "workflows.sessions",
    "TargetError": "errors",
    "Texts": "workflows.texts",
    "UsageError": "errors",
    "compare": "workflows",
    "compress": "workflows",
    "distil": "workflows",
    "evaluate": "workflows",
    "expand": "workflows",
    "factorize": "workflows",
    "finetune": "workflows",
    "load": "loading",
    "predict": "workflows",
    "register": "integrations",
    "report": "workflows",
    "train": "workflows",
    "verify": "workflows",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
