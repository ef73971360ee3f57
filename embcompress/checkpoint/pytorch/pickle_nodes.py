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
    """A name from the allowlist, e.g. ``torch.FloatStorage``; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The result of ``function(*args)``; never called."""

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


class OrderedMap(dict[Any, Any]):
    """A ``collections.OrderedDict`` with the attributes it was pickled with (``_metadata``)."""

    state: dict[Any, Any] | None = None


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
