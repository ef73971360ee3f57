"""Layout of a new model: which tensors go into its data file, and how to write both files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embcompress.checkpoint.onnx.model import GRAPH, INITIALIZER, METADATA, PROTOBUF_LIMIT, RAW, DataExtent
from embcompress.checkpoint.tensors import NewTensor
from embcompress.storage.protobuf import field, head
from embcompress.storage.rawio import copy_range, write_all

if TYPE_CHECKING:
    import onnx

DATA_SUFFIX: Final = ".data"
"""Suffix of the data file, after the name of the model."""

_SMALLEST_OUTSIDE = 1024
"""Bytes of the smallest new tensor that goes into a data file, as in other writers."""

_PAGE, _PAGED_FROM, _ALIGNED = 4096, 1 << 20, 64
"""Large tensors start on a page, so that readers can map them; others are aligned to 64 bytes."""

_ROOM = PROTOBUF_LIMIT - (64 << 20)
"""Most bytes of weights in a model of one file; the rest of the limit is for the graph."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the new model.

    Attributes:
        header: everything except its data.
        source: where the data comes from; None if the header holds it.
    """

    header: onnx.TensorProto
    source: DataExtent | NewTensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of data to write."""
        return 0 if self.source is None else self.source.nbytes

    @property
    def was_outside(self) -> bool:
        """Whether the data comes from a data file."""
        return isinstance(self.source, DataExtent) and self.source.field == 0


@dataclass(frozen=True)
class GraphLayout:
    """A new model that is ready to be written.

    Attributes:
        proto: everything except the initializers and our own metadata.
        entries: the initializers.
        nested: tensors inside nodes with data in a data file; their headers are parts of ``proto``.
        outside: offsets of the entries that go into the data file, by index in ``entries`` followed by
            ``nested``.
        tail: our own metadata by key.
    """

    proto: onnx.ModelProto
    entries: Sequence[Entry]
    nested: Sequence[Entry]
    outside: Mapping[int, int]
    tail: Mapping[str, str]

    @property
    def all(self) -> list[Entry]:
        """``entries`` followed by ``nested``."""
        return [*self.entries, *self.nested]

    @property
    def data_size(self) -> int:
        """Bytes of the data file; 0 if there is none."""
        every = self.all
        return max((offset + every[place].nbytes for place, offset in self.outside.items()), default=0)

    def model_size(self) -> int:
        """Bytes of the model without its data file, whose name is assumed to be long."""
        self.place("x" * 255)
        before, graph, headers = self._pieces()
        return len(before) + len(head(GRAPH, 1 << 31)) + graph_size(graph, headers) + len(tail(self.tail))

    def place(self, name: str) -> None:
        """Record in the headers where in the data file ``name`` each tensor is."""
        every = self.all
        for place, offset in self.outside.items():
            header, kept = every[place].header, ("location", "offset", "length")
            others = [(e.key, e.value) for e in header.external_data if e.key not in kept]
            del header.external_data[:]
            size = str(every[place].nbytes)
            for key, value in (("location", name), ("offset", str(offset)), ("length", size), *others):
                header.external_data.add(key=key, value=value)
            header.data_location = header.EXTERNAL

    def write_data(self, path: Path, fds: Mapping[Path, int], advance: Callable[[int], None]) -> None:
        """Write the data file and sync it."""
        every = self.all
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for place, offset in self.outside.items():
                os.lseek(fd, offset, os.SEEK_SET)
                _write(fd, every[place].source, fds, advance)
            os.ftruncate(fd, self.data_size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def write_model(self, path: Path, fds: Mapping[Path, int], advance: Callable[[int], None]) -> None:
        """Write the model without its data file."""
        before, graph, headers = self._pieces()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, before + head(GRAPH, graph_size(graph, headers)) + graph)
            for place, (header, nbytes) in enumerate(headers):
                write_all(fd, head(INITIALIZER, len(header) + nbytes) + header)
                if nbytes:
                    _write(fd, self.entries[place].source, fds, advance)
            write_all(fd, tail(self.tail))
        finally:
            os.close(fd)

    def _pieces(self) -> tuple[bytes, bytes, list[tuple[bytes, int]]]:
        """The model without its graph, the graph without initializers, and their headers and data sizes."""
        outer, graph = type(self.proto)(), self.proto.graph
        outer.CopyFrom(self.proto)
        outer.ClearField("graph")
        headers = []
        for place, entry in enumerate(self.entries):
            header = entry.header.SerializeToString(deterministic=True)
            inside = entry.source is not None and place not in self.outside
            if inside:
                source = entry.source
                number = source.field if isinstance(source, DataExtent) else RAW
                header += head(number or RAW, entry.nbytes)
            headers.append((header, entry.nbytes if inside else 0))
        before = outer.SerializeToString(deterministic=True)
        return before, graph.SerializeToString(deterministic=True), headers


def arranged(
    proto: onnx.ModelProto, entries: Sequence[Entry], nested: Sequence[Entry], tail: Mapping[str, str]
) -> GraphLayout:
    """Decide which tensors go into a data file.

    These are the tensors that came from one and, if there is a data file, new tensors of some size; if the
    weights are too large for one file, all tensors of some size.
    """
    every = [*entries, *nested]
    apart = any(entry.was_outside for entry in every) or sum(e.nbytes for e in entries) > _ROOM
    outside: dict[int, int] = {}
    end = 0
    for place, entry in enumerate(every):
        crowded = sum(e.nbytes for e in entries) > _ROOM
        moves = entry.was_outside or (
            apart and entry.nbytes >= _SMALLEST_OUTSIDE and (crowded or isinstance(entry.source, NewTensor))
        )
        if moves:
            step = _PAGE if entry.nbytes >= _PAGED_FROM else _ALIGNED
            outside[place] = end + -end % step
            end = outside[place] + entry.nbytes
    return GraphLayout(proto, entries, nested, outside, tail)


def tail(entries: Mapping[str, str]) -> bytes:
    """Serialize metadata to the last fields of a model, where it can be replaced."""
    pairs = ((key.encode(), value.encode()) for key, value in entries.items())
    return b"".join(field(METADATA, field(1, key) + field(2, value)) for key, value in pairs)


def graph_size(graph: bytes, headers: Iterable[tuple[bytes, int]]) -> int:
    """Bytes of a graph with its initializers."""
    sizes = (len(header) + nbytes for header, nbytes in headers)
    return len(graph) + sum(len(head(INITIALIZER, size)) + size for size in sizes)


def _write(
    fd: int,
    source: DataExtent | NewTensor | None,
    fds: Mapping[Path, int],
    advance: Callable[[int], None],
) -> None:
    if isinstance(source, NewTensor):
        for block in source.blocks():
            advance(write_all(fd, source.dtype.encode(block)))
    elif source is not None:
        copy_range(fds[source.file], source.offset, source.nbytes, fd, advance)
