"""The ONNX format: a graph and its weights in one file, or with the data of weights in other files."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import METADATA_KEY, Description, parse_description, parse_entry
from embcompress.checkpoint.onnx.graph_layout import DATA_SUFFIX, Entry, GraphLayout, arranged, tail
from embcompress.checkpoint.onnx.model import (
    DATA_TYPES,
    METADATA,
    DataExtent,
    Model,
    is_external,
    library,
    metadata_of,
    read_model,
    tensors_in,
)
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.errors import UsageError
from embcompress.progress import Progress, Steps, silent
from embcompress.storage import zipstore
from embcompress.storage.protobuf import Wire
from embcompress.storage.rawio import read_exact, sha256_of, write_all
from embcompress.storage.regular import first_bytes, open_regular
from embcompress.storage.staging import published
from embcompress.storage.targets import is_same

_AMEND_ROOM = 128
"""Bytes by which the record of a table may grow when measured figures are filled in."""

_HEADS = {tag << 3 | 2 for tag in (2, 3, 4, 6, 7, 8)} | {5 << 3}
"""First bytes of the fields that may follow the IR version in a model."""


class OnnxFile(Checkpoint):
    """One .onnx file; its tensors are the initializers of the main graph, and large constants like them."""

    format = "onnx"
    suffixes = (".onnx",)
    holds_graph = True

    def __init__(self, path: Path, fds: dict[Path, int]) -> None:
        self.path = path
        self._fds = fds
        self._model: Model = read_model(fds[path], path)
        self._weights = self._model.weights
        self._metadata = metadata_of(self._model.proto.metadata_props, path)
        self.tensors: Mapping[str, TensorInfo] = {name: w.info for name, w in self._weights.items()}
        self.aliases: Mapping[str, str] = {}
        self.config: Mapping[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        held = [weight.extent for weight in self._weights.values() if weight.extent]
        for extent in (*held, *self._model.nested):
            if extent.file not in fds:
                fds[extent.file] = open_regular(extent.file)
        self.weight_files = tuple(fds)
        self.size = sum(os.fstat(fd).st_size for fd in fds.values())
        text = self._metadata.get(METADATA_KEY)
        self.description = None if text is None else parse_description(text, str(path))

    @functools.cached_property
    def lookups(self) -> Mapping[str, str]:
        """The initializers of which a ``Gather`` reads rows."""
        from embcompress.checkpoint.onnx.uses import lookups_of

        return lookups_of(self._model.proto.graph)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Check the suffix, or that the file begins with an IR version and a field that may follow it."""
        if not path.is_file():
            return False
        if path.suffix in cls.suffixes:
            return True
        first = first_bytes(path, 3)
        return len(first) == 3 and first[0] == 1 << 3 and 0 < first[1] < 64 and first[2] in _HEADS

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open ``path``.

        Raises:
            UsageError: the package onnx is missing.
            InputError: the file is corrupt or unsafe.
        """
        library()
        fds = {path: open_regular(path)}
        try:
            return cls(path, fds)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        info, extent = self.tensors[name], self._weights[name].extent
        dtype, columns = info.readable_dtype(), info.shape[-1]
        assert extent is not None
        stored = np.empty((stop - start, columns), dtype.storage)
        read_exact(
            self._fds[extent.file], extent.offset + dtype.nbytes(start * columns), stored, str(self.path)
        )
        return dtype.decode(stored)

    def bytes_of(self, name: str) -> Iterator[bytes]:
        extent = self._weights[name].extent
        assert extent is not None
        return self._pieces(extent)

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        """Refuse, as the weights of a graph are not a state dict.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.path}: is an ONNX model, graph and all", remedy="run it with onnxruntime")

    def remainder(
        self, edit: Edit | None = None, description: Description | None = None
    ) -> Mapping[str, object]:
        """Return digests of the graph, node by node, and of everything else in the model."""
        from embcompress.checkpoint.onnx.remainder import remainder_of

        proto, metadata = self._model.proto, self._metadata
        headers = list(proto.graph.initializer)
        if edit is not None:
            layout = self._planned(edit, description, filled=True)
            proto, headers = layout.proto, [entry.header for entry in layout.entries]
            metadata = {**metadata, **layout.tail}
        others = (weight for weight in self._weights.values() if weight.info.layout != "dense")
        apart = {f"numbers of {weight.info.name}": weight.extent for weight in others}
        apart |= {f"tensor {i} inside of nodes": extent for i, extent in enumerate(self._model.nested)}
        digests = {
            name: sha256_of(self._pieces(extent)) for name, extent in apart.items() if extent is not None
        }
        return {**remainder_of(proto, headers, metadata), **digests}

    def _pieces(self, extent: DataExtent) -> Iterator[bytes]:
        whole = zipstore.Extent(extent.offset, extent.nbytes, None)
        return zipstore.pieces(self._fds[extent.file], whole, str(extent.file))

    def check_integrity(self, progress: Progress = silent) -> None:
        """Do nothing: the format has no checksums that writers fill in."""

    def sidecar(self, key: str) -> object:
        return parse_entry(self._metadata, key, self.path)

    def check_editable(self) -> None:
        """Refuse a model with training steps, whose other graphs also use the weights."""
        if self._model.proto.training_info:
            raise UsageError(f"{self.path}: holds training steps", remedy="export it for inference")

    def check_edit(self, edit: Edit) -> None:
        """Also refuse a table that is used in ways that cannot be replaced."""
        super().check_edit(edit)
        self._planned(edit, None)

    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Bytes that :meth:`write` would write, with room for the record to grow."""
        layout = self._planned(edit, description)
        room = 0 if description is None else _AMEND_ROOM * (1 + len(description.tables))
        return layout.model_size() + layout.data_size + room

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write the edited model to ``target``, with a data file next to it if the source has one."""
        layout = self._planned(edit, description, filled=True)
        data = target.with_name(target.name + DATA_SUFFIX)
        place = published(data)
        if layout.outside and any(is_same(place, file) for file in self.weight_files):
            raise UsageError(
                f"{place}: holds data of the input, and would be overwritten with data of the output",
                remedy="give the output another name with -o",
            )
        advance = Steps(progress, "write", sum(entry.nbytes for entry in layout.all))
        if layout.outside:
            layout.place(data.name)
            layout.write_data(data, self._fds, advance)
        layout.write_model(target, self._fds, advance)
        return self._transposed_heads(edit) if description is not None else ()

    def _planned(self, edit: Edit, description: Description | None, *, filled: bool = False) -> GraphLayout:
        """Lay out the new model. Unless ``filled``, parts are not read and only sizes are right.

        Raises:
            UsageError: a use of a table cannot be replaced.
            InputError: the nodes of a compressed table have been changed since they were written.
        """
        from embcompress.checkpoint.onnx.building import NODES_KEY, kept_nodes, kept_text
        from embcompress.checkpoint.onnx.surgery import compress, declare, restore

        proto = type(self._model.proto)()
        proto.CopyFrom(self._model.proto)
        ours = {METADATA_KEY, NODES_KEY}
        nodes = self._metadata.get(NODES_KEY)
        if self.description is not None and self.description.tables:
            if edit.remove:
                restore(proto, kept_nodes(nodes or "[]", self.path), edit.remove, self.path)
                nodes = None
        elif edit.add:
            going = [self.tensors[name] for name in dict.fromkeys(new.replaces for new in edit.add)]
            nodes = kept_text(compress(proto, going, edit, self.path, filled=filled))
        if edit.remove:
            declare(proto, edit.remove, edit.add)
        del proto.graph.initializer[:]
        others = [entry for entry in self._model.proto.metadata_props if entry.key not in ours]
        del proto.metadata_props[:]
        proto.metadata_props.extend(others)
        tail = {} if nodes is None else {NODES_KEY: nodes}
        if description is not None:
            tail[METADATA_KEY] = description.to_json()
        inner = [t for t in tensors_in(proto) if is_external(t)]
        nested = [Entry(t, extent) for t, extent in zip(inner, self._model.nested, strict=True)]
        return arranged(proto, self._entries(edit), nested, tail)

    def _entries(self, edit: Edit) -> list[Entry]:
        """The initializers of the new model, in order; new ones replace old ones in place."""
        make = library().TensorProto
        entries: list[Entry] = []
        for old in self._model.proto.graph.initializer:
            for new in (new for new in edit.add if new.replaces == old.name):
                header = make(name=new.name, dims=new.shape, data_type=DATA_TYPES[new.dtype.name])
                entries.append(Entry(header, new))
            if old.name not in edit.remove:
                header = make()
                header.CopyFrom(old)
                entries.append(Entry(header, self._weights[old.name].extent))
        return entries

    def _transposed_heads(self, edit: Edit) -> tuple[str, ...]:
        """Notes about matrices that are a transposed table: some exporters store tied heads that way."""
        notes = []
        for name in dict.fromkeys(new.replaces for new in edit.add):
            table = self.tensors[name]
            for other in self.tensors.values():
                fits = (other.shape, other.dtype) == (table.shape[::-1], table.dtype) and other.is_matrix
                if fits and other.name not in edit.remove and self._is_transposed(other, table):
                    notes.append(
                        f"{other.name} is {name} transposed, as some exporters store a tied head; "
                        "it stays dense"
                    )
        return tuple(notes)

    def _is_transposed(self, head: TensorInfo, table: TensorInfo) -> bool:
        """Whether the first row of ``head`` equals the first column of ``table`` and is not constant."""
        line, step = self.rows(head.name, 0, 1)[0], 4096
        starts = range(0, len(line), step)
        blocks = ((line[i : i + step], self.rows(table.name, i, min(i + step, len(line)))) for i in starts)
        return all(np.array_equal(a, b[:, 0]) for a, b in blocks) and not (line == line[0]).all()

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Replace the last field of the file, which is the record."""
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            *_, last = Wire(fd, size, str(target)).fields(0, size)
            assert last.number == METADATA, f"{target} was not written by this class"
            os.ftruncate(fd, last.start)
            os.lseek(fd, last.start, os.SEEK_SET)
            write_all(fd, tail({METADATA_KEY: description.to_json()}))
        finally:
            os.close(fd)

    @property
    def descriptors(self) -> Mapping[Path, int]:
        return self._fds

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        while self._fds:
            os.close(self._fds.popitem()[1])
