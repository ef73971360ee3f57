"""Find the state dict inside whatever a training script saved with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pickles.allowed import PLAIN
from embcompress.checkpoint.pickles.nodes import Made, OrderedMap
from embcompress.checkpoint.pytorch.tensors import describe, is_tensor, memory_of, parse_view, unwrap
from embcompress.errors import InputError, UsageError, listed

PREFERRED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Keys under which training scripts store the model, the likeliest first."""
BARE_NAME: Final = "embedding.weight"
"""What a table is called that was saved as a tensor, outside of any dict."""
BARE_KEY: Final = f"{METADATA_KEY}_bare"
"""Metadata entry of a state dict that takes the place of such a tensor."""
_MAX_DEPTH = 3
_SHOWN = 8


@dataclass(frozen=True)
class StateDict:
    """A dict of tensors inside the saved object.

    Attributes:
        keys: the keys and positions that lead to it from the root.
        node: the dict itself.
        nbytes: bytes of the tensors directly in it.
        twins: the keys of other dicts with other tensors of the same names, such as a moving average.
        anchor: the node of the saved object in whose place it is written: the dict, or a tensor alone.
        bare: whether its dense table is saved as a tensor alone.
    """

    keys: tuple[str | int, ...]
    node: dict[Any, Any]
    nbytes: int
    twins: tuple[tuple[str | int, ...], ...] = ()
    anchor: object = None
    bare: bool = False

    @property
    def name(self) -> str:
        """Its keys as the user writes them; empty for the saved object itself."""
        return dotted(self.keys)


def dotted(keys: Sequence[str | int]) -> str:
    """The way to a state dict as the user writes it."""
    return ".".join(map(str, keys))


