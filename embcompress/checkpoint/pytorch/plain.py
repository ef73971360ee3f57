"""What of a pickle may stay: weights and plain data. Objects of other classes are refused or dropped.

Nothing of a file is looked up or called, whatever it names; ``checkpoint/pickles/allowed.py`` has the lists.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from embcompress.checkpoint.pickles.allowed import ALLOWED, PLAIN
from embcompress.checkpoint.pickles.nodes import (
    SCALARS,
    Call,
    Global,
    Made,
    StorageRef,
    walk,
)
from embcompress.checkpoint.pickles.reader import SAVE_AGAIN
from embcompress.checkpoint.pytorch.modules import Budget, state_of
from embcompress.checkpoint.pytorch.paths import under
from embcompress.errors import InputError

_NAMED = 8
"""Most dropped objects that a note lists by name."""
_BUDGET = 1 << 20
"""Most bytes of names of tensors in modules, where nothing says how large the file is."""


@dataclass(frozen=True)
class Plain:
    """A saved object without anything but weights and plain data.

    Attributes:
        root: the object.
        notes: what was dropped or changed, one sentence each.
    """

    root: Any
    notes: tuple[str, ...] = ()


def checked(root: object, where: str) -> Plain:
    """The saved object as it is.

    Raises:
        InputError: it holds something else than weights and plain data.
    """
    if any(map(_is_foreign, walk(root))):
        found = _Selection(where)
        found.take(root, "")
        if found.first is not None:
            node, path = found.first
            raise _refusal(node, path, where)
    return Plain(root)


def _refusal(node: Any, path: str, where: str) -> InputError:
    """Why a node may not stay."""
    name = node.class_name if isinstance(node, Made) else str(node)
    place = f" under '{path}'" if path else ""
    if state_of(node, where, Budget(_BUDGET)):
        return InputError(
            f"{where}: {'holds' if path else 'is'} a whole nn.Module{place[:200]}, of class {name[:200]}, "
            "which is code as well as weights",
            remedy=f"run factorize or report with --weights-only to take its state dict, or {SAVE_AGAIN}",
        )
    return InputError(
        f"{where}: holds {name[:200]}{place[:200]}, which is code rather than weights",
        remedy=f"run factorize or report with --weights-only to drop such objects, or {SAVE_AGAIN}",
    )


def weights_only(root: object, where: str, budget: Budget | None = None) -> Plain:
    """The saved object without what is neither weights nor plain data, which is taken out of it in place.

    A module becomes its state dict, and a dict of a class of its own a plain one. Of all else, an entry of a
    dict vanishes with its key, and an element of a list or tuple becomes None.

    Args:
        root: the saved object.
        where: name of the file, for error messages.
        budget: for the names of tensors in modules; None for one that is enough for small files.

    Raises:
        InputError: the objects are nested too deep.
    """
    if not any(_is_foreign(node) or _is_mapping(node) for node in walk(root)):
        return Plain(root)
    found = _Selection(where, budget or Budget(_BUDGET))
    kept = found.take(root, "")
    return Plain(None if kept is GONE else kept, tuple(found.notes()))


def _is_foreign(node: object) -> bool:
    """Whether a node is, by itself, neither weights nor plain data."""
    if isinstance(node, Global):
        return str(node) not in ALLOWED and str(node) not in PLAIN
    return isinstance(node, Made) and not isinstance(node.function, Global)


def _is_mapping(node: object) -> bool:
    """Whether an object of an unknown class is a dict and nothing more: of a subclass of OrderedDict."""
    if not isinstance(node, Made) or not isinstance(node.function, Global) or not _is_foreign(node.function):
        return False
    library = node.function.module.partition(".")[0]
    made_empty = node.args == () and not node.keywords and not node.appended
    attributes = node.state is None or type(node.state) is dict
    return bool(node) and made_empty and attributes and library not in _LIBRARIES


_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy"}
"""Where no class is a dict with entries of its own, other than those that are listed as plain data."""


_SETS = {"builtins.set", "builtins.frozenset"}


class _Gone:
    """The type of :data:`GONE`."""


GONE: Final = _Gone()
"""Stands for an object that may not stay."""


@dataclass
class _Listed:
    """Objects for a note: how many, and the first few of them with their places."""

    count: int = 0
    last: str = ""
    first: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, name: str) -> None:
        """Count an object, and keep the first few: a pickle can name a million."""
        self.count += 1
        self.last = name
        if len(self.first) < _NAMED:
            self.first.append((path, name))

    def __str__(self) -> str:
        named = [f"'{path}' ({name})" if path else name for path, name in self.first]
        more = self.count - len(named)
        return ", ".join(named) + (f" and {more:,} more" if more else "")


class _Selection:
    """Takes what may not stay out of a saved object, which is changed in place; what is shared stays shared.

    Args:
        where: name of the file, for error messages.
        budget: for the names of tensors in modules; None to leave modules and dicts as they are.
    """

    def __init__(self, where: str, budget: Budget | None = None) -> None:
        self.where, self.budget = where, budget
        self.dropped, self.plainer, self.modules = _Listed(), _Listed(), _Listed()
        self.first: tuple[object, str] | None = None
        self._seen: set[int] = set()
        self._changed: dict[int, object] = {}
        self._foreign: dict[int, str] = {}
        self._replaced: list[object] = []  # kept, so that no new node can get the id of an old one

    def notes(self) -> list[str]:
        """What was dropped or changed, for the user."""
        found = (
            (self.modules, "the state dict was taken from the nn.Module"),
            (self.dropped, "dropped, being neither weights nor plain data"),
            (self.plainer, "taken as plain dicts"),
        )
        return [f"{what}: {those}" for those, what in found if those.count]

    def take(self, node: Any, path: str) -> Any:
        """The node, or what takes its place: ``GONE`` if it may not stay."""
        if isinstance(node, (SCALARS, StorageRef)):
            return node
        if id(node) not in self._seen:
            self._seen.add(id(node))
            try:
                self._change(node, self._taken(node, path))
            except RecursionError:
                raise InputError(f"{self.where}: its objects are nested too deep", SAVE_AGAIN) from None
        elif self._changed.get(id(node)) is GONE:
            self.dropped.add(path, self._foreign[id(node)])
        return self._changed.get(id(node), node)

    def _change(self, node: object, new: object) -> None:
        if new is not node:
            self._changed[id(node)] = new
            self._replaced.append(node)

    def _taken(self, node: Any, path: str) -> Any:
        if isinstance(node, Made):
            return self._made(node, path)
        if isinstance(node, dict):
            return self._fill(node, node, path)
        if isinstance(node, list):
            for number, item in enumerate(node):
                node[number] = self._element(item, under(path, number))
            return node
        if isinstance(node, tuple):
            parts = tuple(self._element(item, under(path, number)) for number, item in enumerate(node))
            return node if all(map(operator.is_, parts, node)) else parts
        if isinstance(node, Call):
            if str(node.function) in _SETS and (elements := node.args[0] if node.args else ()):
                # Nor could it be an element of a set.
                for number, item in enumerate(elements):
                    elements[number] = item if self.take(item, path) is item else None
            arguments = self._arguments(node, path)
            if isinstance(arguments, _Gone) or arguments is node.args:
                return node if arguments is node.args else GONE
            return Call(node.function, arguments)
        return self._gone(node, path, str(node)) if _is_foreign(node) else node

    def _element(self, item: object, path: str) -> Any:
        """An element of a list or tuple; None in the place of one that may not stay."""
        taken = self.take(item, path)
        return None if taken is GONE else taken

    def _gone(self, node: object, path: str, name: str) -> _Gone:
        """Drop a node that is called ``name``."""
        self._foreign[id(node)] = name
        self.dropped.add(path, name)
        self.first = self.first or (node, path)
        return GONE

    def _arguments(self, node: Call | Made, path: str) -> tuple[Any, ...] | _Gone:
        """The arguments of a call; ``GONE`` if one of them may not stay."""
        arguments = tuple(self.take(part, path) for part in node.args)
        if GONE in arguments:
            self._foreign[id(node)] = self.dropped.last
            return GONE
        return node.args if all(map(operator.is_, arguments, node.args)) else arguments

    def _fill(self, new: dict[Any, Any], old: dict[Any, Any], path: str) -> dict[Any, Any]:
        """Put the entries of ``old`` that may stay into ``new``, which can be the same dict."""
        others: list[Any] = []
        for key, value in old.items():
            name, taken = self.take(key, path), self.take(value, under(path, key))
            if name is not key or taken is GONE:  # what a key becomes could not be one
                others.append(key)
            elif new is not old or taken is not value:
                new[key] = taken
        for key in others:
            new.pop(key, None)
        return new

    def _made(self, node: Made, path: str) -> Any:
        mapping = _is_mapping(node)
        foreign = not isinstance(node.function, Global) or _is_foreign(node.function)
        if foreign and self.budget is not None and (state := state_of(node, self.where, self.budget)):
            self.modules.add(path, node.class_name)
            self._change(node, state)  # before its entries, which may contain the node
            return self._fill(state, state, path)
        if mapping and self.budget is not None:
            self.plainer.add(path, node.class_name)
            plain: dict[Any, Any] = {}
            self._change(node, plain)
            return self._fill(plain, node, path)
        if foreign and not mapping:
            return self._gone(node, path, node.class_name)
        arguments = self._arguments(node, path)
        if isinstance(arguments, _Gone):
            return GONE
        node.args = arguments
        self.take(node.keywords, path)
        self._fill(node, node, path)
        for number, item in enumerate(node.appended or ()):
            assert node.appended is not None
            node.appended[number] = self._element(item, under(path, number))
        node.state = self._element(node.state, path)
        return node
