"""Models whose layers another library has quantized, and loads: only their tables are read here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.errors import UsageError
from embcompress.loading.naming import Naming

_MOST_COMPARED = 1 << 16
"""Most numbers of a weight that is compared to see whether a model's layers have been loaded."""


def loaded_ties(
    checkpoint: Checkpoint, tables: Collection[TableRecord], model: nn.Module, naming: Naming
) -> dict[str, Any]:
    """The weights in full of whatever the model ties to a table, by their names in the model.

    Args:
        checkpoint: has quantized layers.
        tables: its compressed tables.
        model: must hold these layers.
        naming: from the names in the checkpoint to those in the model.

    Raises:
        UsageError: the model does not hold them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = {id(parameters.get(naming.renamed(table.name))) for table in tables}
    records = {table.name for table in tables}
    names = {
        new: name
        for name in checkpoint.tensors
        if name not in records and id(parameters.get(new := naming.renamed(name), naming)) in shared
    }
    _check_loaded(checkpoint, parameters, naming, names.keys())
    state = checkpoint.torch_state([*names.values()]) if names else {}
    return {new: state[name] for new, name in names.items()}


def _check_loaded(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], naming: Naming, ties: Collection[str]
) -> None:
    """Refuse a model that does not hold a checkpoint's layers, by what is stored in floats: norms and biases.

    Args:
        checkpoint: has quantized layers.
        parameters: the model's parameters by name.
        naming: from the names in the checkpoint to those.
        ties: names of parameters that are about to be replaced.

    Raises:
        UsageError: a weight has other values in the model.
    """
    held: dict[str, Tensor] = {}
    for name, info in checkpoint.tensors.items():
        mine = parameters.get(new := naming.renamed(name))
        if mine is None or new in ties or info.dtype is None or not info.dtype.is_table:
            continue
        if mine.is_floating_point() and tuple(mine.shape) == info.shape and mine.numel() <= _MOST_COMPARED:
            held[name] = mine.detach()
    for name, value in checkpoint.torch_state([*held]).items() if held else ():
        if not torch.equal(value.to(held[name].dtype), held[name].cpu()):
            raise UsageError(
                f"{checkpoint.path}: {name} has other values in the model; only tables are read from here",
                remedy="let from_pretrained(…, ignore_mismatched_sizes=True) load the quantized layers first",
            )
