"""A safetensors file: an 8-byte length, a JSON header, then the tensors without gaps."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import METADATA_KEY, Description, parse_description, parse_entry
from embcompress.checkpoint.names import NAME_LIMIT
from embcompress.checkpoint.one_file import OneFile
from embcompress.checkpoint.safetensors.header import (
    HEADER_LIMIT,
    Header,
    described_text,
    header_text,
    offsets,
    read_header,
)
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.progress import Progress, Steps, silent
from embcompress.storage.rawio import copy_range, read_exact, write_all
from embcompress.storage.regular import Source, first_bytes, open_regular
from embcompress.storage.zipstore import Extent, pieces

NEW_METADATA = {"format": "pt"}
"""Metadata of a file that is made for new tensors alone."""

_RESERVED = (METADATA_KEY, "format")
"""Metadata entries of embcompress and transformers, which are never tensor names."""


class Safetensors(OneFile):
    """One .safetensors file.

    The format cannot share memory. ``safetensors.torch.save_model`` stores a shared tensor under one of
    its names and notes the others in the metadata, each with the stored name. Those are the aliases.
    """

    format = "safetensors"
    suffixes = (".safetensors",)

    def __init__(self, path: Path, fd: int, header: Header, size: int) -> None:
        self.path = path
        self.aliases: Mapping[str, str] = _noted_aliases(header)
        further = {alias: replace(header.tensors[name], name=alias) for alias, name in self.aliases.items()}
        self.tensors = {**header.tensors, **further}
        self.size = size
        self.weight_files = (path,)
        self.config: Mapping[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self._source = Source(path, fd)
        self._header = header
        text = header.metadata.get(METADATA_KEY)
        self.description = None if text is None else parse_description(text, str(path))

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Recognize a file by its suffix, or by a plausible length and a header that begins with ``{``."""
        if path.suffix in cls.suffixes:
            return path.is_file()
        head = first_bytes(path, 9)
        return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT

    @classmethod
    def open(cls, path: Path) -> Self:
        fd = open_regular(path)
        try:
            size = os.fstat(fd).st_size
            return cls(path, fd, read_header(fd, size, path), size)
        except BaseException:
            os.close(fd)
            raise

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        info = self.tensors[name]
        dtype, columns = info.readable_dtype(), info.shape[-1]
        stored = np.empty((stop - start, columns), dtype.storage)
        offset = self._offset(name) + dtype.nbytes(start * columns)
        read_exact(self._fd, offset, stored, str(self.path))
        return dtype.decode(stored)

    def _offset(self, name: str) -> int:
        return self._header.offsets[self.aliases.get(name, name)]

    def bytes_of(self, name: str) -> Iterator[bytes]:
        return pieces(self._fd, Extent(self._offset(name), self.tensors[name].nbytes, None), str(self.path))

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """By default all tensors under the names they are stored by, without aliases.

        The bytes are read, whereas the safetensors library maps the file into memory. If a mapped file is
        cut short meanwhile, the process is killed.
        """
        return super().torch_state(self._header.tensors if names is None else names)

    def read_into(self, name: str, out: NDArray[np.uint8]) -> None:
        read_exact(self._fd, self._offset(name), out, str(self.path))

    def remainder(
        self,
        edit: Edit | None = None,  # noqa: ARG002
        description: Description | None = None,  # noqa: ARG002
    ) -> Mapping[str, object]:
        """The metadata entries that are neither ours nor aliases."""
        ours = {METADATA_KEY, *self.aliases}
        return {f"metadata {k}": v for k, v in self._header.metadata.items() if k not in ours}

    def check_integrity(self, progress: Progress = silent) -> None:
        """Do nothing: the format has no checksums."""

    def sidecar(self, key: str) -> object:
        return parse_entry(self._header.metadata, key, self.path)

    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Exactly the bytes that :meth:`write` produces."""
        entries, text = self._planned(edit, description)
        return 8 + len(text) + sum(entry.nbytes for entry in entries)

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        entries, text = self._planned(edit, description)
        places = dict(zip((e.name for e in entries), offsets(entries, 8 + len(text)), strict=True))
        advance = Steps(progress, "write", sum(e.nbytes for e in entries))
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, len(text).to_bytes(8, "little") + text)
            # One thread copies the tensors that are kept while this one computes the new ones.
            with ThreadPoolExecutor(1) as executor:
                carried = executor.submit(self._carry, target, entries, places, advance)
                for entry in entries:
                    if isinstance(entry, NewTensor):
                        os.lseek(fd, places[entry.name], os.SEEK_SET)
                        for block in entry.blocks():
                            advance(write_all(fd, entry.dtype.encode(block)))
                carried.result()
        finally:
            os.close(fd)
        return ()

    def _carry(
        self,
        target: Path,
        entries: Sequence[TensorInfo | NewTensor],
        places: Mapping[str, int],
        advance: Callable[[int], None],
    ) -> None:
        """Copy the tensors that are kept to their offsets in ``target``, and sync them to disk."""
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for entry in entries:
                if isinstance(entry, TensorInfo):
                    os.lseek(fd, places[entry.name], os.SEEK_SET)
                    copy_range(self._fd, self._offset(entry.name), entry.nbytes, fd, advance)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _planned(
        self, edit: Edit, description: Description | None
    ) -> tuple[list[TensorInfo | NewTensor], bytes]:
        """The tensors of the new file in order, and its header."""
        entries, aliases = self._layout(edit)
        old = self._header.metadata
        metadata = {k: v for k, v in old.items() if k != METADATA_KEY and k not in self.aliases}
        text = described_text(entries, metadata | aliases, description)
        return entries, text

    def _layout(self, edit: Edit) -> tuple[list[TensorInfo | NewTensor], dict[str, str]]:
        """The tensors of the new file in order, and the aliases that its metadata notes.

        Wide types come first so that every tensor is aligned: readers view the bytes in place, which
        needs offsets divisible by the element size. The format's own writer sorts for the same reason.
        """
        names = {name: [name] for name in self._header.tensors}
        for alias, name in self.aliases.items():
            names[name].append(alias)
        entries: list[TensorInfo | NewTensor] = []
        # If the source notes no aliases, neither does the copy: its reader knows them from the model.
        aliases = dict(edit.aliases) if self.aliases else {}
        for group in names.values():
            entries += [new for new in edit.add if new.replaces in group]
            kept = [name for name in group if name not in edit.remove]
            entries += [self.tensors[name] for name in kept[:1]]
            aliases |= {alias: kept[0] for alias in kept[1:]}
        return sorted(entries, key=lambda e: -(e.dtype.bits if e.dtype else 0)), aliases

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Rewrite the header in place, padded to its old length."""
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            header = read_header(fd, os.fstat(fd).st_size, target)
            metadata = {**header.metadata, METADATA_KEY: description.to_json()}
            text = header_text(list(header.tensors.values()), metadata)
            assert len(text) <= header.length, "no room was kept for the description"
            os.pwrite(fd, text.ljust(header.length), 8)
        finally:
            os.close(fd)


