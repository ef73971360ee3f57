"""Make saved optimizers fit a model in which a table has become parts, or parts a table again.

An optimizer knows its parameters by number only, so after factorization every later parameter would get the
moments of another. The table's number is therefore found by its shape, or by its name where names are saved.
What the optimizer was like before is noted in it under :data:`METADATA_KEY`, which torch ignores.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pytorch.pickle_nodes import DROPPED, walk
from embcompress.checkpoint.pytorch.state import is_optimizer
from embcompress.checkpoint.pytorch.tensors import is_tensor, parse_view, unwrap

Shape = tuple[int, ...]


class Kind(enum.Enum):
    """What an edit does."""

    COMPRESSED = "tables become parts"
    EXPANDED = "parts become tables"
    TRAINED = "only values change"


@dataclass(frozen=True)
class Change:
    """A removed parameter.

    Attributes:
        names: its names in the state dict.
        shape: its shape.
        more: how many more parameters take its place; -1 if none does.
    """

    names: frozenset[str]
    shape: Shape
    more: int


@dataclass(frozen=True)
class Refit:
    """The changes to the optimizers in the saved object.

    Attributes:
        replace: ``id`` of a node -> its replacement.
        warnings: one sentence per optimizer that lost something.
    """

    replace: Mapping[int, object]
    warnings: tuple[str, ...]


def refit_optimizers(root: object, changes: Sequence[Change], where: str, kind: Kind) -> Refit:
    """Fit every optimizer under ``root`` to the model after ``changes``.

    If it is certain which of its parameters is a changed one, only that one's moments are dropped; if it is
    certain that none is, the optimizer stays as it is. Otherwise all moments are dropped. With several
    parameter groups even the number of parameters in each is then unknown, and the optimizer is dropped.

    Args:
        root: the saved object.
        changes: the removed parameters.
        where: name of the file, for error messages.
        kind: what the edit does.
    """
    replace: dict[int, object] = {}
    warnings: list[str] = []
    shapes = {*_shapes(root, where)} if changes else set()
    for node in _optimizers(root) if changes else ():
        new, what = _refitted(node, changes, shapes, where, kind)
        if new is not node:
            replace[id(node)] = new
        if new is DROPPED or (isinstance(new, dict) and _moments(new) < _moments(node)):
            warnings.append(what)
    return Refit(replace, tuple(warnings))


def _refitted(
    node: dict[Any, Any], changes: Sequence[Change], shapes: Collection[Shape], where: str, kind: Kind
) -> tuple[object, str]:
    """The optimizer after ``changes``, and what to say if it has lost something."""
    some = "the optimizer's moments of the changed table were dropped; its other moments are kept"
    old = _noted(node) if kind is Kind.EXPANDED else None
    if old is not None:
        return _restored(node, old), some
    found = _matching(node, changes, shapes, where)
    if found == {}:
        return node, ""  # it is the optimizer of something else
    if found is not None and kind is not Kind.EXPANDED:
        return _with_note(_changed(node, found), node, [*found], kind), some
    if len(node["param_groups"]) == 1 and _positional(node["param_groups"][0]):
        new = _emptied(node, sum(change.more for change in changes))
        what = "the optimizer's moments were dropped: its entry for the changed table is not certain"
        return _with_note(new, node, [], kind), what
    return DROPPED, "the optimizer was dropped: its parameters cannot be matched with the new ones"


def _optimizers(root: object) -> Iterator[dict[Any, Any]]:
    for node in walk(root, inside=_contained):
        if isinstance(node, dict) and is_optimizer(node):
            yield node


def _contained(node: object) -> Collection[object]:
    """The contents of a plain container; optimizers are never inside tensors or a dict's attributes."""
    if isinstance(node, dict):
        return () if is_optimizer(node) else node.values()
    return node if isinstance(node, list | tuple) else ()


def _shapes(root: object, where: str) -> Iterator[Shape]:
    """Shapes of all dense tensors outside of optimizers."""
    for node in walk(root, inside=_contained):
        view = parse_view(unwrap(node), where)
        if view is not None:
            yield view.shape


def _moments(node: Mapping[Any, Any]) -> int:
    """The number of entries that hold a tensor."""
    entries = [entry for entry in node["state"].values() if isinstance(entry, dict)]
    return sum(any(is_tensor(value) for value in entry.values()) for entry in entries)


# -- finding the changed parameters --------------------------------------------------------------


