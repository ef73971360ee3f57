"""Load a compressed checkpoint into a PyTorch model: read → match names → build modules → check → install."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import part_name
from embcompress.errors import UsageError, printable
from embcompress.loading.fit import RIGHT_MODEL, Misfit
from embcompress.loading.naming import Naming, naming_for
from embcompress.loading.quantized import loaded_ties
from embcompress.loading.stored_tables import StoredTable, places_of, read_stored
from embcompress.loading.swapping import install, replacements
from embcompress.methods.modules import in_range, module_parts


def load(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a checkpoint written by this package into the model it was made from.

    The modules that hold a compressed table, and those tied to it, are replaced by factorized ones.
    Then every tensor is copied in, as ``load_state_dict`` does it: the model keeps its dtypes, float
    factors take the dtype of the table they replace, and codes stay bytes. A tied name that the file
    leaves out gets the weights it is tied to; one that the file stores in full is untied. Everything
    is checked first: after an error the model is unchanged.

    If another library has quantized the layers, that library must have loaded them before, by
    ``from_pretrained(path, ignore_mismatched_sizes=True)``: only the tables are then read and replaced.

    Args:
        model: built as for the dense checkpoint; changed in place.
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        strict: whether the names in the file and in the model must be the same; shapes always must.
            If not, a warning lists the names that differ; what the file lacks keeps the model's values.
        device: where the model is moved afterwards; None leaves it where it is.

    Returns:
        ``model``.

    Raises:
        UsageError: the checkpoint is not compressed, or does not fit the model; or its layers are quantized
            and not loaded yet.
        InputError: the checkpoint is corrupt, or contradicts its record.
    """
    fill(model, path, strict=strict, needs_tables=True)
    return model if device is None else model.to(device)


def fill(model: nn.Module, path: str | Path, *, strict: bool = True, needs_tables: bool = False) -> None:
    """Load a checkpoint, compressed or dense, into the model it was made from; see :func:`load`.

    Args:
        model: changed in place, but only if the whole checkpoint fits.
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        strict: see :func:`load`.
        needs_tables: refuse a dense checkpoint.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UsageError("the model has parameters on the meta device", remedy="build it on a real device")
    with open_checkpoint(path) as checkpoint:
        if needs_tables:
            _check_tables(checkpoint)
        description = checkpoint.description
        quantized = description is not None and description.quantizer is not None
        stored = read_stored(checkpoint, description, others=not quantized)
        naming = naming_for(stored, model)
        weights = naming.converted(stored.others, path)
        if quantized:
            weights = loaded_ties(checkpoint, [table.record for table in stored.tables], model, naming)
    modules, parts = _built(stored.tables, model, naming, weights, path)
    weights |= parts
    expected = _expected_state(nn.Module() if quantized else model, modules)
    # Older files store buffers (BERT's position_ids) that newer classes make themselves.
    unsaved = {name for name, _ in model.named_buffers()} - expected.keys()
    weights = _with_ties({n: value for n, value in weights.items() if n not in unsaved}, expected)
    # Some classes of transformers make weights themselves and never store them (Marian's positions).
    never_stored = getattr(model, "_keys_to_ignore_on_save", None) or ()
    kept = expected if quantized else never_stored  # biases of tied heads are the model's
    weights = {name: expected[name] for name in kept if name in expected} | weights
    misfit = _misfit(weights, expected)
    misfit.check(path, strict=strict, remedy=_remedy(model))
    if misfit.names:
        text = f"{path}: loaded in part, the rest of the model is unchanged: {misfit.names}"
        warnings.warn(printable(text), stacklevel=3)
    install(model, modules)
    if not quantized:
        model.load_state_dict(weights, strict=strict)
        return
    for owner, module in modules.items():
        state = {name: weights[f"{owner}.{name}"] for name in module.state_dict()}
        module.load_state_dict(state, strict=True)


def _built(
    tables: Sequence[StoredTable], model: nn.Module, naming: Naming, untie: Collection[str], path: object
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """The modules that take the place of tables and what is tied to them, and the parts to put into them.

    Args:
        tables: the compressed tables.
        model: not changed.
        naming: from the names in the checkpoint to those in the model.
        untie: the names in the model of what the checkpoint stores in full.
        path: the checkpoint, for messages.

    Raises:
        UsageError: a table does not fit the model.
    """
    modules: dict[str, nn.Module] = {}
    weights: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places = [places_of(table.record, model, parameters, naming.renamed, path) for table in tables]
    for table, (main, *ties) in zip(tables, places, strict=True):
        apart = {name for others in places for name in others if others[0] != main}
        new = replacements(model, main, table.contents, ties=ties, untie=untie, apart=apart)
        twice = sorted(name for name in modules.keys() & new.keys() if f"{name}.weight" not in untie)
        if twice:
            raise UsageError(
                f"{path}: the model ties {twice[0]} to what are several tables in the file",
                remedy="build the model with the ties that it was trained with",
            )
        modules |= new
        parts = in_range(module_parts(table.parts, table.record.shape[1]), parameters[main].dtype)
        weights |= {part_name(main, suffix): part for suffix, part in parts.items()}
    return modules, weights


def _check_tables(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without compressed tables.

    Raises:
        UsageError: there is none.
    """
    if not (checkpoint.description and checkpoint.description.tables):
        raise UsageError(
            f"{checkpoint.path}: holds no compressed table",
            remedy="load it with load_state_dict or from_pretrained, or run 'embcompress factorize' first",
        )


def _expected_state(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The state dict that ``model`` will have once ``modules`` are installed, with their current values."""
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name.rpartition(".")[0] not in modules
    }
    for owner, module in modules.items():
        module.state_dict(destination=state, prefix=f"{owner}.", keep_vars=True)
    return state


def _with_ties(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """``weights`` and, for each name it lacks, the value of another name of the same parameter."""
    stored = {id(value): weights[name] for name, value in expected.items() if name in weights}
    missing = {name: stored[id(value)] for name, value in expected.items() if id(value) in stored}
    return {**missing, **weights}


def _shape(value: object) -> list[int] | None:
    """Sizes of a tensor; None for anything else, since state dicts may hold any object."""
    return list(value.shape) if isinstance(value, Tensor) else None


def _remedy(model: nn.Module) -> str:
    """What the user can do if the names in a file are not those of ``model``."""
    if hasattr(model, "from_pretrained"):  # with strict=False, missing weights would stay random
        return f"{RIGHT_MODEL}, or open its directory with from_pretrained after embcompress.register()"
    return f"{RIGHT_MODEL}, or strict=False to leave differing names alone"


def _misfit(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> Misfit:
    """The shapes and names that differ."""
    shapes = [
        f"{name} ({_shape(value)}, the model has {_shape(expected[name])})"
        for name, value in weights.items()
        if name in expected and _shape(value) != _shape(expected[name])
    ]
    missing = [name for name in expected if name not in weights]
    return Misfit(shapes, missing, [name for name in weights if name not in expected])
