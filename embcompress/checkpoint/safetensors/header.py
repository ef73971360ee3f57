"""Read and write the header of a safetensors file, checking everything it claims.

The safetensors package is not used because the work is on byte ranges (rows are read one block at a
time, everything else is copied by the kernel) and because each kind of broken header needs its own
message. The README of the safetensors project describes the format.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcompress.checkpoint.description import METADATA_KEY, Description
from embcompress.checkpoint.names import check_name, check_not_pointer
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.storage.rawio import read_at

HEADER_LIMIT = 100_000_000
"""Longest header that the safetensors library accepts, in bytes."""

_AMEND_ROOM = 128
"""Spaces kept after the header for each described table. Measured figures may print longer than
predicted ones, and the data after the header cannot move."""

_AGAIN = "download or write it again"


@dataclass(frozen=True)
class Header:
    """A header that matches its file.

    Attributes:
        length: bytes of the JSON text; the data begin at 8 + length.
        tensors: every tensor by name, in the order of their bytes.
        offsets: first byte of each tensor, counted from the start of the file.
        metadata: the text entries under ``__metadata__``.
    """

    length: int
    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]


def header_text(entries: Sequence[TensorInfo | NewTensor], metadata: Mapping[str, str]) -> bytes:
    """The JSON header for tensors stored one after another in the given order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry, offset in zip(entries, offsets(entries, 0), strict=True):
        assert entry.dtype is not None
        header[entry.name] = {
            "dtype": entry.dtype.name,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def described_text(
    entries: Sequence[TensorInfo | NewTensor], metadata: Mapping[str, str], description: Description | None
) -> bytes:
    """The header with our record in its metadata, padded so that the record can still grow.

    Raises:
        InputError: the header would be longer than readers accept.
    """
    room = 0
    if description is not None:
        metadata = {**metadata, METADATA_KEY: description.to_json()}
        room = _AMEND_ROOM * (len(description.tables) + 1)
    text = header_text(entries, metadata)
    text += b" " * (room + -(len(text) + room) % 8)
    if len(text) > HEADER_LIMIT:
        raise InputError(f"the new header would take {len(text):,} bytes; limit {HEADER_LIMIT:,}")
    return text


def offsets(entries: Sequence[TensorInfo | NewTensor], first: int) -> list[int]:
    """Byte offset of each entry when they are stored one after another from ``first`` on."""
    *begins, _ = itertools.accumulate((e.nbytes for e in entries), initial=first)
    return begins


def read_header(fd: int, size: int, path: Path) -> Header:
    """Read the header and check every entry against the file.

    Raises:
        InputError: the header is broken or does not match the ``size`` of the file.
    """
    head = read_at(fd, 64, 0)
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
    parsed = _parse_json(read_at(fd, length, 8), path)
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
        kind = "is cut short" if data < expected else "has bytes after its last tensor"
        raise InputError(
            f"{path}: {kind}: {data:,} bytes of data, the header describes {expected:,}", remedy=_AGAIN
        )
    return Header(
        length,
        {s.info.name: s.info for s in spans},
        {s.info.name: 8 + length + s.start for s in spans},
        metadata,
    )


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """The header as a dict; duplicate keys and excessive nesting are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(k for k, _ in pairs).most_common(1)
            raise InputError(f"{path}: key {twice} appears twice in the header", remedy=_AGAIN)
        # JSON can escape half of a surrogate pair, but it cannot be encoded: a ValueError, like bad JSON.
        "".join(text for pair in pairs for text in pair if isinstance(text, str)).encode()
        return found

    try:
        # Decode as UTF-8 first: given bytes, json would guess at other encodings.
        parsed = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: the header is not JSON ({reason})", remedy=_AGAIN) from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: the header is not a JSON object", remedy=_AGAIN)
    return parsed


@dataclass(frozen=True)
class _Span:
    info: TensorInfo
    start: int
    stop: int


def _span(name: str, entry: Any, path: Path) -> _Span:
    """One header entry, checked: a known dtype, a possible shape, and offsets that match both."""
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
                f"{where}: shape {shape} or offsets {offsets} are not sizes below 2^63", remedy=_AGAIN
            )
    elements = 1
    for extent in shape:
        elements *= extent
        if elements >= 1 << 63:
            raise InputError(f"{where}: shape {shape} has 2^63 elements or more", remedy=_AGAIN)
    if (elements * dtype.bits) % 8:
        raise InputError(
            f"{where}: {elements} elements of {dtype.bits} bits are not whole bytes", remedy=_AGAIN
        )
    nbytes = dtype.nbytes(elements)
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise InputError(
            f"{where}: offsets {offsets} do not span the {nbytes:,} bytes of shape {shape} in {dtype.name}",
            remedy=_AGAIN,
        )
    return _Span(TensorInfo(name, dtype, tuple(shape), nbytes), offsets[0], offsets[1])
