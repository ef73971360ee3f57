"""The public Python API: what each command does, without its terminal.

The names are imported when they are first used: what trains needs torch, what factorizes does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embcompress.workflows.comparing import compare
    from embcompress.workflows.compressing import compress
    from embcompress.workflows.distilling import distil
    from embcompress.workflows.evaluating import evaluate
    from embcompress.workflows.expanding import expand
    from embcompress.workflows.factorizing import factorize
    from embcompress.workflows.finetuning import finetune
    from embcompress.workflows.predicting import predict
    from embcompress.workflows.reporting import report
    from embcompress.workflows.training import train
    from embcompress.workflows.verifying import verify

__all__ = [
    "compare",
    "compress",
    "distil",
    "evaluate",
    "expand",
    "factorize",
    "finetune",
    "predict",
    "report",
    "train",
    "verify",
]

_HOMES = {
    "compare": "comparing",
    "compress": "compressing",
    "distil": "distilling",
    "evaluate": "evaluating",
    "expand": "expanding",
    "factorize": "factorizing",
    "finetune": "finetuning",
    "predict": "predicting",
    "report": "reporting",
    "train": "training",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
