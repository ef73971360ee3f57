"""The safetensors format: an 8-byte length, a JSON header, then the tensors without gaps.

The header is read here rather than by the safetensors package because the work is on byte ranges
(rows are read one block at a time, everything else is copied by the kernel) and because every
broken header must be told apart. https://huggingface.co/docs/safetensors has the format.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from embcompress.checkpoint.base import Checkpoint, Edit, NewTensor, Progress, TensorInfo, silent
from embcompress.checkpoint.description import METADATA_KEY, Description, parse_description
from embcompress.checkpoint.dtypes import DTYPES, Floats
from embcompress.checkpoint.naming import check_name, check_not_pointer
from embcompress.checkpoint.rawio import copy_range, read_exact, start_writeback, write_all
from embcompress.errors import InputError

HEADER_LIMIT = 100_000_000
"""Longest header the format's own reader takes, in bytes."""

_AGAIN = "download or write it again"
_AMEND_ROOM = 128
"""Spaces kept after the header for each described table: measured figures may print longer than
predicted ones, and the header cannot move the data behind it."""


@dataclass(frozen=True)
class _Header:
    length: int
    """Bytes of the JSON text; the data begin at 8 + length."""
    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    """First byte of each tensor, counted from the beginning of the file."""
    metadata: Mapping[str, str]


