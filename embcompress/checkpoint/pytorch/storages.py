"""The storages that edited objects still use, without the bytes that none of their tensors views."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from embcompress.checkpoint.pickles.nodes import Call, Replacements, StorageRef, walk
from embcompress.checkpoint.pytorch.paths import walk_paths
from embcompress.checkpoint.pytorch.tensors import (
    GRANULE,
    View,
    inside_of_tensors,
    parse_view,
    storage_bytes,
    view_of,
)
from embcompress.storage.zipstore import Extent

Span = tuple[int, int]
"""First byte of a storage, and the one after the last."""


@dataclass(frozen=True)
class StorageUse:
    """A storage to copy.

    Attributes:
        ref: the storage.
        spans: the bytes of it that are still needed, in order and apart from each other.
        tensors: the dense tensors that view it.
        direct: references from anything else; they need the whole storage.
    """

    ref: StorageRef
    spans: tuple[Span, ...]
    tensors: tuple[Call, ...]
    direct: tuple[StorageRef, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are still needed."""
        return sum(end - begin for begin, end in self.spans)

    def extents(self, whole: Extent) -> tuple[Extent, ...]:
        """Where these bytes are in the file, given where the storage is."""
        if self.spans == ((0, whole.size),):
            return (whole,)
        return tuple(Extent(whole.offset + begin, end - begin, None) for begin, end in self.spans)

    def moved(self, key: str) -> dict[int, object]:
        """Replacements that point everything that used it at its copy, the storage ``key``."""
        total = storage_bytes(self.ref)
        numel = self.ref.numel * self.nbytes // total if total else 0
        ref = StorageRef(self.ref.kind, key, self.ref.location, numel)
        moved: dict[int, object] = {id(old): ref for old in self.direct}
        for call in self.tensors:
            view = view_of(call)
            # An empty tensor may have any offset, so it is set to 0 in case nothing of its storage is left.
            offset = view.offset - self._cut_before(view.begin) // view.itemsize if view.span else 0
            moved[id(call)] = Call(call.function, (ref, offset, *call.args[2:]))
        return moved

    def _cut_before(self, position: int) -> int:
        """How many of the bytes before ``position`` are left out."""
        kept = sum(min(end, position) - begin for begin, end in self.spans if begin <= position)
        return position - kept


def storage_uses(
    root: object, replace: Replacements, fresh: Collection[int], where: str
) -> Iterator[StorageUse]:
    """Every storage of the old file that the edited objects still use, in order of first use.

    Args:
        root: the saved object.
        replace: replacements for nodes, by ``id``.
        fresh: ``id`` of each storage of the new file.
        where: name of the file, for error messages.
    """
    tensors: dict[str, list[Call]] = {}
    direct: dict[str, list[StorageRef]] = {}
    refs: dict[str, StorageRef] = {}
    for node in walk(root, replace, inside_of_tensors):
        view = parse_view(node, where)
        if view is not None and isinstance(node, Call) and id(view.storage) not in fresh:
            refs.setdefault(view.storage.key, view.storage)
            tensors.setdefault(view.storage.key, []).append(node)
        elif isinstance(node, StorageRef):
            refs.setdefault(node.key, node)
            direct.setdefault(node.key, []).append(node)
    for key, ref in refs.items():
        total = storage_bytes(ref)
        views = [view_of(call) for call in tensors.get(key, ())]
        spans = ((0, total),) if key in direct else _spans(views, total)
        yield StorageUse(ref, spans, tuple(tensors.get(key, ())), tuple(direct.get(key, ())))


def _spans(views: Sequence[View], total: int) -> tuple[Span, ...]:
    """The bytes that ``views`` cover, widened so that no element of any type is cut."""
    spans: list[Span] = []
    for begin, end in sorted((view.begin, view.end) for view in views if view.span):
        begin, end = begin - begin % GRANULE, min(total, end + -end % GRANULE)
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return tuple(spans)


def users(
    root: object, replace: Replacements, fresh: Collection[int], key: str, span: Span, where: str
) -> list[str]:
    """Paths in the saved object of everything that uses these bytes of an old storage.

    Args:
        root: the saved object.
        replace: replacements for nodes, by ``id``.
        fresh: ``id`` of each storage of the new file.
        key: the old storage.
        span: the bytes.
        where: name of the file, for error messages.
    """
    found: list[str] = []
    for path, node in walk_paths(root, inside_of_tensors, replace):
        view = parse_view(node, where)
        if view is not None and view.storage.key == key and id(view.storage) not in fresh:
            if max(view.begin, span[0]) < min(view.end, span[1]):
                found.append(path)
        elif isinstance(node, StorageRef) and node.key == key and id(node) not in fresh:
            found.append(path)
    return found
