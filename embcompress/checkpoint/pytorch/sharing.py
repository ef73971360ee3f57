"""Other state dicts in a file that hold a tensor of the edited one, such as those of encoder and decoder.

They follow its edit: where they hold a table that becomes parts, they get the same parts under names of their
own. Their metadata say which tables these are, so that expanding can go back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import METADATA_KEY, parse_description, part_name, stem
from embcompress.checkpoint.names import check_name
from embcompress.checkpoint.pickles.nodes import Call, emptied
from embcompress.checkpoint.pytorch.paths import walk_paths
from embcompress.checkpoint.pytorch.state import (
    is_optimizer,
    metadata_text,
    outside_optimizers,
    with_metadata,
)
from embcompress.checkpoint.pytorch.tensors import memory_of
from embcompress.checkpoint.tensors import NewTensor
from embcompress.errors import InputError, UsageError

SHARED_KEY: Final = f"{METADATA_KEY}_shared"
"""Metadata entry of such a state dict: name of a table in the edited state dict -> its names in this one."""


Build = Callable[[NewTensor, object], Call]
"""Makes the node of a new tensor, given the node that it replaces."""


@dataclass(frozen=True)
class Following:
    """The other state dicts that follow an edit.

    Attributes:
        replace: ``id`` of a state dict -> the one that takes its place.
        paths: where they are in the saved object.
    """

    replace: Mapping[int, dict[Any, Any]]
    paths: tuple[str, ...]


def following(root: object, state: dict[Any, Any], edit: Edit, build: Build, where: str) -> Following:
    """Make the other state dicts under ``root`` follow ``edit``.

    One in which a new tensor would have no name is left out.

    Raises:
        UsageError: a new tensor would get the name of one that stays.
    """
    text = metadata_text(state)
    records = () if text is None else parse_description(text, where).tables
    table_of = {part: record.name for record in records for part in record.part_names}
    added: dict[str, list[NewTensor]] = {}
    for new in edit.add:
        added.setdefault(new.replaces, []).append(new)
    removed: dict[object, str] = {}
    for name in sorted(edit.remove):
        memory = memory_of(state.get(name), where)
        source = name if name in added else _replaced(edit, name)
        if memory is not None and (source or name in table_of):
            removed[memory] = source or removed.get(memory, name)
    replace: dict[int, dict[Any, Any]] = {}
    paths: list[str] = []
    for path, other in _state_dicts(root) if removed else ():
        memories = {key: memory_of(node, where) for key, node in other.items()}
        shared = {key: removed[memory] for key, memory in memories.items() if memory in removed}
        if not shared or other is state:
            continue
        followed = _followed(other, shared, added, table_of, build, where)
        if followed is not None:
            replace[id(other)] = followed
            paths.append(path)
    return Following(replace, tuple(paths))


def _replaced(edit: Edit, name: str) -> str | None:
    """The replaced tensor that ``name`` is another name or a copy of; None if there is none."""
    moved = ((new, _moved_name(new.name, new.replaces, name)) for new in edit.add)
    return next((new.replaces for new, alias in moved if alias and edit.aliases.get(alias) == new.name), None)


def _state_dicts(root: object) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every dict outside of optimizers, with its path."""
    for path, node in walk_paths(root, outside_optimizers):
        if isinstance(node, dict) and not is_optimizer(node):
            yield path, node


def _followed(
    old: dict[Any, Any],
    shared: Mapping[Any, str],
    added: Mapping[str, Sequence[NewTensor]],
    table_of: Mapping[str, str],
    build: Build,
    where: str,
) -> dict[Any, Any] | None:
    """A state dict after the edit, None if a new tensor would have no name in it.

    Args:
        old: the state dict.
        shared: its names of removed tensors -> their names in the edited state dict.
        added: name of a replaced tensor -> the new ones in its place.
        table_of: name of a part in the edited state dict -> its table.
        build: see ``Build``.
        where: name of the file, for error messages.
    """
    known = _shared_tables(old, where)
    dense = {new.name for tensors in added.values() for new in tensors}
    tables = {table: names for table, names in known.items() if table not in dense}
    new = emptied(old)
    for key, node in old.items():
        if key not in shared:
            new[key] = node
            continue
        replaced = shared[key]
        table = table_of.get(replaced)
        for tensor in added.get(replaced, ()):
            names: list[str | None]
            if tensor.name == replaced:
                names = [key]
            elif table is None:
                names = [_moved_name(tensor.name, replaced, key)]
                tables[replaced] = (*(n for n in tables.get(replaced, ()) if n != key), key)
            elif tensor.name == table:
                # Names such as X and X.weight have the same parts.
                names = [n for n in known.get(table, ()) if _moved_name(replaced, table, n) == key]
            else:
                continue  # a further copy of the table, which this state dict never held
            if not names or None in names:
                return None
            for name in names:
                if name in old and name not in shared:
                    raise UsageError(
                        f"{where}: a state dict that shares {replaced} holds {name} already, the name of a "
                        "tensor to be written",
                        remedy="rename it, or choose another table",
                    )
                new[name] = build(tensor, node)
    text = json.dumps(tables, separators=(",", ":")) if tables else None
    return with_metadata(new, text, SHARED_KEY)


def _moved_name(part: str, table: str, other: object) -> str | None:
    """The name of ``part`` of ``table`` if that were called ``other``; None if it is not named after it."""
    prefix = f"{stem(table)}."
    named = isinstance(other, str) and part.startswith(prefix)
    return part_name(str(other), part.removeprefix(prefix)) if named else None


def _shared_tables(state: dict[Any, Any], where: str) -> dict[str, tuple[str, ...]]:
    """What the metadata of a state dict say of shared tables.

    Raises:
        InputError: they cannot be read.
    """
    text = metadata_text(state, SHARED_KEY)
    if text is None:
        return {}
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(names, list) for names in found.values()):
        raise InputError(
            f"{where}: the names of shared tables cannot be read",
            remedy="make the file again from its source",
        )
    tables = {table: tuple(names) for table, names in found.items()}
    for name in (name for names in ([*tables], *tables.values()) for name in names):
        check_name(name, where)
    return tables
