"""Replace a dense table and everything tied to it in a model; needs only torch."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from embcompress.errors import UsageError
from embcompress.methods.modules import TableModules
from embcompress.nn import CodedEmbedding, CodedLookup, FactorizedEmbedding, FactorizedHead, Lookup
from embcompress.nn.coded import LookupOptions
from embcompress.nn.outline import outlined


def swap(
    model: nn.Module,
    table_name: str,
    rank: int,
    *,
    dtype: torch.dtype | None = None,
    ties: Collection[str] = (),
) -> FactorizedEmbedding:
    """Replace a table and everything tied to it in ``model``, in place.

    The factors are initialized as ``nn.Embedding`` and ``nn.Linear`` are: train them, or load or copy
    values into them.

    Args:
        model: changed only if there is no error.
        table_name: name of the table's parameter, ``X.weight``.
        rank: components of the factors, 1 to min(V, d).
        dtype: element type of the factors; None for the table's own.
        ties: further parameters to replace as the same table although the model does not share them;
            shared parameters are found without being named.

    Returns:
        The embedding that holds the factors, now part of ``model``.

    Raises:
        UsageError: there is no such table, or a module that holds it computes something that two
            factors cannot.
    """
    modules = replacements(model, table_name, rank, dtype=dtype, ties=ties)
    install(model, modules)
    return next(m for m in modules.values() if isinstance(m, FactorizedEmbedding))


def install(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module into ``model`` under its name."""
    for name, module in modules.items():
        model.set_submodule(name, module, strict=True)


def replacements(
    model: nn.Module,
    table_name: str,
    rank: int | TableModules,
    *,
    dtype: torch.dtype | None = None,
    ties: Collection[str] = (),
    untie: Collection[str] = (),
    apart: Collection[str] = (),
) -> dict[str, nn.Module]:
    """Make the modules that :func:`swap` would put in, by the old ones' names; ``model`` is not changed.

    The module of ``table_name`` comes first. A module that has several names in the model gets one
    replacement. Biases are the old parameters themselves.

    Args:
        model: see :func:`swap`.
        table_name: see :func:`swap`.
        rank: the rank of fresh factors; or a coded table, which the new modules hold, with its floats in
            the dtype of the dense table.
        dtype: see :func:`swap`.
        ties: see :func:`swap`.
        untie: names of tied parameters whose modules become copies with a dense weight of their own.
        apart: names of parameters that are other tables, and left alone, although the model shares them.

    Raises:
        UsageError: see :func:`swap`.
    """
    owners = _owners(model, table_name, ties, apart)
    named = owners[table_name.removesuffix(".weight")]
    lone = {id(m) for name, m in owners.items() if f"{name}.weight" in untie and m is not named}
    factored = {name: m for name, m in owners.items() if id(m) not in lone}
    main = next((m for m in factored.values() if isinstance(m, Lookup)), None)
    if main is None:
        raise UsageError(
            f"{table_name}: belongs to a {type(named).__name__}, not an nn.Embedding or nn.EmbeddingBag",
            remedy="only tables of embeddings can be swapped: use the dense model",
        )
    for name, module in factored.items():
        _check(name, module, main.weight.shape)

    if isinstance(rank, TableModules):
        embedding = _coded(main, rank)
    else:
        embedding = _factorized(main, rank, dtype or main.weight.dtype)
    new: dict[int, nn.Module] = {id(main): embedding}
    for module in owners.values():
        if id(module) not in new:
            new[id(module)] = _untied(module) if id(module) in lone else _tied(module, embedding)
    return {name: new[id(module)] for name, module in owners.items()}


