"""Plan a new torch file: the edited objects, and the source of each of its storages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from embcompress.checkpoint.base import Edit, NewParameters
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.pickles.nodes import (
    Call,
    Global,
    OrderedMap,
    Replacements,
    StorageRef,
    emptied,
)
from embcompress.checkpoint.pickles.writer import dump
from embcompress.checkpoint.pytorch.archive import Archive
from embcompress.checkpoint.pytorch.optimizers import Change, Kind, refit_optimizers
from embcompress.checkpoint.pytorch.paths import named
from embcompress.checkpoint.pytorch.sharing import Build, following
from embcompress.checkpoint.pytorch.state import BARE_KEY, StateDict, metadata_text, with_metadata
from embcompress.checkpoint.pytorch.storages import StorageUse, storage_uses, users
from embcompress.checkpoint.pytorch.tensors import (
    View,
    contiguous,
    is_parameter,
    parse_view,
    storage_kind,
    unwrap,
)
from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import DTYPES, Floats
from embcompress.errors import UsageError
from embcompress.storage.zipstore import Extent


@dataclass(frozen=True)
class EditedObjects:
    """The saved object after an edit, before its storages are laid out.

    Attributes:
        replace: replacements for nodes of the old one, by ``id``.
        storages: new storages, and the tensor that each of them holds.
        warnings: warnings for the user, one sentence each.
    """

    replace: Replacements
    storages: Sequence[tuple[StorageRef, NewTensor]]
    warnings: tuple[str, ...]

    @property
    def fresh(self) -> Mapping[int, NewTensor]:
        """``id`` of each new storage -> its tensor."""
        return {id(ref): new for ref, new in self.storages}


@dataclass(frozen=True)
class Rewrite:
    """A new file, ready to be written.

    Attributes:
        pickle: its data.pkl.
        storages: storage key -> the new tensor to write there, or the bytes to copy, in pieces.
        warnings: warnings for the user, one sentence each.
    """

    pickle: bytes
    storages: Mapping[str, NewTensor | tuple[Extent, ...]]
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all storages together."""
        return sum(map(self.nbytes_of, self.storages))

    def nbytes_of(self, key: str) -> int:
        """Bytes of one storage."""
        source = self.storages[key]
        return source.nbytes if isinstance(source, NewTensor) else sum(extent.size for extent in source)


def plan_rewrite(
    archive: Archive, state: StateDict, edit: Edit, description: Description | None, where: str
) -> Rewrite:
    """Plan the file that ``edit`` makes of ``archive``."""
    edited = edited_objects(archive, state, edit, description, where)
    replace = dict(edited.replace)
    storages: dict[str, NewTensor | tuple[Extent, ...]] = {ref.key: new for ref, new in edited.storages}
    uses = [*storage_uses(archive.root, edited.replace, edited.fresh, where)]
    for use in uses:
        key = str(len(storages))
        storages[key] = use.extents(archive.storages[use.ref.key])
        replace |= use.moved(key)
    kept = (
        f"{named(kept.users)}: views some bytes of {kept.name}, which stay in the file"
        for kept in _kept(archive, state, edit, edited, uses, where)
    )
    return Rewrite(dump(archive.root, replace, archive.protocol), storages, (*edited.warnings, *kept))


def edited_objects(
    archive: Archive, state: StateDict, edit: Edit, description: Description | None, where: str
) -> EditedObjects:
    """The saved object after ``edit``: state dict, those that share tensors with it, optimizers."""
    made = {
        new.name: StorageRef(
            storage_kind(new.dtype), str(i), _location(state.node[new.replaces], where), prod(new.shape)
        )
        for i, new in enumerate(edit.add)
    }

    storages = [(made[new.name], new) for new in edit.add]

    def build(new: NewTensor, replaced: object) -> Call:
        return _tensor(new, made[new.name], replaced)

    def full(shape: tuple[int, ...], value: float, like: View) -> Call:
        new = NewTensor("", like.dtype or DTYPES["F32"], shape, "", lambda: _filled(shape, value))
        ref = StorageRef(storage_kind(new.dtype), str(len(storages)), like.storage.location, prod(shape))
        storages.append((ref, new))
        return _contiguous(ref, shape)

    new_state = _edited_state(state.node, edit, build)
    kind = _kind(state.node, edit)
    refit = refit_optimizers(archive.root, _changes(state.node, edit, kind, where), where, kind, full)
    others = following(archive.root, state.node, edit, build, where)
    replace = {
        **refit.replace,
        **others.replace,
        id(state.anchor): _written(state, new_state, description),
    }
    told = (f"changed as well, since its tensors are shared: {named(others.paths)}",) if others.paths else ()
    return EditedObjects(replace, storages, (*told, *refit.warnings))


@dataclass(frozen=True)
class _Kept:
    """A removed tensor of which something else in the file keeps bytes.

    Attributes:
        name: the tensor.
        users: paths of what uses them.
        whole: whether all its bytes are kept.
    """

    name: str
    users: Sequence[str]
    whole: bool


