"""Walks protobuf messages on disk field by field, without reading the contents of fields.

An ONNX file is one message that contains the weights. They stay in the file and are read by byte range,
whatever their size; only the rest is parsed. Models of SentencePiece are such messages too. The encoding is
described at https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from embcompress.errors import InputError
from embcompress.storage.rawio import read_at

_WINDOW = 1 << 16
"""Bytes read at a time to find tags."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number: field number.
        is_bytes: whether it holds bytes, text or a message.
        start: offset of its tag.
        begin: offset of its contents.
        end: offset after its last byte.
    """

    number: int
    is_bytes: bool
    start: int
    begin: int
    end: int

    @property
    def length(self) -> int:
        """Bytes of its contents."""
        return self.end - self.begin


class Wire:
    """A file that holds one message.

    Args:
        fd: the file, open for reading.
        size: bytes of the file.
        what: name of the file in error messages.
    """

    def __init__(self, fd: int, size: int, what: str) -> None:
        self._fd, self.size, self._what = fd, size, what
        self._window, self._window_start = b"", 0

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message from ``begin`` to ``end``.

        Raises:
            InputError: these bytes are not a message.
        """
        at = begin
        while at < end:
            tag, after = self._varint(at, end)
            number, kind = tag >> 3, tag & 7
            if kind == _BYTES:
                length, after = self._varint(after, end)
                stop = after + length
            elif kind == _VARINT:
                stop = self._varint(after, end)[1]
            elif kind in _FIXED:
                stop = after + _FIXED[kind]
            else:
                raise self._corrupt(at)
            if number == 0 or stop > end:
                raise self._corrupt(at)
            yield Field(number, kind == _BYTES, at, after, stop)
            at = stop

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes ``start:stop`` of the file.

        Raises:
            InputError: the file is shorter.
        """
        data = read_at(self._fd, stop - start, start)
        if len(data) < stop - start:
            raise self._corrupt(start)
        return data

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        for place in range(at, min(end, at + 10)):
            byte = self._byte(place)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
        raise self._corrupt(at)

    def _byte(self, at: int) -> int:
        if not 0 <= at - self._window_start < len(self._window):
            self._window, self._window_start = read_at(self._fd, _WINDOW, at), at
            if not self._window:
                raise self._corrupt(at)
        return self._window[at - self._window_start]

    def _corrupt(self, at: int) -> InputError:
        return InputError(
            f"{self._what}: is cut off or corrupt at byte {at:,} of {self.size:,}",
            remedy="copy or download it again",
        )


def varint(value: int) -> bytes:
    """Encode a number as a protobuf varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def head(number: int, length: int) -> bytes:
    """Encode the tag and length of a field of ``length`` bytes."""
    return varint(number << 3 | _BYTES) + varint(length)


def field(number: int, data: bytes) -> bytes:
    """Encode a field that holds bytes, text or a message."""
    return head(number, len(data)) + data
