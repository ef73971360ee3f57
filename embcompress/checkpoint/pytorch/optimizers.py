"""Make saved optimizers fit a model in which a table has become two factors.

An optimizer knows its parameters by position only, so after factorization every later parameter would
get the moments of another. The table's entry is therefore found by its shape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embcompress.checkpoint.pytorch.pickle_nodes import DROPPED, walk
from embcompress.checkpoint.pytorch.state import is_optimizer
from embcompress.checkpoint.pytorch.tensors import parse_view, unwrap


@dataclass(frozen=True)
class Split:
    """A removed parameter.

    Attributes:
        shape: its shape.
        parts: number of parameters that replace it.
    """

    shape: tuple[int, ...]
    parts: int


@dataclass(frozen=True)
class Refit:
    """The changes to the optimizers in the saved object.

    Attributes:
        replace: ``id`` of a node -> its replacement.
        warnings: one sentence per optimizer.
    """

    replace: Mapping[int, object]
    warnings: tuple[str, ...]


def refit_optimizers(root: object, splits: Sequence[Split], where: str) -> Refit:
    """Fit every optimizer under ``root`` to the model after ``splits``.

    If each split table has exactly one entry of its shape, that entry is dropped, its parameter is
    doubled, and all other moments are kept. Otherwise all moments are dropped. With several parameter
    groups even the number of parameters in each is unknown, and the whole optimizer is dropped.
    """
    replace: dict[int, object] = {}
    warnings: list[str] = []
    for node in _optimizers(root) if splits else ():
        entries = _matching(node["state"], splits, where)
        if entries is not None and _has_once(node["param_groups"], entries):
            replace[id(node)] = _doubled(node, entries)
            warnings.append(
                "the optimizer's moments of the factorized table were dropped; its other moments are kept"
            )
        elif len(node["param_groups"]) == 1 and _positional(node["param_groups"][0]):
            replace[id(node)] = _emptied(node, sum(split.parts - 1 for split in splits))
            warnings.append(
                "the optimizer's moments were dropped: its entry for the factorized table is not certain"
            )
        else:
            replace[id(node)] = DROPPED
            warnings.append(
                "the optimizer's state was dropped: its parameters cannot be matched with the new ones"
            )
    return Refit(replace, tuple(warnings))


def _optimizers(root: object) -> Iterator[dict[Any, Any]]:
    for node in walk(root, inside=_contained):
        if isinstance(node, dict) and is_optimizer(node):
            yield node


def _contained(node: object) -> Collection[object]:
    """The contents of a plain container; optimizers are never inside tensors or a dict's attributes."""
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _matching(state: Mapping[Any, Any], splits: Sequence[Split], where: str) -> list[Any] | None:
    """The ids of the split tables, None if their shapes do not identify them."""
    if any(split.parts != 2 for split in splits):
        return None
    matched: list[Any] = []
    for shape in {split.shape for split in splits}:
        ids = [i for i, entry in state.items() if type(i) is int and _is_of(entry, shape, where)]
        if len(ids) != sum(split.shape == shape for split in splits):
            return None
        matched += ids
    return matched


def _is_of(entry: object, shape: tuple[int, ...], where: str) -> bool:
    """Whether all tensors of an entry have ``shape``, apart from step counters."""
    if not isinstance(entry, dict):
        return False
    views = [view for value in entry.values() if (view := parse_view(unwrap(value), where))]
    shapes = {view.shape for view in views if view.numel > 1}
    return shapes == {shape}


def _positional(group: object) -> bool:
    """Whether a parameter group lists its parameters by number, as torch.optim does."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    return all(type(i) is int for i in group["params"])


def _has_once(groups: Sequence[Any], ids: Sequence[int]) -> bool:
    if not all(_positional(group) for group in groups):
        return False
    listed = [i for group in groups for i in group["params"]]
    return len(set(listed)) == len(listed) and set(ids) <= set(listed)


def _unused(groups: Sequence[Any]) -> int:
    return max((i for group in groups for i in group["params"]), default=-1) + 1


def _doubled(node: Mapping[Any, Any], ids: Sequence[int]) -> dict[Any, Any]:
    """The optimizer with one more parameter after each of ``ids``, and without their entries."""
    first = _unused(node["param_groups"])
    partner = {i: first + n for n, i in enumerate(ids)}
    groups = [
        _with_params(group, [j for i in group["params"] for j in ((i, partner[i]) if i in partner else (i,))])
        for group in node["param_groups"]
    ]
    state = {i: entry for i, entry in node["state"].items() if i not in partner}
    return {**node, "state": state, "param_groups": groups}


def _emptied(node: Mapping[Any, Any], more: int) -> dict[Any, Any]:
    """The optimizer without moments, and with ``more`` further parameters in its only group."""
    group = node["param_groups"][0]
    params = list(range(len(group["params"]) + more))
    return {**node, "state": {}, "param_groups": [_with_params(group, params)]}


def _with_params(group: Mapping[Any, Any], params: list[int]) -> dict[Any, Any]:
    """The group with other parameters; outdated names are left out, so that torch keeps its own."""
    kept = {k: v for k, v in group.items() if k != "param_names" or len(params) == len(group["params"])}
    return {**kept, "params": params}