def _kept(
    archive: Archive,
    state: StateDict,
    edit: Edit,
    edited: EditedObjects,
    uses: Iterable[StorageUse],
    where: str,
) -> Iterator[_Kept]:
    spans = {use.ref.key: use.spans for use in uses}
    seen: set[object] = set()
    for name in sorted(edit.remove):
        view = parse_view(unwrap(state.node.get(name)), where)
        if view is None or not view.span or view.memory in seen:
            continue
        seen.add(view.memory)
        key, span = view.storage.key, (view.begin, view.end)
        near = [(begin, end) for begin, end in spans.get(key, ()) if begin < span[1] and span[0] < end]
        paths = users(archive.root, edited.replace, edited.fresh, key, span, where) if near else []
        if paths:
            yield _Kept(name, paths, any(begin <= span[0] and span[1] <= end for begin, end in near))


def check_kept(archive: Archive, state: StateDict, edit: Edit, where: str) -> None:
    """Refuse an edit after which something else in the file still needs all bytes of a removed tensor.

    Raises:
        UsageError: with the paths of what needs them.
    """
    edited = edited_objects(archive, state, edit, None, where)
    uses = storage_uses(archive.root, edited.replace, edited.fresh, where)
    for kept in _kept(archive, state, edit, edited, uses, where):
        if kept.whole:
            raise UsageError(
                f"{where}: {named(kept.users)} would keep the bytes of {kept.name}, whose memory is shared",
                remedy="save a copy with memory of its own (.clone()) in its place, or leave it out",
            )


# -- the state dict ------------------------------------------------------------------------------


def _location(node: object, where: str) -> str:
    view = parse_view(unwrap(node), where)
    assert view is not None, "only dense tensors are replaced"
    return view.storage.location


def _edited_state(old: Mapping[Any, Any], edit: Edit, build: Build) -> dict[Any, Any]:
    """The state dict with each new tensor and its aliases in the place of the tensor it replaces."""
    new = emptied(old)
    for key, node in old.items():
        for tensor in edit.add:
            if tensor.replaces != key:
                continue
            built = build(tensor, node)
            new[tensor.name] = built
            new |= {alias: built for alias, target in edit.aliases.items() if target == tensor.name}
        if key not in edit.remove:
            new[key] = node
    return new


def _written(state: StateDict, new: dict[Any, Any], description: Description | None) -> object:
    """What takes the place of a state dict; a table that was saved as a tensor alone becomes one again."""
    if state.bare and description is None and len(new) == 1:
        return next(iter(new.values()))
    described = with_metadata(new, None if description is None else description.to_json())
    return with_metadata(described, "true", BARE_KEY) if state.bare else described


def _tensor(tensor: NewTensor, ref: StorageRef, replaced: object) -> Call:
    """The call that rebuilds a contiguous tensor, as a Parameter if it replaces one."""
    plain = _contiguous(ref, tensor.shape)
    if not isinstance(replaced, Call) or not is_parameter(replaced):
        return plain
    # Codes are integers, and in torch only floats can require gradients.
    trained = replaced.args[1] and tensor.dtype.is_table
    return Call(Global("torch._utils", "_rebuild_parameter"), (plain, trained, OrderedMap()))


def _contiguous(ref: StorageRef, shape: tuple[int, ...]) -> Call:
    args = (ref, 0, shape, contiguous(shape), False, OrderedMap())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def _filled(shape: tuple[int, ...], value: float) -> Iterator[Floats]:
    """All elements of a tensor, as blocks that take little memory."""
    count, step = prod(shape), 1 << 20
    for start in range(0, count, step):
        yield np.full(min(step, count - start), value, np.float32)


def amended_pickle(archive: Archive, state: StateDict, description: Description) -> bytes:
    """data.pkl with another description and everything else unchanged."""
    described = with_metadata(state.node, description.to_json())
    return dump(archive.root, {id(state.node): described}, archive.protocol)


def _kind(state: dict[Any, Any], edit: Edit) -> Kind:
    """What happens to the tables of a state dict."""
    if not edit.parameters:
        return Kind.TRAINED
    return Kind.COMPRESSED if metadata_text(state) is None else Kind.EXPANDED


def _changes(state: Mapping[Any, Any], edit: Edit, kind: Kind, where: str) -> list[Change]:
    """The removed parameters; names that share memory count as one."""
    names: dict[object, list[str]] = {}
    shapes: dict[object, tuple[int, ...]] = {}
    for name in state:
        view = parse_view(unwrap(state[name]), where) if name in edit.remove else None
        trained = view is not None and view.dtype is not None and view.dtype.is_table
        if view is not None and (trained or name in edit.parameters):
            names.setdefault(view.memory, []).append(name)
            shapes[view.memory] = view.shape
    changes = []
    for memory, same in names.items():
        new = next((edit.parameters[name] for name in same if name in edit.parameters), None)
        if new is not None or kind is not Kind.COMPRESSED:  # a stored copy of a table is no parameter
            new = new or NewParameters(1, (shapes[memory],))
            changes.append(Change(frozenset(same), shapes[memory], new))
    return changes
