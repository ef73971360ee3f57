"""Plan a new torch file: the edited objects, and the source of each of its storages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.pytorch.archive import Archive
from embcompress.checkpoint.pytorch.optimizers import Refit, Split, refit_optimizers
from embcompress.checkpoint.pytorch.pickle_nodes import (
    Call,
    Global,
    Made,
    OrderedMap,
    Replacements,
    StorageRef,
    walk,
)
from embcompress.checkpoint.pytorch.pickle_writer import dump
from embcompress.checkpoint.pytorch.state import BARE_KEY, StateDict, with_metadata
from embcompress.checkpoint.pytorch.tensors import (
    GRANULE,
    View,
    inside_of_tensors,
    is_parameter,
    parse_view,
    storage_bytes,
    storage_kind,
    unwrap,
)
from embcompress.checkpoint.tensors import NewTensor
from embcompress.storage.zipstore import Extent


@dataclass(frozen=True)
class Rewrite:
    """A new file, ready to be written.

    Attributes:
        pickle: its data.pkl.
        storages: storage key -> the new tensor to write there, or the bytes to copy.
        warnings: warnings for the user, one sentence each.
    """

    pickle: bytes
    storages: Mapping[str, NewTensor | Extent]
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all storages together."""
        return sum(s.nbytes if isinstance(s, NewTensor) else s.size for s in self.storages.values())


def plan_rewrite(
    archive: Archive, state: StateDict, edit: Edit, description: Description | None, where: str
) -> Rewrite:
    """Plan the file that ``edit`` makes of ``archive``."""
    made = {
        new.name: StorageRef(
            storage_kind(new.dtype), str(i), _location(state.node[new.replaces], where), prod(new.shape)
        )
        for i, new in enumerate(edit.add)
    }
    new_state = _edited_state(state.node, edit, made)
    refit = refitted(archive, state, edit, where)
    replace: dict[int, object] = {**refit.replace, id(state.anchor): _written(state, new_state, description)}
    storages: dict[str, NewTensor | Extent] = {made[new.name].key: new for new in edit.add}
    fresh = {id(ref) for ref in made.values()}
    for use in _uses(archive.root, replace, fresh, where):
        source = archive.storages[use.ref.key]
        key = str(len(storages))
        whole = use.begin == 0 and use.end == source.size
        size = use.end - use.begin
        storages[key] = source if whole else Extent(source.offset + use.begin, size, None)
        ref = StorageRef(
            use.ref.kind, key, use.ref.location, use.ref.numel * size // source.size if source.size else 0
        )
        replace |= _moved(use, ref)
    return Rewrite(dump(archive.root, replace, archive.protocol), storages, refit.warnings)


def refitted(archive: Archive, state: StateDict, edit: Edit, where: str) -> Refit:
    """How the optimizers saved with the state dict change under ``edit``."""
    return refit_optimizers(archive.root, _splits(state.node, edit, where), where)


# -- the state dict ------------------------------------------------------------------------------


def _location(node: object, where: str) -> str:
    view = parse_view(unwrap(node), where)
    assert view is not None, "only dense tensors are replaced"
    return view.storage.location


def _edited_state(old: Mapping[Any, Any], edit: Edit, made: Mapping[str, StorageRef]) -> dict[Any, Any]:
    """The state dict with each new tensor and its aliases in the place of the tensor it replaces."""
    new = _emptied(old)
    for key, node in old.items():
        for tensor in edit.add:
            if tensor.replaces != key:
                continue
            built = _tensor(tensor, made[tensor.name], node)
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


def _emptied(old: Mapping[Any, Any]) -> dict[Any, Any]:
    """A dict like ``old`` without its entries."""
    return old.like({}) if isinstance(old, Made) else {}


def _tensor(tensor: NewTensor, ref: StorageRef, replaced: object) -> Call:
    """The call that rebuilds a contiguous tensor, as a Parameter if it replaces one."""
    stride = tuple(prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
    args = (ref, 0, tensor.shape, stride, False, OrderedMap())
    plain = Call(Global("torch._utils", "_rebuild_tensor_v2"), args)
    if not isinstance(replaced, Call) or not is_parameter(replaced):
        return plain
    # Codes are integers, and in torch only floats can require gradients.
    trained = replaced.args[1] and tensor.dtype.is_table
    return Call(Global("torch._utils", "_rebuild_parameter"), (plain, trained, OrderedMap()))


def amended_pickle(archive: Archive, state: StateDict, description: Description) -> bytes:
    """data.pkl with another description and everything else unchanged."""
    described = with_metadata(state.node, description.to_json())
    return dump(archive.root, {id(state.node): described}, archive.protocol)


def _splits(state: Mapping[Any, Any], edit: Edit, where: str) -> list[Split]:
    """The removed parameters; names that share memory count as one."""
    parts: dict[tuple[str, int, tuple[int, ...], tuple[int, ...]], int] = {}
    for name in state:
        view = parse_view(unwrap(state[name]), where) if name in edit.remove else None
        if view is not None:
            memory = (view.storage.key, view.begin, view.shape, view.stride)
            trained = sum(new.replaces == name and new.dtype.is_table for new in edit.add)
            parts[memory] = parts.get(memory, 0) + trained
    return [Split(memory[2], count) for memory, count in parts.items()]


# -- storages ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Use:
    """A storage to copy, and the byte range of it that is still needed."""

    ref: StorageRef
    begin: int
    end: int
    tensors: tuple[Call, ...]
    direct: tuple[StorageRef, ...]
    """References from anything but dense tensors; they need the whole storage."""


def _uses(root: object, replace: Replacements, fresh: set[int], where: str) -> Iterator[_Use]:
    """Every storage of the old file that the edited objects still use, in order of first use."""
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
        begin, end = 0, total
        if key not in direct:
            views = [view for call in tensors[key] if (view := parse_view(call, where)) and view.span]
            begin, end = _range(views, total)
        yield _Use(ref, begin, end, tuple(tensors.get(key, ())), tuple(direct.get(key, ())))


def _range(views: list[View], total: int) -> tuple[int, int]:
    """The byte range that ``views`` cover, widened so that no element of any type is cut."""
    if not views:
        return 0, 0
    begin = min(view.begin for view in views)
    end = max(view.end for view in views)
    return begin - begin % GRANULE, min(total, end + -end % GRANULE)


def _moved(use: _Use, ref: StorageRef) -> dict[int, object]:
    """Replacements that point everything that used ``use`` at the new storage ``ref``."""
    moved: dict[int, object] = {id(old): ref for old in use.direct}
    for call in use.tensors:
        view = parse_view(call, "")
        assert view is not None
        # An empty tensor may have any offset, so it is set to 0 in case nothing of its storage is left.
        offset = view.offset - use.begin // view.itemsize if view.span else 0
        moved[id(call)] = Call(call.function, (ref, offset, *call.args[2:]))
    return moved
