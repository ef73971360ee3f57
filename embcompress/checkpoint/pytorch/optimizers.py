"""Make saved optimizers fit a model in which a table has become parts, or parts a table again.

An optimizer knows its parameters by number only, so after factorization every later parameter would get the
moments of another. The table's number is therefore found by its shape, or by its name where names are saved.
What the optimizer was like before is noted in it under :data:`METADATA_KEY`, which torch ignores.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from embcompress.checkpoint.base import NewParameters
from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pickles.nodes import DROPPED, Call, walk
from embcompress.checkpoint.pytorch.state import is_optimizer, outside_optimizers
from embcompress.checkpoint.pytorch.tensors import View, is_tensor, parse_view, unwrap

Shape = tuple[int, ...]
Full = Callable[[Shape, float, View], Call]
"""``full(shape, value, like)`` makes a new tensor of one value, of the type and on the device of another."""


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
        new: what takes its place, and perhaps that of further ones.
    """

    names: frozenset[str]
    shape: Shape
    new: NewParameters

    @property
    def more(self) -> int:
        """By how many the number of parameters grows."""
        return len(self.new.shapes) - self.new.before


@dataclass(frozen=True)
class Refit:
    """The changes to the optimizers in the saved object.

    Attributes:
        replace: ``id`` of a node -> its replacement.
        warnings: one sentence per optimizer that lost something.
    """

    replace: Mapping[int, object]
    warnings: tuple[str, ...]


def refit_optimizers(root: object, changes: Sequence[Change], where: str, kind: Kind, full: Full) -> Refit:
    """Fit every optimizer under ``root`` to the model after ``changes``.

    If it is certain which of its parameters is a changed one, only that one's moments are dropped; if it is
    certain that none is, the optimizer stays as it is. Otherwise all moments are dropped. With several
    parameter groups even the number of parameters in each is then unknown, and the optimizer is dropped.

    Args:
        root: the saved object.
        changes: the removed parameters.
        where: name of the file, for error messages.
        kind: what the edit does.
        full: makes the state of new parameters for optimizers that cannot do without.
    """
    new_nodes: dict[int, object] = {}
    warnings: list[str] = []
    shapes = {*_shapes(root, where)} if changes else set()
    for node in _optimizers(root) if changes else ():
        new, what = _refitted(node, changes, shapes, where, kind, full)
        if new is not node:
            new_nodes[id(node)] = new
        if new is DROPPED or (isinstance(new, dict) and _has_lost(node["state"], new["state"])):
            warnings.append(what)
    return Refit(new_nodes, tuple(warnings))


def _refitted(
    node: dict[Any, Any],
    changes: Sequence[Change],
    shapes: Collection[Shape],
    where: str,
    kind: Kind,
    full: Full,
) -> tuple[object, str]:
    """The optimizer after ``changes``, and what to say if it has lost something."""
    some = "the optimizer's moments of the changed table were dropped; its other moments are kept"
    old = _noted(node, changes) if kind is Kind.EXPANDED else None
    if old is not None:
        return _with_state(_restored(node, old), node, old.tables, where, full), some
    found = _matching(node, changes, shapes, where)
    if found == {}:
        return node, ""  # it is the optimizer of something else
    if found is not None and kind is not Kind.EXPANDED:
        new, places = _changed(node, found)
        new = _with_note(new, node, {i: change.shape for i, change in found.items()}, kind)
        return _with_state(new, node, places, where, full), some
    groups = node["param_groups"]
    if len(groups) == 1 and _positional(groups[0]) and not _needs_state(groups[0]):
        new = _emptied(node, sum(change.more for change in changes))
        what = "the optimizer's moments were dropped: its entry for the changed table is not certain"
        return _with_note(new, node, {}, kind), what
    return DROPPED, "the optimizer was dropped: its parameters cannot be matched with the new ones"


def _optimizers(root: object) -> Iterator[dict[Any, Any]]:
    for node in walk(root, inside=outside_optimizers):
        if isinstance(node, dict) and is_optimizer(node):
            yield node


def _shapes(root: object, where: str) -> Iterator[Shape]:
    """Shapes of all dense tensors outside of optimizers."""
    for node in walk(root, inside=outside_optimizers):
        view = parse_view(unwrap(node), where)
        if view is not None:
            yield view.shape