class Safetensors(Checkpoint):
    """One .safetensors file."""

    format = "safetensors"

    def __init__(self, path: Path, fd: int, header: _Header, size: int) -> None:
        self.path = path
        self.tensors = header.tensors
        self.aliases: Mapping[str, str] = {}
        self.size = size
        self.weight_files = (path,)
        self.config: Mapping[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self._fd = fd
        self._header = header
        text = header.metadata.get(METADATA_KEY)
        self.description = None if text is None else parse_description(text, str(path))

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """By the suffix, or by a header that begins with ``{`` after its length."""
        if path.suffix == ".safetensors":
            return path.is_file()
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(9)
        return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open ``path``; see the base class."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            return cls(path, fd, _read_header(fd, size, path), size)
        except BaseException:
            os.close(fd)
            raise

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start:stop`` as floats; see the base class."""
        info = self.tensors[name]
        dtype = info.dtype
        assert dtype is not None
        if len(info.shape) != 2 or not dtype.is_table:
            raise InputError(f"{name}: {dtype.name} of shape {list(info.shape)} cannot be read as a table")
        columns = info.shape[1]
        stored = np.empty((stop - start, columns), dtype.storage)
        offset = self._header.offsets[name] + dtype.nbytes(start * columns)
        read_exact(self._fd, offset, stored, str(self.path))
        return dtype.decode(stored)

    def check_integrity(self, progress: Progress = silent) -> None:
        """Nothing to check: the format carries no checksums."""

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write the edited file to ``target``; see the base class."""
        entries = self._layout(edit)
        metadata = {k: v for k, v in self._header.metadata.items() if k != METADATA_KEY}
        room = 0
        if description is not None:
            metadata[METADATA_KEY] = description.to_json()
            room = _AMEND_ROOM * (len(description.tables) + 1)
        text = _header_text(entries, metadata)
        text += b" " * (room + -(len(text) + room) % 8)
        if len(text) > HEADER_LIMIT:
            raise InputError(f"the new header would take {len(text):,} bytes; limit {HEADER_LIMIT:,}")
        places = dict(zip((e.name for e in entries), _offsets(entries, 8 + len(text)), strict=True))
        total = sum(e.nbytes for e in entries)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("write", done, total)

        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(fd, len(text).to_bytes(8, "little") + text)
            # What is carried goes first: the disk takes it while the new tensors are computed.
            for entry in entries:
                if isinstance(entry, TensorInfo):
                    os.lseek(fd, places[entry.name], os.SEEK_SET)
                    copy_range(self._fd, self._header.offsets[entry.name], entry.nbytes, fd, advance)
            start_writeback(fd)
            for entry in entries:
                if isinstance(entry, NewTensor):
                    os.lseek(fd, places[entry.name], os.SEEK_SET)
                    for block in entry.blocks():
                        advance(write_all(fd, entry.dtype.encode(block)))
            start_writeback(fd)
        finally:
            os.close(fd)
        return ()

    def _layout(self, edit: Edit) -> list[TensorInfo | NewTensor]:
        """What the new file holds, in order: wide types first so that every tensor is aligned.

        Readers view the bytes in place, which needs offsets divisible by the element size; the
        format's own writer sorts for the same reason.
        """
        entries: list[TensorInfo | NewTensor] = []
        for name, info in self.tensors.items():
            entries += [new for new in edit.add if new.replaces == name]
            if name not in edit.remove:
                entries.append(info)
        return sorted(entries, key=lambda e: -(e.dtype.bits if e.dtype else 0))

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Rewrite the header in place, padded to the length it had; see the base class."""
        fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        try:
            header = _read_header(fd, os.fstat(fd).st_size, target)
            metadata = {**header.metadata, METADATA_KEY: description.to_json()}
            text = _header_text(list(header.tensors.values()), metadata)
            assert len(text) <= header.length, "no room was kept for the description"
            os.pwrite(fd, text.ljust(header.length), 8)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _header_text(entries: list[TensorInfo | NewTensor], metadata: Mapping[str, str]) -> bytes:
    """The JSON header for tensors that lie one after another in the given order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry, offset in zip(entries, _offsets(entries, 0), strict=True):
        assert entry.dtype is not None
        header[entry.name] = {
            "dtype": entry.dtype.name,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _offsets(entries: list[TensorInfo | NewTensor], first: int) -> list[int]:
    """Where each entry begins when they lie one after another from ``first`` on."""
    *begins, _ = itertools.accumulate((e.nbytes for e in entries), initial=first)
    return begins


def _read_header(fd: int, size: int, path: Path) -> _Header:
    """Read and check the whole header; nothing is believed before it is compared with the file."""
    head = os.pread(fd, 64, 0)
    if size == 0:
        raise InputError(f"{path}: is empty, 0 bytes", remedy=_AGAIN)
    check_not_pointer(head, path)
    if size < 8:
        raise InputError(f"{path}: {size} bytes, a safetensors file has at least 8", remedy=_AGAIN)
    length = int.from_bytes(head[:8], "little")
    if length > HEADER_LIMIT:
        raise InputError(
            f"{path}: header length {length:,}, limit {HEADER_LIMIT:,}",
            remedy="if it is a safetensors file at all, split the model over shards",
        )
    if 8 + length > size:
        raise InputError(f"{path}: header length {length:,}, but the file has {size:,} bytes", remedy=_AGAIN)
    parsed = _parse_json(os.pread(fd, length, 8), path)
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path}: __metadata__ must map text to text", remedy=_AGAIN)
    spans = sorted(
        (_span(name, entry, path) for name, entry in parsed.items()), key=lambda s: (s.start, s.stop)
    )
    expected = 0
    for span in spans:
        if span.start != expected:
            kind = "overlaps the tensor before it" if span.start < expected else "leaves a hole before it"
            raise InputError(
                f"{path}: tensor {span.info.name} begins at byte {span.start:,} of the data and {kind}, "
                f"expected {expected:,}",
                remedy=_AGAIN,
            )
        expected = span.stop
    data = size - 8 - length
    if expected != data:
        kind = "is cut short" if data < expected else "has bytes behind its last tensor"
        raise InputError(
            f"{path}: {kind}: {data:,} bytes of data, the header describes {expected:,}", remedy=_AGAIN
        )
    return _Header(
        length,
        {s.info.name: s.info for s in spans},
        {s.info.name: 8 + length + s.start for s in spans},
        metadata,
    )


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """The header as a dict, with duplicate keys and endless nesting refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(k for k, _ in pairs).most_common(1)
            raise InputError(f"{path}: key {twice} stands twice in the header", remedy=_AGAIN)
        # Half of a surrogate pair can be escaped in JSON but not written: a ValueError, as bad JSON is.
        "".join(text for pair in pairs for text in pair if isinstance(text, str)).encode()
        return found

    try:
        # UTF-8 only: given bytes, json would guess at other encodings.
        parsed = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: the header is not JSON ({reason})", remedy=_AGAIN) from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: the header is no JSON object", remedy=_AGAIN)
    return parsed


@dataclass(frozen=True)
class _Span:
    info: TensorInfo
    start: int
    stop: int


def _span(name: str, entry: Any, path: Path) -> _Span:
    """One header entry, checked: known dtype, sane shape, offsets that fit both."""
    check_name(name, path)
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: needs exactly dtype, shape and data_offsets", remedy=_AGAIN)
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise InputError(
            f"{where}: unknown dtype {entry['dtype']!r}, known are {', '.join(DTYPES)}",
            remedy="install a newer embcompress, or convert the tensor",
        )
    dtype = DTYPES[entry["dtype"]]
    shape, offsets = entry["shape"], entry["data_offsets"]
    for values in (shape, offsets):
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 1 << 63 for v in values):
            raise InputError(
                f"{where}: shape {shape} or offsets {offsets} are no sizes below 2^63", remedy=_AGAIN
            )
    elements = 1
    for extent in shape:
        elements *= extent
        if elements >= 1 << 63:
            raise InputError(f"{where}: shape {shape} has 2^63 elements or more", remedy=_AGAIN)
    if (elements * dtype.bits) % 8:
        raise InputError(
            f"{where}: {elements} elements of {dtype.bits} bits are no whole bytes", remedy=_AGAIN
        )
    nbytes = dtype.nbytes(elements)
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise InputError(
            f"{where}: offsets {offsets} do not span the {nbytes:,} bytes of shape {shape} in {dtype.name}",
            remedy=_AGAIN,
        )
    return _Span(TensorInfo(name, dtype, tuple(shape), nbytes), offsets[0], offsets[1])
