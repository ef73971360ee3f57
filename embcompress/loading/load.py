"""Load a compressed checkpoint into a PyTorch model: read → match names → build modules → check → install."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.errors import UsageError, printable
from embcompress.loading.fit import RIGHT_MODEL, Misfit
from embcompress.loading.stored_tables import Stored, places_of, read_stored
from embcompress.loading.swapping import install, replacements
from embcompress.methods.modules import in_range, module_parts

_MOST_COMPARED = 1 << 16
"""Most numbers of a weight that is compared to see whether a model's layers have been loaded."""


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
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with open_checkpoint(path) as checkpoint:
        if needs_tables:
            _check_tables(checkpoint)
        description = checkpoint.description
        quantized = description is not None and description.quantizer is not None
        stored = read_stored(checkpoint, description, others=not quantized)
        naming = _naming(stored, model)
        weights = naming.converted(stored.others, path)
        if quantized:
            weights = _stored_ties(checkpoint, [table.record for table in stored.tables], parameters, naming)
            _check_opened(checkpoint, parameters, naming, {*weights})
    modules: dict[str, nn.Module] = {}
    places = [places_of(table.record, model, parameters, naming.renamed, path) for table in stored.tables]
    for table, (main, *ties) in zip(stored.tables, places, strict=True):
        apart = {name for others in places for name in others if others[0] != main}
        new = replacements(model, main, table.contents, ties=ties, untie=weights, apart=apart)
        twice = sorted(name for name in modules.keys() & new.keys() if f"{name}.weight" not in weights)
        if twice:
            raise UsageError(
                f"{path}: the model ties {twice[0]} to what are several tables in the file",
                remedy="build the model with the ties that it was trained with",
            )
        modules |= new
        parts = in_range(module_parts(table.parts, table.record.shape[1]), parameters[main].dtype)
        weights |= {part_name(main, suffix): part for suffix, part in parts.items()}

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


def _check_opened(
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


def _stored_ties(
    checkpoint: Checkpoint,
    tables: Collection[TableRecord],
    parameters: Mapping[str, nn.Parameter],
    naming: Naming,
) -> dict[str, Any]:
    """The weights in full of whatever the model ties to a table, by their names in the model."""
    shared = {id(parameters.get(naming.renamed(table.name))) for table in tables}
    records = {table.name for table in tables}
    names = {
        new: name
        for name in checkpoint.tensors
        if name not in records and id(parameters.get(new := naming.renamed(name), naming)) in shared
    }
    state = checkpoint.torch_state([*names.values()]) if names else {}
    return {new: state[name] for new, name in names.items()}


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


class Naming(Protocol):
    """How the names in a file map to the names in a model."""

    def renamed(self, name: str) -> str:
        """The name in the model for a name in the file."""

    def merges(self, name: str) -> bool:
        """Whether the weight called ``name`` in the file is merged with others into one of the model's."""

    def converted(self, weights: Mapping[str, Any], where: object) -> dict[str, Any]:
        """The weights of a file, by their names in the model."""


@dataclass(frozen=True)
class _Renaming:
    """One function renames every name; no weights are merged."""

    renamed: Callable[[str], str]

    def merges(self, name: str) -> bool:  # noqa: ARG002
        return False

    def converted(self, weights: Mapping[str, Any], where: object) -> dict[str, Any]:  # noqa: ARG002
        return {self.renamed(name): value for name, value in weights.items()}


def _naming(stored: Stored, model: nn.Module) -> Naming:
    """Find how the names in the file map to those in the model.

    Names may be the same, have a prefix on one side only, or be renamed by transformers. A transformers
    model keeps its body under ``base_model_prefix``, and the body alone has no such prefix; data
    parallelism, compilation and trainers add a prefix of their own to all names. The first mapping that
    gives every name in the file one in the model is taken. The file may hold more than the model, so
    without such a mapping it is the first that finds every table.
    """
    tables = [table.record.name for table in stored.tables]
    if not tables:
        return _Renaming(str)
    above = tables[0].split(".")[:-2]  # the modules around the one that holds the table
    prefixes = [".".join((*above[: i + 1], "")) for i in range(len(above))]
    base = getattr(model, "base_model_prefix", "")
    plain: list[Naming] = [
        _Renaming(str),
        *([_Renaming(f"{base}.".__add__)] if base else []),
        *(_Renaming(methodcaller("removeprefix", prefix)) for prefix in prefixes),
    ]
    everything = {*stored.others, *tables}
    in_model = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    in_model |= {name for name, _ in model.named_buffers()}
    if stored.others:  # the state dict of layers that are quantized may take work, and change them
        in_model |= model.state_dict().keys()

    def fits(naming: Naming, names: Collection[str]) -> bool:
        return in_model >= {*map(naming.renamed, names)} and _keeps_distinct(naming, everything)

    if found := next((naming for naming in plain if fits(naming, everything)), None):
        return found
    theirs = [*_transformers_namings(model, ["", *prefixes])]
    tried = [(naming, everything) for naming in theirs]
    tried += [(naming, {*tables}) for naming in (*theirs, *plain)]
    return next((naming for naming, names in tried if fits(naming, names)), plain[0])


def _keeps_distinct(naming: Naming, names: Collection[str]) -> bool:
    """Whether names stay distinct, except those whose weights are merged."""
    kept = [naming.renamed(name) for name in names if not naming.merges(name)]
    return len({*kept}) == len(kept)


def _transformers_namings(model: nn.Module, prefixes: Collection[str]) -> Iterator[Naming]:
    """What ``from_pretrained`` of a transformers model does to names, after each prefix is removed."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return
    with contextlib.suppress(ImportError):  # other versions rename nothing, or do it elsewhere
        from embcompress.loading.conversion import Conversion

        for prefix in prefixes:
            yield Conversion(model, prefix)


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
