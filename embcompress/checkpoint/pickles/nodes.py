"""Pickled objects as inert data: the contents of a torch pickle, with nothing resolved or called.

Scalars, bytes, lists, tuples and dicts are kept as such. Everything that a real unpickler would
construct becomes a node that only describes it. Nodes are compared by identity, because two tensors
that share one node must still share it after a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from embcompress.errors import InputError

DEPTH_LIMIT = 200
"""Deepest nesting accepted; real checkpoints stay under 20, and the writer is recursive."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name, e.g. ``torch.FloatStorage``; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


ORDERED_DICT: Final = Global("collections", "OrderedDict")
NO_ENTRIES: Final[Mapping[Any, Any]] = MappingProxyType({})


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The result of ``function(*args)``, where that is a tensor or a plain value; never called."""

    function: Global
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A reference to a storage: the bytes of one or more tensors.

    Attributes:
        kind: storage class, which determines the element type.
        key: name of the record in the file.
        location: device from which it was saved, e.g. ``"cpu"`` or ``"cuda:0"``.
        numel: number of elements.
    """

    kind: Global
    key: str
    location: str
    numel: int


class Made(dict[Any, Any]):
    """What an unpickler would make by a call, never made here; its own entries are those that are set in it.

    Attributes:
        function: what is called: a :class:`Global`, or, for a class inside a class, another node.
        args: the arguments.
        keywords: the arguments by name; None for a call that can have none.
        new: whether ``function.__new__`` is called, and not ``function``.
        appended: what is appended to it; None for nothing.
        state: what ``__setstate__`` or ``__dict__`` is given; None for nothing.
    """

    __slots__ = ("appended", "args", "function", "keywords", "new", "state")

    def __init__(
        self,
        function: object,
        args: tuple[Any, ...] = (),
        keywords: dict[Any, Any] | None = None,
        *,
        new: bool = False,
        entries: Mapping[Any, Any] = NO_ENTRIES,
    ) -> None:
        super().__init__(entries)
        self.function, self.args, self.keywords, self.new = function, args, keywords, new
        self.appended: list[Any] | None = None
        self.state: Any = None

    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__  # type: ignore[assignment]
    __repr__ = object.__repr__  # nodes that are shared could make a text without end

    @property
    def class_name(self) -> str:
        """Module and name of its class, or of the function that makes it."""
        named = self.function
        if isinstance(named, Global) and named.module == "copyreg" and self.args:
            named = self.args[0]  # copyreg._reconstructor and its like are told the class
        return str(named) if isinstance(named, Global) else "an unnamed class"

    def like(self, entries: Mapping[Any, Any]) -> Made:
        """Another object of the same class and attributes, with other entries."""
        made = Made(self.function, self.args, self.keywords, new=self.new, entries=entries)
        made.appended, made.state = self.appended, self.state
        return made


class OrderedMap(Made):
    """A ``collections.OrderedDict`` with the attributes it was pickled with (``_metadata``).

    Unlike others, it is equal to a dict of the same entries.
    """

    __slots__ = ()

    def __init__(self, entries: Mapping[Any, Any] = NO_ENTRIES) -> None:
        super().__init__(ORDERED_DICT, entries=entries)

    __eq__ = dict.__eq__
    __ne__ = dict.__ne__
    __hash__ = None  # type: ignore[assignment]

    def like(self, entries: Mapping[Any, Any]) -> OrderedMap:
        made = OrderedMap(entries)
        made.state = self.state
        return made


def emptied(node: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict like ``node`` without its entries."""
    return node.like({}) if isinstance(node, Made) else {}


class _Dropped:
    """The type of :data:`DROPPED`."""


DROPPED: Final = _Dropped()
"""Replacement that makes :func:`walk` and the writer leave out the dict entry or list element."""

Replacements = Mapping[int, object]
"""``id`` of a node -> its replacement. Edits are expressed this way so that nothing is mutated."""

NO_REPLACEMENTS: Final[Replacements] = MappingProxyType({})

SCALARS: Final = (str, int, float, bool, type(None), bytes)


def children(node: object) -> Collection[object]:
    """The nodes directly inside ``node``, in the order in which they are written."""
    if isinstance(node, dict):
        inside = [part for entry in node.items() for part in entry]
        if not isinstance(node, Made):
            return inside
        return [node.function, node.args, node.keywords, *(node.appended or ()), *inside, node.state]
    if isinstance(node, list | tuple):
        return node
    return node.args if isinstance(node, Call) else ()


def walk(
    root: object,
    replace: Replacements = NO_REPLACEMENTS,
    inside: Callable[[object], Collection[object]] = children,
) -> Iterator[object]:
    """Every node under ``root`` once, parents first, after replacement; scalars are left out.

    Args:
        root: where to begin; yielded too.
        replace: replacements for nodes, by ``id``.
        inside: returns the nodes to visit inside a node.
    """
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = replace.get(id(stack[-1]), stack[-1])
        stack.pop()
        if isinstance(node, SCALARS) or node is DROPPED or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(reversed(list(inside(node))))


def check_nesting(root: object, where: str) -> None:
    """Refuse objects on which a recursive writer would overflow its stack or never end.

    Raises:
        InputError: the nesting is deeper than ``DEPTH_LIMIT``, or a tuple or call contains itself.
    """
    seen = {id(root)}
    active = [root]
    pending = [iter(children(root))]
    while pending:
        child = next(pending[-1], _END)
        if child is _END:
            pending.pop()
            active.pop()
        elif isinstance(child, tuple | Call | Made) and (above := _above(child, active)):
            if not isinstance(child, Made) or above[-1] is child.args or above[-1] is child.keywords:
                raise InputError(
                    f"{where}: its pickle holds a tuple that contains itself, no torch file does"
                )
        elif not isinstance(child, SCALARS) and id(child) not in seen:
            if len(active) == DEPTH_LIMIT:
                raise InputError(
                    f"{where}: its objects are nested more than {DEPTH_LIMIT} deep",
                    remedy="save the state dict alone: torch.save(model.state_dict(), path)",
                )
            seen.add(id(child))
            active.append(child)
            pending.append(iter(children(child)))


def _above(node: object, active: list[object]) -> list[object]:
    """``node``, if it is among ``active``, and the one after it there."""
    return next((active[i : i + 2] for i, a in enumerate(active) if a is node), [])


_END: Final = object()
