"""Load a compressed checkpoint into a PyTorch model: open → fit names → plan the swap → check → fill."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.checkpoint.files import open_file
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.checkpoint.vectors.record import VOCABULARY
from embcompress.errors import InputError, UsageError, printable
from embcompress.loading.swapping import install, replacements
from embcompress.methods.decoding import decoded
from embcompress.methods.modules import TableModules, coded_table, has_module, module_parts

_RIGHT_MODEL = "use the model class and the sizes that it was made from"

_SHOWN = 3
"""Names listed in a message before the rest is counted."""


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
    float factors take that of the table they replace, codes stay bytes. A tied name that the file
    leaves out is filled by its tie; one that the file stores in full is untied. All of it is checked
    first: after an error the model is what it was.

    Args:
        model: built as for the dense checkpoint; it is changed in place.
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        strict: whether the names in the file and in the model must be the same; shapes always must.
            If not, a warning lists the names that differ; what the file lacks keeps the model's values.
        device: where the model is moved afterwards; stays where it is when None.

    Returns:
        ``model``.

    Raises:
        UsageError: the checkpoint is not compressed, or does not fit the model.
        InputError: the checkpoint is corrupt or not what its record says.
    """
    fill(model, path, strict=strict, needs_tables=True)
    return model if device is None else model.to(device)


