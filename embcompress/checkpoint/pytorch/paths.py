"""Where nodes are in a saved object, for messages: ``model.embedding.weight``, ``optimizers[0].state``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from embcompress.checkpoint.pytorch.pickle_nodes import (
    DROPPED,
    NO_REPLACEMENTS,
    SCALARS,
    Call,
    Made,
    Replacements,
)

_SHOWN = 3


def walk_paths(
    root: object,
    inside: Callable[[object], Collection[object]],
    replace: Replacements = NO_REPLACEMENTS,
) -> Iterator[tuple[str, object]]:
    """Every node under ``root`` once with its path, parents first, after replacement; scalars are left out.

    Args:
        root: where to begin; its path is empty.
        inside: returns the nodes to visit inside a call; nothing is visited in what it finds empty.
        replace: replacements for nodes, by ``id``.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, node = stack.pop()
        node = replace.get(id(node), node)
        if isinstance(node, SCALARS) or node is DROPPED or id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        if contents := inside(node):
            stack += reversed([*_named(node, path, contents)])


def _named(node: Any, path: str, contents: Collection[object]) -> Iterator[tuple[str, object]]:
    if isinstance(node, dict):
        for key, value in node.items():
            name = str(key) if isinstance(key, SCALARS) else "…"
            inner = f"{path}.{name}" if path else name
            yield inner, key  # it may be a tensor
            yield inner, value
        if isinstance(node, Made):
            for value in (node.args, node.keywords, *(node.appended or ()), node.state):
                yield path, value
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield f"{path}[{number}]", value
    elif isinstance(node, Call):
        for value in contents:
            yield path, value


def listed(paths: Sequence[str]) -> str:
    """The first paths, and how many more there are."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(path or "the saved object" for path in paths[:_SHOWN]) + more
