"""Pickled objects as inert data: what a torch pickle may hold, with nothing resolved or called.

Scalars, bytes, lists, tuples and dicts stand for themselves. Everything that a real unpickler would
construct becomes a node that merely says so. Nodes are compared by identity, because two tensors
that share one node must still share it after a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from embcompress.errors import InputError

DEPTH_LIMIT = 200
"""Deepest nesting taken; real checkpoints stay under 20, and the writer is recursive."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name from the allowlist, e.g. ``torch.FloatStorage``; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """What ``function(*args)`` would make; never called."""

    function: Global
    args: tuple[Any, ...]


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """The bytes under one or more tensors, by the key they are stored under.

    Attributes:
        kind: storage class, which fixes the element type.
        key: name of the record in the file.
        location: device it was saved from, e.g. ``"cpu"`` or ``"cuda:0"``.
        numel: number of elements.
    """

    kind: Global
    key: str
    location: str
    numel: int


class OrderedMap(dict[Any, Any]):
    """A ``collections.OrderedDict`` with the attributes it was pickled with (``_metadata``)."""

    state: dict[Any, Any] | None = None


class _Dropped:
    """The type of :data:`DROPPED`."""


DROPPED: Final = _Dropped()
"""As a replacement in :func:`walk` and the writer: leave the dict entry or list element out."""

Replacements = Mapping[int, object]
"""``id`` of a node -> the node that stands in its place; how an edit is expressed without mutation."""

NO_REPLACEMENTS: Final[Replacements] = MappingProxyType({})

SCALARS: Final = (str, int, float, bool, type(None), bytes)


def children(node: object) -> Collection[object]:
    """The nodes directly inside ``node``, in the order in which they are written."""
    if isinstance(node, dict):
        inside = [part for entry in node.items() for part in entry]
        return [*inside, node.state] if isinstance(node, OrderedMap) else inside
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
        replace: nodes that stand in the place of others.
        inside: which nodes to descend to.
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
    """Refuse what would make a recursive writer overflow its stack or never end.

    Raises:
        InputError: nested deeper than ``DEPTH_LIMIT``, or a tuple or call that contains itself.
    """
    seen = {id(root)}
    active = [root]
    pending = [iter(children(root))]
    while pending:
        child = next(pending[-1], _END)
        if child is _END:
            pending.pop()
            active.pop()
        elif isinstance(child, tuple | Call) and any(child is a for a in active):
            raise InputError(f"{where}: its pickle holds a tuple that contains itself, no torch file does")
        elif not isinstance(child, SCALARS) and id(child) not in seen:
            if len(active) == DEPTH_LIMIT:
                raise InputError(
                    f"{where}: its objects are nested more than {DEPTH_LIMIT} deep",
                    remedy="save the state dict alone: torch.save(model.state_dict(), path)",
                )
            seen.add(id(child))
            active.append(child)
            pending.append(iter(children(child)))


_END: Final = object()
