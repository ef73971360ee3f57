"""The elements of tensors in a torch file in row-major order, and a summary of everything else in it."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.pytorch.archive import Archive
from embcompress.checkpoint.pytorch.pickle_nodes import (
    DROPPED,
    SCALARS,
    Call,
    OrderedMap,
    Replacements,
    StorageRef,
)
from embcompress.checkpoint.pytorch.tensors import View, parse_view
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
    if view.span == view.numel and view.stride == _rows_first(view.shape):
        yield from pieces(fd, Extent(offset, nbytes, None), where)
    elif nbytes:
        yield from _gathered(_mapped(fd, view, offset))


def _rows_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _mapped(fd: int, view: View, offset: int) -> NDArray[Any]:
    """The tensor as a memory map with its strides in the file; the last axis is the bytes of an element."""
    mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    # Dimensions of size 1 are dropped: their strides may be any number, and NumPy allows 64 dimensions.
    steps = [(n, s * view.itemsize) for n, s in zip(view.shape, view.stride, strict=True) if n > 1]
    shape, strides = (*(n for n, _ in steps), view.itemsize), (*(s for _, s in steps), 1)
    return np.ndarray(shape, np.uint8, mapped, offset, strides)


def _gathered(elements: NDArray[Any]) -> Iterator[bytes]:
    """The bytes of a mapped tensor, split along its first axes until a piece is small enough."""
    if elements.nbytes <= CHUNK or elements.ndim == 1:
        yield elements.tobytes()
        return
    step = max(1, CHUNK * len(elements) // elements.nbytes)
    for start in range(0, len(elements), step):
        part = elements[start : start + step]
        yield from _gathered(part[0] if len(part) == 1 else part)


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
        state: Mapping[Any, Any],
        stored: Collection[str],
        shared: Mapping[object, str],
        fresh: Mapping[int, NewTensor],
        replace: Replacements,
        where: str,
    ) -> None:
        self._fd, self._archive, self._where = fd, archive, where
        self._state, self._stored, self._shared, self._fresh, self._replace = (
            state,
            stored,
            shared,
            fresh,
            replace,
        )
        self._seen: dict[int, str] = {}
        self._found: dict[str, object] = {}

    def flat(self) -> Mapping[str, object]:
        """The whole object: path -> value."""
        self._add(self._archive.root, "")
        return self._found

    def _add(self, node: object, path: str) -> None:
        node = self._replace.get(id(node), node)
        if node is DROPPED:
            return
        if isinstance(node, SCALARS) or node == ():
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
            self._add_dict(node, path)
        else:
            self._found[path] = f"{type(node).__name__} of {len(node)}"
            for number, part in enumerate(node):
                self._add(part, f"{path}[{number}]")

    def _looked_at(self, view: View) -> Extent:
        """The bytes from the first to the last element of a tensor."""
        offset = self._archive.storages[view.storage.key].offset
        return Extent(offset + view.begin, view.end - view.begin, None)

    def _add_dict(self, node: dict[Any, Any], path: str) -> None:
        """Add the entries and attributes of a dict; of the state dict without its tensors and our record."""
        ours = node is self._state
        for key, part in node.items():
            if not (ours and key in self._stored):
                name = key if isinstance(key, str) else repr(key) if isinstance(key, SCALARS) else str(key)
                self._add(part, f"{path}.{name}" if path else name)
        attributes = node.state if isinstance(node, OrderedMap) else None
        for name, part in (attributes or {}).items():
            if ours and name == "_metadata" and isinstance(part, dict):
                # An empty metadata dict counts as none: our record may be the only reason for it.
                for key, value in part.items():
                    if key != METADATA_KEY:
                        self._add(value, f"{path} {name}.{key}")
            else:
                self._add(part, f"{path} {name}")