def is_optimizer(node: object) -> bool:
    """Whether ``node`` is the state dict of a torch optimizer."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
    )


def outside_optimizers(node: object) -> Collection[object]:
    """The contents of a plain container that is no optimizer, for a walk; empty for all other nodes."""
    if isinstance(node, dict):
        return () if is_optimizer(node) else node.values()
    return node if isinstance(node, list | tuple) else ()


def find_state_dict(root: object, where: str, chosen: str | None = None) -> StateDict:
    """Find the dict of tensors that is the model.

    This is the one that holds our record. Without a record it is the root if it directly holds most of the
    bytes, or else the dict under a key of ``PREFERRED``, or else the largest. Where there is no such dict,
    it is the only matrix in the file, if that is the saved object or stands in lists or tuples.

    Args:
        root: the saved object.
        where: name of the file, for error messages.
        chosen: the name of the one to take, see :attr:`StateDict.name`.

    Raises:
        InputError: there is none within three levels.
        UsageError: none has the name that was chosen, or there are several matrices.
    """
    found = [*_candidates(root, (), where, set())]
    tables = [*_tables(root, (), where)] if chosen is not None or not found else []
    # Without its table, the compressed one may be smaller than others.
    described = [c for c in found if metadata_text(c.node) is not None]
    if chosen is not None:
        best = _named([*found, *tables], chosen, where)
        if described and best.node is not described[0].node:
            raise UsageError(
                f"{where}: '{described[0].name}' in it is compressed already",
                remedy="start from the file that it was made from, or run 'embcompress expand' first",
            )
    elif found:
        named = [c for c in found if c.keys and c.keys[-1] in PREFERRED]
        best = max(described or named or found, key=lambda c: (c.nbytes, -_likeliness(c)))
        if not described and found[0].keys == () and found[0].nbytes > best.nbytes:
            best = found[0]
    elif len(tables) == 1:
        best = tables[0]
    elif tables:
        raise UsageError(
            f"{where}: holds {len(tables):,} matrices and no names",
            remedy=f"choose one with --state: {_listed(tables)}",
        )
    else:
        raise _nothing_found(root, where)
    twins = (c.keys for c in found if c.node is not best.node and _differ(c.node, best.node, where))
    bare = best.bare or metadata_text(best.node, BARE_KEY) is not None
    return replace(best, twins=tuple(twins), anchor=best.anchor if best.bare else best.node, bare=bare)


def metadata_text(state: Mapping[Any, Any], key: str = METADATA_KEY) -> object:
    """An entry of the metadata of a state dict, by default our record; None if there is none."""
    metadata = _attributes(state).get("_metadata")
    return metadata.get(key) if isinstance(metadata, dict) else None


def with_metadata(state: dict[Any, Any], text: str | None, key: str = METADATA_KEY) -> dict[Any, Any]:
    """The state dict with ``text`` in its metadata, or without that entry.

    ``load_state_dict`` looks up metadata by module name and ignores other keys.
    """
    if text is None and metadata_text(state, key) is None:
        return state
    attributes = _attributes(state)
    old = attributes.get("_metadata")
    metadata = OrderedMap(old if isinstance(old, dict) else {})
    metadata.pop(key, None)
    if text is not None:
        metadata[key] = text
    # Dicts have no attributes, and neither have those of the classes for plain data.
    own = isinstance(state, Made) and str(state.function) not in PLAIN
    new = state.like(state) if own and isinstance(state, Made) else OrderedMap(state)
    new.state = {**attributes, "_metadata": metadata}
    return new


def _attributes(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return state.state if isinstance(state, Made) and isinstance(state.state, dict) else {}


def _differ(a: dict[Any, Any], b: dict[Any, Any], where: str) -> bool:
    """Whether two state dicts have a name in common, for tensors that do not share their memory."""
    common = (name for name in a.keys() & b.keys() if is_tensor(a[name]) and is_tensor(b[name]))
    return any(memory_of(a[name], where) != memory_of(b[name], where) for name in common)


def _likeliness(candidate: StateDict) -> int:
    key = candidate.keys[-1] if candidate.keys else ""
    return PREFERRED.index(key) if key in PREFERRED else len(PREFERRED)


def _candidates(node: object, keys: tuple[str | int, ...], where: str, seen: set[int]) -> Iterator[StateDict]:
    """Dicts with tensors under ``node``, each once; ``seen`` holds the ids of those already visited."""
    if not isinstance(node, dict | list | tuple) or is_optimizer(node) or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, dict):
        tensors = [describe("", value, where) for value in node.values() if is_tensor(value)]
        if tensors:
            yield StateDict(keys, node, sum(t.nbytes for t in tensors))
    if len(keys) < _MAX_DEPTH:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(key, str | int):
                yield from _candidates(value, (*keys, key), where, seen)


def _tables(node: object, keys: tuple[str | int, ...], where: str) -> Iterator[StateDict]:
    """Matrices that are ``node`` or stand in lists and tuples under it, each as a state dict of its own."""
    if is_tensor(node):
        info = describe(BARE_NAME, node, where)
        if info.layout == "dense" and len(info.shape) == 2 and info.dtype is not None and info.dtype.is_table:
            yield StateDict(keys, {BARE_NAME: node}, info.nbytes, anchor=node, bare=True)
    elif isinstance(node, list | tuple) and len(keys) < _MAX_DEPTH:
        for number, value in enumerate(node):
            yield from _tables(value, (*keys, number), where)


def _named(found: Sequence[StateDict], chosen: str, where: str) -> StateDict:
    """The state dict of a name.

    Raises:
        UsageError: there is none.
    """
    same = next((c for c in found if c.name == chosen), None)
    if same is not None:
        return same
    inside = [c for c in found if c.keys]
    raise UsageError(
        f"{where}: --state {chosen}: holds no such state dict",
        remedy=f"choose one of {_listed(inside)}" if inside else "leave out --state, the file holds only one",
    )


def _listed(found: Sequence[StateDict]) -> str:
    return listed([c.name[:80] for c in found], _SHOWN)


def _nothing_found(root: object, where: str) -> InputError:
    if is_tensor(root):
        view = parse_view(unwrap(root), where)
        shape = "" if view is None else f" of {view.torch_dtype}, shape {list(view.shape[:8])}"
        return InputError(
            f"{where}: holds one tensor{shape}, and a table is a dense matrix of floats",
            remedy="save the state dict: torch.save(model.state_dict(), path)",
        )
    return InputError(
        f"{where}: holds no dict of tensors",
        remedy="save the state dict: torch.save(model.state_dict(), path)",
    )