def write_new(target: Path, tensor: NewTensor) -> None:
    """Write a file with one new tensor to ``target``, which does not exist yet."""
    write_tensors(target, [tensor], NEW_METADATA, None, lambda _: None)


def new_size(tensor: NewTensor) -> int:
    """Size in bytes of the file that :func:`write_new` makes."""
    return size_of_new([tensor], NEW_METADATA, None)


def write_tensors(
    target: Path,
    tensors: Sequence[NewTensor],
    metadata: Mapping[str, str],
    description: Description | None,
    advance: Callable[[int], None],
) -> None:
    """Write a file of new tensors, in the given order, to ``target``, which does not exist yet."""
    text = described_text(tensors, metadata, description)
    with target.open("xb", buffering=0) as file:
        write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in tensor.blocks():
                advance(write_all(file.fileno(), tensor.dtype.encode(block)))


def size_of_new(
    tensors: Sequence[NewTensor], metadata: Mapping[str, str], description: Description | None
) -> int:
    """Size in bytes of the file that :func:`write_tensors` makes."""
    text = described_text(tensors, metadata, description)
    return 8 + len(text) + sum(tensor.nbytes for tensor in tensors)


def _noted_aliases(header: Header) -> dict[str, str]:
    """The aliases in the metadata: entries that map a new name to a stored tensor."""
    return {
        alias: name
        for alias, name in sorted(header.metadata.items())
        if name in header.tensors
        and alias not in header.tensors
        and alias not in _RESERVED
        and alias.isprintable()
        and len(alias) <= NAME_LIMIT
    }
