"""Find the state dict inside whatever a training script saved with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from embcompress.checkpoint.pytorch.tensors import describe, is_tensor
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
        twins: the keys of other dicts with tensors of the same names, such as a moving average.
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

    This is the root if it directly holds most of the bytes, or else the dict under a key of
    ``PREFERRED``, or else the largest.

    Raises:
        InputError: there is none within three levels.
    """
    found = list(_candidates(root, (), where, set()))
    if not found:
        raise InputError(
            f"{where}: holds no dict of tensors",
            remedy="save the state dict: torch.save(model.state_dict(), path)",
        )
    named = [c for c in found if c.keys and c.keys[-1] in PREFERRED]
    best = max(named or found, key=lambda c: (c.nbytes, -_likeliness(c)))
    if found[0].keys == () and found[0].nbytes > best.nbytes:
        best = found[0]
    twins = (c.keys for c in found if c.node is not best.node and c.node.keys() & best.node.keys())
    return replace(best, twins=tuple(twins))


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
