"""Where nodes are in a saved object, for messages: ``model.embedding.weight``, ``optimizers.0.state``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from embcompress.checkpoint.pickles.nodes import (
    DROPPED,
    NO_REPLACEMENTS,
    SCALARS,
    Call,
    Made,
    Replacements,
)
from embcompress.errors import listed

_LONGEST = 200
"""Most characters of a path. A file can hold one long key, and a million nodes under it."""


def under(path: str, key: object) -> str:
    """The path of an entry of a dict, list or tuple, with dots as ``--state`` takes them.

    Only texts and numbers show as keys, for others could be of any size.
    """
    name = (key if isinstance(key, str) else str(key))[:_LONGEST] if isinstance(key, str | int) else "…"
    return _cut(f"{path}.{name}" if path else name)


def _cut(path: str) -> str:
    return path if len(path) <= _LONGEST else f"{path[: _LONGEST - 1]}…"


def distinct(path: str) -> str:
    """``path`` as a key: where it is too long, its end is replaced by a digest."""
    if len(path) <= _LONGEST:
        return path
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{path[: _LONGEST - len(digest) - 1]}…{digest}"


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
            inner = under(path, key)
            yield inner, key  # it may be a tensor
            yield inner, value
        if isinstance(node, Made):
            for value in (node.args, node.keywords, *(node.appended or ()), node.state):
                yield path, value
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield under(path, number), value
    elif isinstance(node, Call):
        for value in contents:
            yield path, value


def named(paths: Sequence[str]) -> str:
    """The first paths, and how many more there are."""
    return listed([path or "the saved object" for path in paths])