def _owners(
    model: nn.Module, table_name: str, ties: Collection[str], apart: Collection[str]
) -> dict[str, nn.Module]:
    """Every module that holds the table, under each of its names; that of ``table_name`` first.

    Raises:
        UsageError: a name is no parameter, or the table is not the ``weight`` of a submodule.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in (table_name, *ties):
        if name not in parameters:
            raise UsageError(
                f"{type(model).__name__} has no parameter {name}",
                remedy="use the model class and the sizes that the checkpoint was made from",
            )
    shared = {id(parameters[name]) for name in (table_name, *ties)}
    tied = [name for name, p in parameters.items() if id(p) in shared and name not in apart]
    names = dict.fromkeys((table_name, *tied))
    owners: dict[str, nn.Module] = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        if not owner or leaf != "weight":
            raise UsageError(
                f"{name}: the table is used here outside of an embedding or linear layer",
                remedy="hold it in an nn.Embedding or nn.Linear that is a submodule of the model",
            )
        owners[owner] = model.get_submodule(owner)
    return owners


def _check(name: str, module: nn.Module, shape: torch.Size) -> None:
    """Refuse a module that does more with its weight than factors can do.

    Raises:
        UsageError: the module is of another kind or shape, or its forward does more than look up or multiply.
    """
    kind = next((k for k in (nn.Embedding, nn.EmbeddingBag, nn.Linear) if isinstance(module, k)), None)
    weight = cast(Tensor, module.weight)
    if kind is None:
        problem = f"is a {type(module).__name__}, not an nn.Embedding, nn.EmbeddingBag or nn.Linear"
    elif weight.shape != shape:
        problem = f"is {list(weight.shape)}, the table it is tied to is {list(shape)}"
    # An override may scale, normalize or patch in other rows: dropping that would be silently wrong.
    elif getattr(module.forward, "__func__", None) is not kind.forward and not _is_scaled(module):
        problem = f"is a {type(module).__name__} with a forward of its own"
    elif getattr(module, "max_norm", None) is not None:
        problem = f"has max_norm={module.max_norm}, which rescales dense rows"
    elif isinstance(module, nn.EmbeddingBag) and module.mode not in {"sum", "mean"}:
        problem = f"is an nn.EmbeddingBag in mode {module.mode}, which is not linear"
    else:
        return
    raise UsageError(f"{name}: {problem}", remedy="use the dense model: run 'embcompress expand'")


def _is_scaled(module: nn.Module) -> bool:
    """Whether this is a transformers embedding whose forward only adds ``* self.embed_scale``.

    All classes of that name do just this (in Gemma, BART, M2M-100 and others, as of transformers 5.23)
    except T5Gemma2's, which has a second parameter for the rows it patches in.
    """
    kind = type(module)
    return (
        kind.__module__.startswith("transformers.models.")
        and kind.__name__.endswith("ScaledWordEmbedding")
        and [name for name, _ in module.named_parameters()] == ["weight"]
    )


def _scale(module: Lookup) -> Tensor | float | None:
    return cast("Tensor | float", module.embed_scale) if _is_scaled(module) else None


def _factorized(module: Lookup, rank: int, dtype: torch.dtype) -> FactorizedEmbedding:
    """Make fresh factors for the table of ``module``, on its device and in its training mode.

    Raises:
        UsageError: the rank is below 1 or above min(V, d).
    """
    table = module.weight
    rows, columns = table.shape
    if not 1 <= rank <= min(rows, columns):
        raise UsageError(
            f"rank {rank} for a table of {rows}×{columns}", remedy=f"choose from 1 to {min(rows, columns)}"
        )
    left = nn.Parameter(torch.empty(rows, rank, device=table.device, dtype=dtype))
    lookup = _lookup(module, left)
    lookup.reset_parameters()
    right = nn.Linear(rank, columns, bias=False, device=table.device, dtype=dtype)
    embedding = FactorizedEmbedding(lookup, right, _scale(module))
    return embedding.requires_grad_(table.requires_grad).train(module.training)


def _coded(module: Lookup, table: TableModules) -> FactorizedEmbedding:
    """Make an embedding of a coded table to replace ``module``, on its device and in its training mode."""
    held = table.to(module.weight)
    embedding = CodedEmbedding(held.lookup, held.projection, _scale(module), LookupOptions.of(module))
    return embedding.requires_grad_(module.weight.requires_grad).train(module.training)


def _tied(module: nn.Module, embedding: FactorizedEmbedding) -> nn.Module:
    """Make the replacement of a ``module`` that is tied to the table that ``embedding`` holds as factors."""
    tied: nn.Module
    if isinstance(module, Lookup) and isinstance(embedding.lookup, CodedLookup):
        tied = CodedEmbedding(
            embedding.lookup, embedding.projection, _scale(module), LookupOptions.of(module)
        )
    elif isinstance(module, Lookup):
        lookup = _lookup(module, cast(nn.Parameter, embedding.left))
        tied = FactorizedEmbedding(lookup, embedding.projection, _scale(module))
    else:
        tied = FactorizedHead(embedding, cast("nn.Parameter | None", module.bias))
    return tied.train(module.training)


def _lookup(module: Lookup, left: nn.Parameter) -> Lookup:
    """Make a lookup in ``left`` (V×r) with the options of ``module``, whose rows are d wide."""
    rows, rank = left.shape
    options: dict[str, Any] = {
        "padding_idx": module.padding_idx,
        "scale_grad_by_freq": module.scale_grad_by_freq,
        "sparse": module.sparse,
    }
    lookup: Lookup
    with outlined():  # the weight that the constructor makes is discarded
        if isinstance(module, nn.EmbeddingBag):
            options |= {"mode": module.mode, "include_last_offset": module.include_last_offset}
            lookup = nn.EmbeddingBag(rows, rank, **options)
        else:
            lookup = nn.Embedding(rows, rank, **options)
    lookup.weight = left  # the parameter itself; the constructor would wrap it in a new one
    return lookup


def _untied(module: nn.Module) -> nn.Module:
    """Copy a module with its weight; a bias stays the same parameter, as it may be tied as well."""
    return copy.deepcopy(module, {id(p): p for name, p in module.named_parameters() if name != "weight"})