def fill(
    model: nn.Module, path: str | Path, *, strict: bool = True, needs_tables: bool = False
) -> Callable[[str], str]:
    """Load a checkpoint, compressed or dense, into the model it was made from; see :func:`load`.

    Args:
        model: changed in place, and only if all of the checkpoint fits.
        path: a .safetensors or PyTorch file, or a Hugging Face directory.
        strict: see :func:`load`.
        needs_tables: whether a dense checkpoint is refused.

    Returns:
        How a name in the file becomes one in the model.
    """
    if any(tensor.is_meta for tensor in model.parameters()):
        raise UsageError("the model has parameters on the meta device", remedy="build it on a real device")
    with open_checkpoint(path) as checkpoint:
        tables = _tables(checkpoint, needed=needs_tables)
        checkpoint.check_integrity()
        weights = {name: value for file in checkpoint.weight_files for name, value in _read(file).items()}
    weights.pop(VOCABULARY, None)  # tokens, and no weight of a model
    for table in tables:
        if _shape(weights.get(table.name)) == [0]:
            del weights[table.name]  # the guard, which makes stock loaders refuse the file

    renamed = _renaming(weights, tables, model)
    weights = {renamed(name): value for name, value in weights.items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    modules: dict[str, nn.Module] = {}
    for table in tables:
        if renamed(table.name) not in parameters:
            raise UsageError(
                f"{path}: {type(model).__name__} has no parameter {table.name}", remedy=_remedy(model)
            )
        ties = [tie for tie in map(renamed, table.ties) if tie in parameters]
        kind = _held(weights, replace(table, name=renamed(table.name), ties=tuple(ties)), path)
        modules |= replacements(model, renamed(table.name), kind, ties=ties, untie=weights)

    expected = _state(model, modules)
    # Older files store buffers (BERT's position_ids) that newer classes make themselves.
    own = {name for name, _ in model.named_buffers()} - expected.keys()
    weights = _with_ties({n: value for n, value in weights.items() if n not in own}, expected)
    remedy = _remedy(model, ", or strict=False to leave differing names alone")
    _check_fit(weights, expected, path, strict=strict, remedy=remedy)
    install(model, modules)
    model.load_state_dict(weights, strict=strict)
    return renamed


def _tables(checkpoint: Checkpoint, *, needed: bool) -> tuple[TableRecord, ...]:
    """The compressed tables of a checkpoint for which modules are swapped, all of a kind that can be loaded.

    Raises:
        UsageError: there are none though one is needed, or of a method whose parts have no module here.
        InputError: the stored parts are not what their record says.
    """
    tables = checkpoint.description.tables if checkpoint.description else ()
    if needed and not tables:
        raise UsageError(
            f"{checkpoint.path}: holds no compressed table",
            remedy="load it with load_state_dict or from_pretrained, or run 'embcompress factorize' first",
        )
    for table in tables:
        decoded(checkpoint, table)  # nothing is read yet: this is the check that expanding makes
    # A native form is one of the model's own: its configuration says of the factors, and they just load.
    swapped = checkpoint.description.swapped if checkpoint.description else ()
    for table in swapped:
        if not has_module(table.method):
            raise UsageError(
                f"{checkpoint.path}: the parts of {table.name} (method {table.method}) cannot be loaded",
                remedy="run 'embcompress expand' and load the dense result",
            )
    return swapped


def _held(weights: dict[str, Any], table: TableRecord, path: str | Path) -> int | TableModules:
    """What holds a table: factors of a rank, or coded parts; these get the names that they have there.

    Args:
        weights: all that the file holds; changed.
        table: its record, by the names in the model.
        path: of the file.

    Raises:
        InputError: the stored parts contradict each other.
    """
    parts = {suffix: weights[part_name(table.name, suffix)] for suffix in table.parts}
    try:
        coded = coded_table(table.method, parts, table.shape)
        if coded is None:
            return table.rank or 0
        renamed = module_parts(parts, table.shape[1])
    except InputError as error:
        raise InputError(f"{path}: {table.name}: {error.message}", remedy=error.remedy) from None
    for name in (table.name, *table.ties):
        if part_name(name, table.parts[0]) in weights:
            for suffix in table.parts:
                weights.pop(part_name(name, suffix), None)
            weights |= {part_name(name, suffix): part for suffix, part in renamed.items()}
    return coded


def _read(file: Path) -> dict[str, Any]:
    """The state dict in one weight file, on the CPU."""
    with open_file(file) as opened:
        keys = opened.container if isinstance(opened, TorchFile) else None
    if opened.format == "onnx":
        raise UsageError(f"{file}: is an ONNX model, graph and all", remedy="run it with onnxruntime")
    if keys is None:
        return load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    for key in keys:
        state = state[key]
    return dict(state)


def _dense_names(weights: Mapping[str, Any], tables: Collection[TableRecord]) -> set[str]:
    """The names in the file with tables in the place of their factors."""
    factors = {part for t in tables for tie in (t.name, *t.ties) for part in replace(t, name=tie).part_names}
    return {*weights} - factors | {t.name for t in tables}


def _renaming(
    weights: Mapping[str, Any], tables: Collection[TableRecord], model: nn.Module
) -> Callable[[str], str]:
    """How names in the file become names in the model: as they are, or with a prefix more or less.

    A transformers model keeps its body under ``base_model_prefix``, the body alone has none; data
    parallelism, compilation and trainers put all names under one of theirs. Of these ways the first
    is taken under which every name is one of the model's; if there is none, since the file may hold
    more than the model, the first under which every table is.
    """
    dense = _dense_names(weights, tables)
    named = [table.name for table in tables]
    if not named:
        return str
    own = model.state_dict().keys() | {name for name, _ in model.named_buffers()}
    base = getattr(model, "base_model_prefix", "")
    above = named[0].split(".")[:-2]  # what is above the module that holds the table
    removed = [".".join((*above[: i + 1], "")) for i in range(len(above))]
    ways: list[Callable[[str], str]] = [
        str,  # as they are
        *([f"{base}.".__add__] if base else []),
        *(methodcaller("removeprefix", prefix) for prefix in removed),
    ]
    stored = {*weights, *dense}
    distinct = [way for way in ways if len({*map(way, stored)}) == len(stored)]
    fitting = (way for names in (dense, named) for way in distinct if own >= {*map(way, names)})
    return next(fitting, str)


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


def _remedy(model: nn.Module, otherwise: str = "") -> str:
    """What to do when the names in a file are not those of ``model``."""
    if hasattr(model, "from_pretrained"):
        # transformers renames what it loads (GPT-NeoX's embed_out becomes lm_head): names may differ in
        # the right class, and what strict=False passes over would stay random.
        otherwise = ", or run 'embcompress expand' and load the dense result with from_pretrained"
    return _RIGHT_MODEL + otherwise


def _check_fit(
    weights: Mapping[str, Any], expected: Mapping[str, Any], path: str | Path, *, strict: bool, remedy: str
) -> None:
    """Compare shapes and names before anything is changed; if not ``strict``, names only raise a warning.

    Raises:
        UsageError: they differ.
    """
    shapes = _listed("of another shape", [
        f"{name} ({_shape(value)}, the model has {_shape(expected[name])})"
        for name, value in weights.items()
        if name in expected and _shape(value) != _shape(expected[name])
    ])  # fmt: skip
    names = [
        _listed("missing from the file", [name for name in expected if name not in weights]),
        _listed("unknown to the model", [name for name in weights if name not in expected]),
    ]
    if problems := [problem for problem in (shapes, *(names if strict else ())) if problem]:
        raise UsageError(
            f"{path}: does not fit the model: {'; '.join(problems)}",
            remedy=_RIGHT_MODEL if shapes else remedy,
        )
    if any(names):
        text = f"{path}: loaded in part, the rest of the model is as it was: {'; '.join(filter(None, names))}"
        warnings.warn(printable(text), stacklevel=4)


def _listed(what: str, names: list[str]) -> str:
    """``2 unknown to the model: a, b``; empty without names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}" if names else ""
