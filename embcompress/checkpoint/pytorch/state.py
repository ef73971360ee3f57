"""Find the state dict inside whatever a training script saved with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pytorch.pickle_nodes import OrderedMap
from embcompress.checkpoint.pytorch.tensors import describe, is_tensor, memory_of
from embcompress.errors import InputError

PREFERRED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Keys under which training scripts store the model, the likeliest first."""
_MAX_DEPTH = 3


@dataclass(frozen=True)
class StateDict:
    """A dict of tensors inside the saved object.

    Attributes:
        keys: the keys that lead to it from the root.
        node: the dict itself.
        nbytes: bytes of the tensors directly in it.
        twins: the keys of other dicts with other tensors of the same names, such as a moving average.
    """

    keys: tuple[str, ...]
    node: dict[Any, Any]
    nbytes: int
    twins: tuple[tuple[str, ...], ...] = ()


def is_optimizer(node: object) -> bool:
    """Whether ``node`` is the state dict of a torch optimizer."""
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
    )


def find_state_dict(root: object, where: str) -> StateDict:
    """Find the dict of tensors that is the model.

    This is the one that holds our record. Without a record it is the root if it directly holds most of the
    bytes, or else the dict under a key of ``PREFERRED``, or else the largest.

    Raises:
        InputError: there is none within three levels.
    """
    found = list(_candidates(root, (), where, set()))
    if not found:
        raise InputError(
            f"{where}: holds no dict of tensors",
            remedy="save the state dict: torch.save(model.state_dict(), path)",
        )
    # Without its table, the compressed one may be smaller than others.
    described = [c for c in found if metadata_text(c.node) is not None]
    named = [c for c in found if c.keys and c.keys[-1] in PREFERRED]
    best = max(described or named or found, key=lambda c: (c.nbytes, -_likeliness(c)))
    if not described and found[0].keys == () and found[0].nbytes > best.nbytes:
        best = found[0]
    twins = (c.keys for c in found if c.node is not best.node and _differ(c.node, best.node, where))
    return replace(best, twins=tuple(twins))


def _differ(a: dict[Any, Any], b: dict[Any, Any], where: str) -> bool:
    """Whether two state dicts have a name in common, for tensors that do not share their memory."""
    common = (name for name in a.keys() & b.keys() if is_tensor(a[name]) and is_tensor(b[name]))
    return any(memory_of(a[name], where) != memory_of(b[name], where) for name in common)


def metadata_text(state: dict[Any, Any], key: str = METADATA_KEY) -> object:
    """An entry of the metadata of a state dict, by default our record; None if there is none."""
    metadata = state.state.get("_metadata") if isinstance(state, OrderedMap) and state.state else None
    return metadata.get(key) if isinstance(metadata, dict) else None


def with_metadata(state: dict[Any, Any], text: str | None, key: str = METADATA_KEY) -> dict[Any, Any]:
    """The state dict with ``text`` in its metadata, or without that entry.

    ``load_state_dict`` looks up metadata by module name and ignores other keys.
    """
    if text is None and metadata_text(state, key) is None:
        return state
    attributes = dict(state.state or {}) if isinstance(state, OrderedMap) else {}
    old = attributes.get("_metadata")
    metadata = OrderedMap(old if isinstance(old, dict) else {})
    metadata.pop(key, None)
    if text is not None:
        metadata[key] = text
    new = OrderedMap(state)
    new.state = {**attributes, "_metadata": metadata}
    return new


def _likeliness(candidate: StateDict) -> int:
    key = candidate.keys[-1] if candidate.keys else ""
    return PREFERRED.index(key) if key in PREFERRED else len(PREFERRED)


def _candidates(node: object, keys: tuple[str, ...], where: str, seen: set[int]) -> Iterator[StateDict]:
    """Dicts with tensors under ``node``, each once; ``seen`` holds the ids of those already visited."""
    if not isinstance(node, dict) or is_optimizer(node) or id(node) in seen:
        return
    seen.add(id(node))
    tensors = [describe("", value, where) for value in node.values() if is_tensor(value)]
    if tensors:
        yield StateDict(keys, node, sum(t.nbytes for t in tensors))
    if len(keys) < _MAX_DEPTH:
        for key, value in node.items():
            if isinstance(key, str):
                yield from _candidates(value, (*keys, key), where, seen)
