"""Load a compressed checkpoint into a PyTorch model: open → fit names → plan the swap → check → fill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.files import open_file
from embcompress.checkpoint.torchfile import TorchFile
from embcompress.errors import InputError, UsageError
from embcompress.swapping import install, replacements

_PARTS = ("0.weight", "1.weight")
"""What nn.FactorizedPair can hold: left (V×r), and right transposed (d×r)."""

_SHOWN = 3
"""Names listed in an error before the rest is counted."""


def load(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a checkpoint written by this package into the model it was made from.

    The modules that hold a compressed table, and those tied to it, are replaced by factorized ones;
    then every tensor is copied in, as ``load_state_dict`` does it: the model keeps its dtypes, and
    the factors take that of the table they replace. A tied name that the file leaves out is filled
    by its tie; one that the file stores in full is untied. All of it is checked first: after an
    error the model is what it was.

    Args:
        model: built as for the dense checkpoint; it is changed in place.
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        strict: whether the names in the file and in the model must be the same; shapes always must.
        device: where the model is moved afterwards; stays where it is when None.

    Returns:
        ``model``.

    Raises:
        UsageError: the checkpoint is not compressed, or does not fit the model.
        InputError: the checkpoint is corrupt or not what its record says.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UsageError("the model has parameters on the meta device", remedy="build it on a real device")
    with open_checkpoint(path) as checkpoint:
        tables = _tables(checkpoint)
        checkpoint.check_integrity()
        weights = {name: value for file in checkpoint.weight_files for name, value in _read(file).items()}
    for table in tables:
        _check_factors(weights, table, path)
        if _shape(weights.get(table.name)) == [0]:
            del weights[table.name]  # the guard, which makes stock loaders refuse the file

    renamed = _renaming(_dense_names(weights, tables), model)
    weights = {renamed(name): value for name, value in weights.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    modules: dict[str, nn.Module] = {}
    for table in tables:
        ties = [tie for tie in map(renamed, table.ties) if tie in parameters]
        modules |= replacements(model, renamed(table.name), table.rank, ties=ties, untie=weights)

    expected = _state(model, modules)
    # Older files store buffers (BERT's position_ids) that newer classes make themselves.
    own = {name for name, _ in model.named_buffers()} - expected.keys()
    weights = _with_ties({n: value for n, value in weights.items() if n not in own}, expected)
    _check_fit(weights, expected, path, strict=strict)
    install(model, modules)
    model.load_state_dict(weights, strict=strict)
    return model if device is None else model.to(device)


def _tables(checkpoint: Checkpoint) -> tuple[TableRecord, ...]:
    """The compressed tables of a checkpoint, all of a kind that can be loaded.

    Raises:
        UsageError: there are none, or of a method whose parts have no module here.
    """
    tables = checkpoint.description.tables if checkpoint.description else ()
    if not tables:
        raise UsageError(
            f"{checkpoint.path}: holds no compressed table",
            remedy="load it with load_state_dict or from_pretrained, or run 'embcompress factorize' first",
        )
    for table in tables:
        if table.parts != _PARTS:
            raise UsageError(
                f"{checkpoint.path}: the parts of {table.name} (method {table.method}) cannot be loaded",
                remedy="run 'embcompress expand' and load the dense result",
            )
    return tables


def _read(file: Path) -> dict[str, Any]:
    """The state dict in one weight file, on the CPU."""
    with open_file(file) as opened:
        keys = opened.container if isinstance(opened, TorchFile) else None
    if keys is None:
        return load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    for key in keys:
        state = state[key]
    return dict(state)


def _check_factors(weights: Mapping[str, Any], table: TableRecord, path: str | Path) -> None:
    """See that the factors of ``table`` are there and of the shapes that its record says.

    Raises:
        InputError: they are not.
    """
    rows, columns = table.shape
    for name, shape in zip(table.part_names, ((rows, table.rank), (columns, table.rank)), strict=True):
        found = _shape(weights.get(name))
        if found != list(shape):
            raise InputError(
                f"{path}: {name} is {found or 'missing'}, its record says {list(shape)}",
                remedy="make the file again from its source",
            )


def _dense_names(weights: Mapping[str, Any], tables: Collection[TableRecord]) -> set[str]:
    """The names in the file with tables in the place of their factors."""
    factors = {part for t in tables for tie in (t.name, *t.ties) for part in replace(t, name=tie).part_names}
    return {*weights} - factors | {t.name for t in tables}


def _renaming(names: Collection[str], model: nn.Module) -> Callable[[str], str]:
    """How names in the file become names in the model: as they are, or with a prefix more or less.

    A transformers model keeps its body under ``base_model_prefix``, the body alone has none; a
    prefix is only added or removed if then every name is one of the model's.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    own = model.state_dict().keys()

    def remove(name: str) -> str:
        return name.removeprefix(prefix)

    if prefix != "." and not own >= {*names}:
        if own >= {prefix + name for name in names}:
            return prefix.__add__
        if own >= {remove(name) for name in names}:
            return remove
    return str  # as they are


def _state(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The state dict ``model`` would have with ``modules`` in it, values as they are in the modules."""
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name.rpartition(".")[0] not in modules
    }
    for owner, module in modules.items():
        module.state_dict(destination=state, prefix=f"{owner}.", keep_vars=True)
    return state


def _with_ties(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """``weights`` and, for names it lacks, the value of another name of the same parameter."""
    stored = {id(value): weights[name] for name, value in expected.items() if name in weights}
    missing = {name: stored[id(value)] for name, value in expected.items() if id(value) in stored}
    return {**missing, **weights}


def _shape(value: object) -> list[int] | None:
    """Sizes of a tensor; None for what is none, since state dicts may hold anything."""
    return list(value.shape) if isinstance(value, Tensor) else None


def _check_fit(
    weights: Mapping[str, Any], expected: Mapping[str, Any], path: str | Path, *, strict: bool
) -> None:
    """Compare names (if ``strict``) and shapes before anything is changed.

    Raises:
        UsageError: they differ.
    """
    problems = [
        _listed("of another shape", [
            f"{name} ({_shape(value)}, the model has {_shape(expected[name])})"
            for name, value in weights.items()
            if name in expected and _shape(value) != _shape(expected[name])
        ])
    ]  # fmt: skip
    if strict:
        problems += [
            _listed("missing from the file", [name for name in expected if name not in weights]),
            _listed("unknown to the model", [name for name in weights if name not in expected]),
        ]
    if any(problems):
        raise UsageError(
            f"{path}: does not fit the model: {'; '.join(filter(None, problems))}",
            remedy="use the model class and the sizes that it was made from"
            + (", or strict=False to leave differing names alone" if not problems[0] else ""),
        )


def _listed(what: str, names: list[str]) -> str:
    """``2 unknown to the model: a, b``; empty without names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}" if names else ""
