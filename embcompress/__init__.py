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
    from embcompress.loading.load import load
    from embcompress.nn import FactorizedEmbedding, FactorizedHead
    from embcompress.runs.sessions import Session
    from embcompress.runs.texts import Texts
    from embcompress.training.calr import CALR
    from embcompress.training.records import Recipe
    from embcompress.training.recovery import DistilRecipe
    from embcompress.workflows.compare import compare
    from embcompress.workflows.compress import compress
    from embcompress.workflows.distil import distil
    from embcompress.workflows.evaluate import evaluate
    from embcompress.workflows.expand import expand
    from embcompress.workflows.factorize import factorize
    from embcompress.workflows.finetune import finetune
    from embcompress.workflows.predict import predict
    from embcompress.workflows.report import report
    from embcompress.workflows.train import NewClassifier, train
    from embcompress.workflows.verify import verify

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
    "TextFormat",
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
    "NewClassifier": "workflows.train",
    "Recipe": "training.records",
    "Session": "runs.sessions",
    "TargetError": "errors",
    "TextFormat": "data.text_format",
    "Texts": "runs.texts",
    "UsageError": "errors",
    "load": "loading.load",
    "register": "integrations",
}
"""Where public names live; a workflow lives in the module of its name in ``workflows/``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, f"workflows.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
