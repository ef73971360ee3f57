"""The elements of tensors in a torch file in row-major order, and a summary of everything else in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pickles.allowed import PLAIN
from embcompress.checkpoint.pickles.nodes import (
    DROPPED,
    SCALARS,
    Call,
    Made,
    OrderedMap,
    Replacements,
    StorageRef,
)
from embcompress.checkpoint.pytorch.archive import Archive
from embcompress.checkpoint.pytorch.paths import distinct
from embcompress.checkpoint.pytorch.state import BARE_KEY, StateDict
from embcompress.checkpoint.pytorch.strided import read_strided
from embcompress.checkpoint.pytorch.tensors import View, contiguous, parse_view
from embcompress.checkpoint.tensors import NewTensor
from embcompress.storage.rawio import CHUNK, sha256_of
from embcompress.storage.zipstore import Extent, pieces


def view_bytes(fd: int, archive: Archive, view: View, where: str) -> Iterator[bytes]:
    """The bytes of a tensor in row-major order, in pieces, whatever its strides in the file.

    Raises:
        InputError: the file ends too early.
    """
    offset = archive.storages[view.storage.key].offset + view.begin
    nbytes = view.numel * view.itemsize
    if view.span == view.numel and view.stride == contiguous(view.shape):
        yield from pieces(fd, Extent(offset, nbytes, None), where)
    elif nbytes:
        strides = tuple(s * view.itemsize for s in view.stride)
        yield from _gathered(fd, offset, view.shape, strides, view.itemsize, where)


def _gathered(
    fd: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, where: str
) -> Iterator[bytes]:
    """The bytes of a tensor, split along its first dimensions until a piece is small enough."""
    nbytes = math.prod(shape) * itemsize
    if nbytes <= CHUNK or not shape:
        yield read_strided(fd, offset, shape, strides, itemsize, where).tobytes()
        return
    step = max(1, CHUNK * shape[0] // nbytes)
    for start in range(0, shape[0], step):
        count = min(step, shape[0] - start)
        # A piece of one row may be too large itself.
        part, steps = ((count, *shape[1:]), strides) if count > 1 else (shape[1:], strides[1:])
        yield from _gathered(fd, offset + start * strides[0], part, steps, itemsize, where)


_LONGEST = 512
"""Longest text that is kept as it is: a file can refer to one a million times."""
_SHOWN = 64


def _is_short(key: object) -> bool:
    """Whether a key can be shown: a scalar, or a tuple of a few."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(isinstance(part, SCALARS) for part in parts)