def _matching(
    node: Mapping[Any, Any], changes: Sequence[Change], shapes: Collection[Shape], where: str
) -> dict[int, int] | None:
    """Numbers of the changed parameters -> by how many they grow; None if that is not certain.

    Args:
        node: the optimizer.
        changes: the removed parameters, of which the optimizer may hold some or none.
        shapes: the shapes of all parameters; moments of any other shape say nothing about theirs.
        where: name of the file, for error messages.
    """
    groups = node["param_groups"]
    if not all(map(_positional, groups)):
        return None
    listed = [i for group in groups for i in group["params"]]
    if len({*listed}) != len(listed):
        return None
    names = [name for group in groups for name in _names(group)]
    if len(names) == len(listed):
        by_name = {i: name for i, name in zip(listed, names, strict=True)}
        found = {i: change.more for i in listed for change in changes if by_name[i] in change.names}
        if found:
            return found
    known = {i: _shape_of(node["state"].get(i), where) for i in listed}
    complete = all(shape in shapes or shape == () for shape in known.values())
    matched: dict[int, int] = {}
    for shape in {change.shape for change in changes}:
        ids = [i for i in listed if known[i] == shape]
        grow = [change.more for change in changes if change.shape == shape]
        if len(ids) == len(grow) and len({*grow}) == 1:
            matched |= dict.fromkeys(ids, grow[0])
        elif ids or not complete:
            return None
    return matched


def _shape_of(entry: object, where: str) -> Shape | None:
    """The shape of all tensors of an entry, apart from step counters; None if they have none or several."""
    if not isinstance(entry, dict):
        return None
    views = [view for value in entry.values() if (view := parse_view(unwrap(value), where))]
    shapes = {view.shape for view in views if view.numel > 1}
    if not views or len(shapes) > 1:
        return None
    return next(iter(shapes), ())


def _positional(group: object) -> bool:
    """Whether a parameter group lists its parameters by number, as torch.optim does."""
    return isinstance(group, dict) and _is_numbers(group.get("params"))


def _is_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _names(group: Mapping[Any, Any]) -> Sequence[object]:
    """The names of the parameters of a group, empty if they are not saved."""
    names = group.get("param_names")
    return names if isinstance(names, list) and len(names) == len(group["params"]) else ()


# -- the new optimizer ---------------------------------------------------------------------------


def _changed(node: Mapping[Any, Any], found: Mapping[int, int]) -> dict[Any, Any]:
    """The optimizer with other parameters in the place of each of ``found``, without their entries."""
    unused = max((i for group in node["param_groups"] for i in group["params"]), default=-1) + 1
    places: dict[int, list[int]] = {}
    for i, more in found.items():
        places[i] = [i, *range(unused, unused + more)] if more >= 0 else []
        unused += max(0, more)
    groups = [
        _with_params(group, [j for i in group["params"] for j in places.get(i, (i,))])
        for group in node["param_groups"]
    ]
    state = {i: entry for i, entry in node["state"].items() if i not in found}
    return {**node, "state": state, "param_groups": groups}


def _emptied(node: Mapping[Any, Any], more: int) -> dict[Any, Any]:
    """The optimizer without moments, and with ``more`` further parameters in its only group."""
    if not more:
        return {**node, "state": {}}
    group = node["param_groups"][0]
    params = list(range(max(0, len(group["params"]) + more)))
    return {**node, "state": {}, "param_groups": [_with_params(group, params)]}


def _with_params(group: Mapping[Any, Any], params: list[int]) -> dict[Any, Any]:
    """The group with other parameters; outdated names are left out, so that torch keeps its own."""
    kept = {k: v for k, v in group.items() if k != "param_names" or params == group["params"]}
    return {**kept, "params": params}


def _with_note(new: dict[Any, Any], old: Mapping[Any, Any], tables: list[int], kind: Kind) -> dict[Any, Any]:
    """The optimizer with a note of what ``old`` was like, or without one where the model is dense again."""
    if kind is Kind.TRAINED:
        return new
    kept = {key: value for key, value in new.items() if key != METADATA_KEY}
    params = [group["params"] for group in old["param_groups"]]
    return {**kept, METADATA_KEY: {"params": params, "tables": tables}} if kind is Kind.COMPRESSED else kept


@dataclass(frozen=True)
class _Before:
    """What an optimizer was like before factorization.

    Attributes:
        params: the parameters of each group.
        tables: those that were tables.
    """

    params: Sequence[list[int]]
    tables: Sequence[int]


def _noted(node: Mapping[Any, Any]) -> _Before | None:
    """What is noted in an optimizer, None if that is nothing or does not fit it."""
    note = node.get(METADATA_KEY)
    if not isinstance(note, dict) or not all(map(_positional, node["param_groups"])):
        return None
    params, tables = note.get("params"), note.get("tables")
    if not isinstance(params, list) or not all(map(_is_numbers, params)) or not _is_numbers(tables):
        return None
    groups = node["param_groups"]
    fits = len(params) == len(groups) and all(
        {*before} - {*tables} <= {*group["params"]} for before, group in zip(params, groups, strict=True)
    )
    return _Before(params, tables) if fits else None


def _restored(node: Mapping[Any, Any], old: _Before) -> dict[Any, Any]:
    """The optimizer as it was before factorization, without moments of the tables."""
    groups = [
        _with_params(group, params) for group, params in zip(node["param_groups"], old.params, strict=True)
    ]
    kept = {i for params in old.params for i in params if i not in old.tables}
    state = {i: entry for i, entry in node["state"].items() if i in kept}
    return _with_note({**node, "state": state, "param_groups": groups}, node, [], Kind.EXPANDED)
