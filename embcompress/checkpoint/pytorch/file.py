"""The torch format: files of ``torch.save``, read and written without importing torch.

The pickle inside is read as inert data (``checkpoint/pickles``), and tensors by byte range. Both the
zip format and the one before torch 1.6 can be read; only the zip format is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import AS_IT_IS, Edit, Reading
from embcompress.checkpoint.description import Description, parse_description
from embcompress.checkpoint.names import check_name
from embcompress.checkpoint.one_file import OneFile
from embcompress.checkpoint.pickles.nodes import NO_REPLACEMENTS
from embcompress.checkpoint.pytorch.archive import (
    LEGACY_MAGIC,
    ZIP_MAGIC,
    Archive,
    is_exported,
    read_archive,
)
from embcompress.checkpoint.pytorch.edits import amended_pickle, check_kept, edited_objects, plan_rewrite
from embcompress.checkpoint.pytorch.elements import Remainder, view_bytes
from embcompress.checkpoint.pytorch.for_torch import loaded_by_torch, state_for_torch, torch_reads
from embcompress.checkpoint.pytorch.state import (
    BARE_NAME,
    StateDict,
    dotted,
    find_state_dict,
    metadata_text,
)
from embcompress.checkpoint.pytorch.strided import read_strided
from embcompress.checkpoint.pytorch.tensors import View, describe, is_tensor, parse_view, unwrap
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.errors import InputError
from embcompress.progress import Progress, Steps, silent
from embcompress.storage.rawio import read_exact
from embcompress.storage.regular import Source, open_regular, opened
from embcompress.storage.zipstore import Extent, ZipWriter, archive_size, check_record, pieces, read_directory

_FOLDER: Final = "archive"
"""Folder of the records in files that we write; torch accepts any."""
_PICKLE: Final = f"{_FOLDER}/data.pkl"
_SMALL_RECORDS: Final = {f"{_FOLDER}/byteorder": b"little", f"{_FOLDER}/version": b"3\n"}
_LONGEST_ERRORS = 48
"""Most bytes by which the two measured errors of a table can be longer than predicted ones, as text."""


class TorchFile(OneFile):
    """One file of ``torch.save``: a state dict, or a training checkpoint that contains one.

    Attributes:
        container: the keys and positions that lead from the saved object to the state dict; empty if the
            object is the state dict.
    """

    format = "torch"
    suffixes = (".pt", ".pth", ".bin", ".ckpt")
    shares_memory = True

    def __init__(self, path: Path, fd: int, archive: Archive, reading: Reading = AS_IT_IS) -> None:
        self.path = path
        self.size = os.fstat(fd).st_size
        self.weight_files = (path,)
        self.config: Mapping[str, Any] = {}
        self._source = Source(path, fd)
        self._archive = archive
        self._state = find_state_dict(archive.root, str(path), reading.state)
        self.reading = reading
        self.container = self._state.keys
        self.tensors = _tensors(self._state.node, path)
        self._views = _views(self._state.node, self.tensors, path)
        self.aliases = _aliases(self._views)
        text = metadata_text(self._state.node)
        self.description = None if text is None else parse_description(text, str(path))
        chosen = reading.state is not None or self.description is not None
        self.notes = (*archive.notes, *_notes(self._state, chosen=chosen))

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Recognize a file by the magic bytes of either format, or by its suffix to report what is wrong."""
        if not path.is_file():
            return False
        if path.suffix in cls.suffixes:
            return True
        with opened(path) as file:
            head = file.read(len(LEGACY_MAGIC))
            if head == LEGACY_MAGIC:
                return True
            if not head.startswith(ZIP_MAGIC):
                return False
            try:
                names = read_directory(file.fileno(), str(path), deflated=True)
            except InputError:
                return False
            return is_exported(names) or any(name.endswith("/data.pkl") for name in names)

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls.open_as(path, AS_IT_IS)

    @classmethod
    def open_as(cls, path: Path, reading: Reading) -> Self:
        fd = open_regular(path)
        try:
            return cls(path, fd, read_archive(fd, path, only_weights=reading.weights_only), reading)
        except BaseException:
            os.close(fd)
            raise

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        info = self.tensors[name]
        dtype, columns = info.readable_dtype(), info.shape[-1]
        view = self._views[name]
        offset = self._archive.storages[view.storage.key].offset + view.begin
        if view.stride == (columns, 1):
            stored = np.empty((stop - start, columns), dtype.storage)
            read_exact(self._fd, offset + start * columns * view.itemsize, stored, str(self.path))
            return dtype.decode(stored)
        strides = tuple(step * view.itemsize for step in view.stride)
        stored = read_strided(
            self._fd,
            offset + start * strides[0],
            (stop - start, columns),
            strides,
            view.itemsize,
            str(self.path),
        )
        return dtype.decode(stored.view(dtype.storage).reshape(stop - start, columns))

    def bytes_of(self, name: str) -> Iterator[bytes]:
        return view_bytes(self._fd, self._archive, self._views[name], str(self.path))

    def remainder(
        self,
        edit: Edit | None = None,
        description: Description | None = None,
    ) -> Mapping[str, object]:
        """The saved object, flattened: path -> value, with optimizers and tensors that are not dense."""
        where, state = str(self.path), self._state
        dense = {name for name, info in self.tensors.items() if info.layout == "dense"}
        shared: dict[object, str] = {}
        for name, view in self._views.items():
            if view.span:
                shared.setdefault(view.memory, name)
        replace = NO_REPLACEMENTS
        fresh: Mapping[int, NewTensor] = {}
        if edit is not None:
            edited = edited_objects(self._archive, state, edit, description, where)
            replace = {key: node for key, node in edited.replace.items() if key != id(state.anchor)}
            fresh = edited.fresh
        return Remainder(self._fd, self._archive, state, dense, shared, fresh, replace, where).flat()

    def check_edit(self, edit: Edit) -> None:
        """Refuse also an edit that frees nothing, as something else in the file keeps the bytes."""
        super().check_edit(edit)
        check_kept(self._archive, self._state, edit, str(self.path))

    def check_integrity(self, progress: Progress = silent) -> None:
        """Compare every record with its CRC-32, which torch itself does not do."""
        total = sum(extent.size for extent in self._archive.records.values())
        advance = Steps(progress, "check", total)
        for name, extent in self._archive.records.items():
            check_record(self._fd, name, extent, str(self.path), advance)

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """As torch reads them, what shares memory still sharing it."""
        if self._state.anchor is self._state.node and torch_reads(self._archive):
            state = loaded_by_torch(self.path)
            for key in self.container:
                state = state[key]
            return dict(state) if names is None else {name: state[name] for name in names}
        return state_for_torch(self._fd, self._archive, self._state.node, names, str(self.path))

    def sidecar(self, key: str) -> object:
        """The entry ``key`` of the saved object, if the state dict is inside it."""
        root = self._archive.root
        return root.get(key) if self.container and isinstance(root, dict) else None

    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Exact, but for the digits of errors that are still to be measured."""
        plan = plan_rewrite(self._archive, self._state, edit, description, str(self.path))
        sizes = {_record(key): plan.nbytes_of(key) for key in plan.storages}
        sizes |= {name: len(data) for name, data in _SMALL_RECORDS.items()}
        tables = () if description is None else description.tables
        return archive_size({**sizes, _PICKLE: len(plan.pickle)}.items()) + _LONGEST_ERRORS * len(tables)

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write the edited file to ``target`` in the zip format."""
        plan = plan_rewrite(self._archive, self._state, edit, description, str(self.path))
        advance = Steps(progress, "write", plan.nbytes)
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            archive = ZipWriter(fd)
            for key, source in plan.storages.items():
                name = _record(key)
                if isinstance(source, NewTensor):
                    archive.add(name, source.nbytes, _counted(_encoded(source), advance))
                elif len(source) == 1 and source[0].crc is not None:
                    archive.copy(name, self._fd, source[0], advance)
                else:
                    archive.add(name, plan.nbytes_of(key), _counted(self._pieces(source), advance))
            for name, data in _SMALL_RECORDS.items():
                archive.add(name, len(data), [data])
            archive.add(_PICKLE, len(plan.pickle), [plan.pickle])  # last, so that amend can replace it
            archive.finish()
        finally:
            os.close(fd)
        return plan.warnings

    def _pieces(self, extents: Iterable[Extent]) -> Iterator[bytes]:
        for extent in extents:
            yield from pieces(self._fd, extent, str(self.path))

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Rewrite the last record, the pickle, with ``description``."""
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            archive = read_archive(fd, target)
            pickle = amended_pickle(archive, find_state_dict(archive.root, str(target)), description)
            records = dict(archive.records)
            last, _ = records.popitem()
            assert last == _PICKLE, f"{target} was not written by this class"
            writer = ZipWriter.resume(fd, records)
            writer.add(_PICKLE, len(pickle), [pickle])
            writer.finish()
        finally:
            os.close(fd)


def _notes(state: StateDict, *, chosen: bool) -> tuple[str, ...]:
    """Notes for the user of a training checkpoint about where its weights are.

    Args:
        state: the state dict that is taken.
        chosen: whether the user named it, or a compressed file leaves no choice.
    """
    where = (f"the state dict stands under '{state.name}'",) if state.keys and not state.bare else ()
    if state.bare and state.anchor is not state.node:
        place = f" under '{state.name}'" if state.keys else ""
        where = (
            f"the table is a tensor without a name{place}, here called {BARE_NAME}: a compressed copy holds "
            "the state dict of its parts in that place, and expand writes the tensor again",
        )
    twins = (
        f"'{name}' holds other tensors of the same names, which stay"
        + ("" if chosen else f"; --state {name} takes it instead")
        for name in map(dotted, state.twins)
    )
    return (*where, *twins)


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, TensorInfo]:
    """Every tensor of the state dict; other values in it (counters, configurations) are left out."""
    found: dict[str, TensorInfo] = {}
    for name, node in state.items():
        if is_tensor(node):
            check_name(name, path)
            found[name] = describe(name, node, str(path))
    return found


def _views(state: Mapping[Any, Any], tensors: Mapping[str, TensorInfo], path: Path) -> dict[str, View]:
    """The dense tensors among ``tensors`` as views of storages."""
    views = ((name, parse_view(unwrap(state[name]), str(path))) for name in tensors)
    return {name: view for name, view in views if view is not None}


def _aliases(views: Mapping[str, View]) -> dict[str, str]:
    """Names that share their memory with an earlier name; an empty tensor is never an alias."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, view in views.items():
        if view.span and first.setdefault(view.memory, name) != name:
            aliases[name] = first[view.memory]
    return aliases


def _record(key: str) -> str:
    """Name of the record that holds a storage."""
    return f"{_FOLDER}/data/{key}"


def _encoded(tensor: NewTensor) -> Iterator[NDArray[Any]]:
    return (tensor.dtype.encode(block) for block in tensor.blocks())


def _counted(
    data: Iterator[NDArray[Any]] | Iterator[bytes], advance: Callable[[int], None]
) -> Iterator[bytes | NDArray[Any]]:
    for piece in data:
        yield piece
        advance(len(piece) if isinstance(piece, bytes) else piece.nbytes)