class Remainder:
    """Flattens a saved object into plain data, by path; each storage becomes a SHA-256.

    Args:
        fd: file descriptor of the file.
        archive: contents of the file.
        state: the state dict.
        stored: names of its dense tensors, which are left out.
        shared: memory of such a tensor -> its name. Where other state dicts hold it, only that is said.
        fresh: ``id`` of a storage that is not in the file yet -> its tensor. One without a name is of an
            optimizer; the others are of the state dict.
        replace: replacements for nodes, by ``id``.
        where: name of the file, for error messages.
    """

    def __init__(
        self,
        fd: int,
        archive: Archive,
        state: StateDict,
        stored: Collection[str],
        shared: Mapping[object, str],
        fresh: Mapping[int, NewTensor],
        replace: Replacements,
        where: str,
    ) -> None:
        self._fd, self._archive, self._where = fd, archive, where
        self._state, self._stored, self._replace = state.node, stored, replace
        self._shared, self._fresh = shared, fresh
        self._bare = state.anchor if state.bare else None
        self._seen: dict[int, str] = {}
        self._texts: dict[int, str] = {}
        self._found: dict[str, object] = {}

    def flat(self) -> Mapping[str, object]:
        """The whole object: path -> value."""
        self._add(self._archive.root, "")
        return self._found

    def _add(self, node: object, path: str) -> None:
        node = self._replace.get(id(node), node)
        if node is DROPPED or (node is self._bare and node is not self._state):
            return
        path = distinct(path)
        if isinstance(node, str | bytes) and len(node) > _LONGEST:
            if id(node) not in self._texts:
                raw = node if isinstance(node, bytes) else node.encode("utf-8", "surrogatepass")
                self._texts[id(node)] = f"{node[:_SHOWN]!r}… of {len(node):,}, SHA-256 {sha256_of([raw])}"
            self._found[path] = self._texts[id(node)]
        elif isinstance(node, SCALARS) or node == ():
            self._found[path] = repr(node)
        elif isinstance(node, dict | list | tuple | Call | StorageRef):
            # A shared node is visited once; otherwise a small pickle could mean billions of paths.
            first = self._seen.setdefault(id(node), path)
            if first != path:
                self._found[path] = f"the same as {first or 'the whole'}"
            else:
                self._add_new(node, path)
        else:
            self._found[path] = str(node)

    def _add_new(self, node: Any, path: str) -> None:
        view = parse_view(node, self._where)
        new = self._fresh.get(id(view.storage)) if view is not None else None
        name = new.name if new is not None else self._shared.get(view.memory) if view is not None else None
        if new is not None and not name and view is not None:
            blocks = (new.dtype.encode(block).tobytes() for block in new.blocks())
            self._found[path] = f"{view.torch_dtype} {list(view.shape)}, SHA-256 {sha256_of(blocks)}"
        elif name:
            self._found[path] = f"the same as {name} of the state dict"
        elif view is not None:
            whole = view_bytes(self._fd, self._archive, view, self._where)
            kind = f"{view.torch_dtype} {list(view.shape)}"
            if view.numel > view.span:  # overlapping elements: there may be any number of them
                kind += f" with strides {list(view.stride)}"
                whole = pieces(self._fd, self._looked_at(view), self._where)
            self._found[path] = f"{kind}, SHA-256 {sha256_of(whole)}"
            if not view.plain:
                self._add(node.args[-1], f"{path} metadata")
        elif isinstance(node, StorageRef):
            whole = pieces(self._fd, self._archive.storages[node.key], self._where)
            self._found[path] = f"{node.kind} of {node.numel}, SHA-256 {sha256_of(whole)}"
        elif isinstance(node, Call):
            self._found[path] = str(node.function)
            for number, part in enumerate(node.args):
                self._add(part, f"{path}({number})")
        elif isinstance(node, dict):
            if isinstance(node, Made):
                self._add_made(node, path)
            self._add_dict(node, path)
        else:
            self._found[path] = f"{type(node).__name__} of {len(node)}"
            for number, part in enumerate(node):
                self._add(part, f"{path}[{number}]")

    def _add_made(self, node: Made, path: str) -> None:
        """Add how an object is made; an OrderedDict counts as a dict, and so does what becomes one."""
        if isinstance(node, OrderedMap) or (node is self._state and str(node.function) in PLAIN):
            return
        self._add(node.function, path)
        for kind, part in (("", node.args), (" keywords", node.keywords), (" items", node.appended)):
            if part:
                self._add(part, f"{path}(){kind}")

    def _looked_at(self, view: View) -> Extent:
        """The bytes from the first to the last element of a tensor."""
        offset = self._archive.storages[view.storage.key].offset
        return Extent(offset + view.begin, view.end - view.begin, None)

    def _add_dict(self, node: dict[Any, Any], path: str) -> None:
        """Add the entries and attributes of a dict; of the state dict without its tensors and our record."""
        ours = node is self._state
        odd = 0
        for key, part in node.items():
            if ours and isinstance(key, str) and key in self._stored:
                continue
            name = key if isinstance(key, str) else repr(key) if _is_short(key) else f"[{odd}]"
            name = distinct(f"{path}.{name}" if path else name)
            if not _is_short(key):
                odd += 1
                self._add(key, f"{name} key")
            self._add(part, name)
        attributes = node.state if isinstance(node, Made) else None
        if attributes is not None and not isinstance(attributes, dict):
            self._add(attributes, f"{path} state")
            return
        for name, part in (attributes or {}).items():
            if ours and name == "_metadata" and isinstance(part, dict):
                # An empty metadata dict counts as none: our record may be the only reason for it.
                for key, value in part.items():
                    if key not in (METADATA_KEY, BARE_KEY):
                        self._add(value, f"{path} {name}.{key}")
            else:
                self._add(part, f"{path} {name}")