def _has_lost(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    """Whether an entry that holds a tensor is missing, or was replaced."""
    return any(
        isinstance(entry, dict) and any(map(is_tensor, entry.values())) and new.get(i) is not entry
        for i, entry in old.items()
    )


# -- finding the changed parameters --------------------------------------------------------------


def _matching(
    node: Mapping[Any, Any], changes: Sequence[Change], shapes: Collection[Shape], where: str
) -> dict[int, Change] | None:
    """Numbers of the changed parameters -> their changes; None if that is not certain.

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
        found = {i: change for i in listed for change in changes if by_name[i] in change.names}
        if found:
            return found
    known = {i: _shape_of(node["state"].get(i), where) for i in listed}
    complete = all(shape in shapes or shape == () for shape in known.values())
    matched: dict[int, Change] = {}
    for shape in {change.shape for change in changes}:
        ids = [i for i in listed if known[i] == shape]
        alike = [change for change in changes if change.shape == shape]
        if len(ids) == len(alike) and len({change.new for change in alike}) == 1:
            matched |= dict.fromkeys(ids, alike[0])
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


def _changed(node: Mapping[Any, Any], found: Mapping[int, Change]) -> tuple[dict[Any, Any], dict[int, Shape]]:
    """The optimizer with other parameters in the place of each of ``found``, and the shapes of these.

    Neither has an entry.
    """
    unused = max((i for group in node["param_groups"] for i in group["params"]), default=-1) + 1
    places: dict[int, dict[int, Shape]] = {}
    for i, change in found.items():
        ids = [i, *range(unused, unused + len(change.new.shapes))]
        places[i] = dict(zip(ids, change.new.shapes, strict=False))
        unused += len(change.new.shapes)
    groups = [
        _with_params(group, [j for i in group["params"] for j in places.get(i, (i,))])
        for group in node["param_groups"]
    ]
    state = {i: entry for i, entry in node["state"].items() if i not in found}
    new = {i: shape for place in places.values() for i, shape in place.items()}
    return {**node, "state": state, "param_groups": groups}, new


def _needs_state(group: Mapping[Any, Any]) -> bool:
    """Whether this is a group of Adagrad, which fails on parameters that have no entry."""
    return isinstance(group.get("initial_accumulator_value"), int | float)


def _with_state(
    new: dict[Any, Any], old: Mapping[Any, Any], added: Mapping[int, Shape], where: str, full: Full
) -> dict[Any, Any]:
    """The optimizer with entries as Adagrad makes them for the parameters ``added``, where they need one.

    Args:
        new: the optimizer, without them.
        old: the optimizer that it is made from.
        added: number -> shape of each such parameter.
        where: name of the file, for error messages.
        full: makes a tensor of one value.
    """
    sums = (entry.get("sum") for entry in old["state"].values() if isinstance(entry, dict))
    like = next((view for value in sums if (view := parse_view(unwrap(value), where))), None)
    if like is None:
        return new
    state = {
        i: {
            "step": full((), 0.0, replace(like, torch_dtype="float32", itemsize=4)),
            "sum": full(added[i], float(group["initial_accumulator_value"]), like),
        }
        for group in new["param_groups"]
        if _needs_state(group)
        for i in group["params"]
        if i in added
    }
    return {**new, "state": {**new["state"], **state}}


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


def _with_note(
    new: dict[Any, Any], old: Mapping[Any, Any], tables: Mapping[int, Shape], kind: Kind
) -> dict[Any, Any]:
    """The optimizer with a note of what ``old`` was like, or without one where the model is dense again."""
    if kind is Kind.TRAINED:
        return new
    kept = {key: value for key, value in new.items() if key != METADATA_KEY}
    params = [group["params"] for group in old["param_groups"]]
    note = {"params": params, "tables": {i: [*shape] for i, shape in tables.items()}}
    return {**kept, METADATA_KEY: note} if kind is Kind.COMPRESSED else kept


@dataclass(frozen=True)
class _Before:
    """What an optimizer was like before factorization.

    Attributes:
        params: the parameters of each group.
        tables: the shapes of those that were tables.
    """

    params: Sequence[list[int]]
    tables: Mapping[int, Shape]


def _noted(node: Mapping[Any, Any], changes: Sequence[Change]) -> _Before | None:
    """What is noted in an optimizer, None if that is nothing, or does not fit it or ``changes``."""
    note = node.get(METADATA_KEY)
    if not isinstance(note, dict) or not all(map(_positional, node["param_groups"])):
        return None
    params, tables = note.get("params"), note.get("tables")
    if not isinstance(params, list) or not all(map(_is_numbers, params)) or not isinstance(tables, dict):
        return None
    dense = [[*shape] for change in changes for shape in change.new.shapes]
    if not all(type(i) is int and shape in dense for i, shape in tables.items()):
        return None
    groups = node["param_groups"]
    fits = len(params) == len(groups) and all(
        {*before} - {*tables} <= {*group["params"]} for before, group in zip(params, groups, strict=True)
    )
    return _Before(params, {i: tuple(shape) for i, shape in tables.items()}) if fits else None


def _restored(node: Mapping[Any, Any], old: _Before) -> dict[Any, Any]:
    """The optimizer as it was before factorization, without moments of the tables."""
    groups = [
        _with_params(group, params) for group, params in zip(node["param_groups"], old.params, strict=True)
    ]
    kept = {i for params in old.params for i in params if i not in old.tables}
    state = {i: entry for i, entry in node["state"].items() if i in kept}
    return _with_note({**node, "state": state, "param_groups": groups}, node, {}, Kind.EXPANDED)
