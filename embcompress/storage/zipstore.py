"""Uncompressed zip archives as ``torch.save`` makes them: a strict directory reader and a streaming writer.

The standard library parses the central directory. Everything it would tolerate is refused here, because
records are read and copied by byte range. The writer aligns every record to 64 bytes so that torch can
map it, padding an extra field with the id ``FB``, as torch does.
Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from embcompress.errors import InputError
from embcompress.storage.rawio import CHUNK, copy_range, read_at, write_all

DIRECTORY_LIMIT = 64 << 20
"""Longest central directory read, in bytes; a record takes about 100."""
ALIGNMENT = 64
"""Every record's data begin at a multiple of this, in bytes."""
ZIP64_SIZE = 0xFFFFFFFF
"""Sizes and offsets from here on need 64-bit fields."""
ZIP64_COUNT = 0xFFFF
"""From this number of records on, the directory needs its 64-bit form."""

AGAIN = "download or save it again"

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_UTF8 = 0x800
_DAY = 0x21  # 1980-01-01: the same input gives the same bytes


@dataclass(frozen=True)
class Extent:
    """A byte range of a file.

    Attributes:
        offset: first byte, counted from the start of the file.
        size: number of bytes.
        crc: their CRC-32, None if the file stores no checksums.
        packed: bytes that a deflated record takes in the file; None for one that is stored as it is.
    """

    offset: int
    size: int
    crc: int | None
    packed: int | None = None


def read_directory(fd: int, where: str, *, deflated: bool = False) -> Mapping[str, Extent]:
    """The records of an uncompressed zip, in the order of their bytes.

    Args:
        fd: opened for reading; its position is moved.
        where: name of the file, for error messages.
        deflated: whether records may be deflated; see :func:`check_stored`.

    Raises:
        InputError: the zip is cut short, compressed or encrypted, or its records are duplicated,
            overlap or lie outside the file.
    """
    try:
        with zipfile.ZipFile(DirectorySource(fd, closefd=False)) as archive:
            entries = sorted(archive.infolist(), key=lambda e: e.header_offset)
            limit = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OSError) as error:
        # zipfile calls a file that cannot be read "not a zip file"; the disk's own error says more.
        read_at(fd, _LOCAL.size, max(0, os.fstat(fd).st_size - _LOCAL.size))
        raise InputError(f"{where}: its zip directory cannot be read ({error})", remedy=AGAIN) from None
    # If checksums are switched off (set_crc32_options), torch writes zeros for all of them.
    checked = any(entry.CRC for entry in entries)
    records: dict[str, Extent] = {}
    seen: set[str] = set()
    end = 0
    for entry in entries:
        # Torch's reader ignores case, so two spellings would be ambiguous there.
        if (folded := entry.filename.lower()) in seen:
            raise InputError(f"{where}: holds two records named {entry.filename}", remedy=AGAIN)
        seen.add(folded)
        if entry.flag_bits & 0x1:
            raise InputError(f"{where}: record {entry.filename} is encrypted", remedy="decrypt it first")
        packed = entry.compress_size if entry.compress_type == zipfile.ZIP_DEFLATED and deflated else None
        if packed is None and (
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        ):
            raise _compressed(where, entry.filename, entry.compress_size, entry.file_size)
        if entry.header_offset < end or (end == 0 and entry.header_offset > 0):
            raise InputError(
                f"{where}: record {entry.filename} begins at byte {entry.header_offset:,}, where the record "
                f"before it ends at {end:,}",
                remedy=AGAIN,
            )
        start = _data_offset(fd, entry, where) if entry.header_offset < limit else entry.header_offset
        end = start + entry.compress_size
        if end > limit:
            raise InputError(
                f"{where}: record {entry.filename} ends at byte {end:,}, after the last byte for "
                f"records, {limit:,}",
                remedy=AGAIN,
            )
        crc = entry.CRC if checked else None
        records[entry.filename] = Extent(start, entry.file_size, crc, packed)
    return records


def check_stored(records: Mapping[str, Extent], where: str) -> None:
    """Refuse records that are deflated.

    Raises:
        InputError: with the first of them.
    """
    for name, extent in records.items():
        if extent.packed is not None:
            raise _compressed(where, name, extent.packed, extent.size)


def _compressed(where: str, name: str, packed: int, size: int) -> InputError:
    return InputError(
        f"{where}: record {name} is compressed, {packed:,} bytes for {size:,}; torch.save stores records "
        "uncompressed",
        remedy="save it again with torch.save",
    )


class DirectorySource(io.FileIO):
    """A file that refuses to read more at a time than a directory may take."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_LIMIT:
            raise ValueError(f"{size:,} bytes long, limit {DIRECTORY_LIMIT:,}")
        return super().read(-1 if size is None else size)


def _data_offset(fd: int, entry: zipfile.ZipInfo, where: str) -> int:
    """Offset of a record's bytes, after its local header and the header's extra field."""
    head = read_at(fd, _LOCAL.size, entry.header_offset)
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        raise InputError(
            f"{where}: no record begins at byte {entry.header_offset:,}, where the directory has one",
            remedy=AGAIN,
        )
    name_length, extra_length = _LOCAL.unpack(head)[-2:]
    # Streaming readers use the name in the local header, torch the one in the directory.
    name = read_at(fd, int(name_length), entry.header_offset + _LOCAL.size)
    if name != entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437"):
        raise InputError(
            f"{where}: record {entry.filename} is named {name.decode('utf-8', 'replace')} where it begins",
            remedy=AGAIN,
        )
    return entry.header_offset + _LOCAL.size + int(name_length) + int(extra_length)


def pieces(fd: int, extent: Extent, where: str) -> Iterator[bytes]:
    """The bytes of ``extent``, a few megabytes at a time.

    Raises:
        InputError: the file ends too early; ``where`` names it.
    """
    done = 0
    while done < extent.size:
        data = read_at(fd, min(CHUNK, extent.size - done), extent.offset + done)
        if not data:
            missing = extent.size - done
            raise InputError(
                f"{where}: ends at byte {extent.offset + done:,}, {missing:,} bytes early", remedy=AGAIN
            )
        yield data
        done += len(data)


def check_record(
    fd: int, name: str, extent: Extent, where: str, advance: Callable[[int], None] | None = None
) -> None:
    """Compare a record with its checksum, if it has one.

    Args:
        fd: the archive.
        name: name of the record, for the error.
        extent: byte range of the record.
        where: name of the file, for error messages.
        advance: called with the number of bytes of each step.

    Raises:
        InputError: the CRC-32 does not match the bytes.
    """
    if extent.crc is None:
        return
    crc = 0
    for data in pieces(fd, extent, where):
        crc = zlib.crc32(data, crc)
        if advance:
            advance(len(data))
    if crc != extent.crc:
        raise InputError(
            f"{where}: record {name} has CRC-32 {crc:08x}, expected {extent.crc:08x}: the file is damaged",
            remedy="download it again",
        )


@dataclass(frozen=True)
class _Written:
    name: bytes
    header: int
    size: int
    crc: int


class ZipWriter:
    """Writes records one after another; :meth:`finish` completes the zip.

    Args:
        fd: opened for writing; the first record goes to its position.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written: list[_Written] = []

    @classmethod
    def resume(cls, fd: int, records: Mapping[str, Extent]) -> ZipWriter:
        """Continue after ``records`` of an archive that this class wrote; the rest of it is cut off."""
        writer = cls(fd)
        end = 0
        for name, extent in records.items():
            assert extent.crc is not None
            writer._written.append(_Written(name.encode(), end, extent.size, extent.crc))
            end = extent.offset + extent.size
        os.ftruncate(fd, end)
        os.lseek(fd, end, os.SEEK_SET)
        return writer

    def add(self, name: str, size: int, pieces: Iterable[bytes | NDArray[Any]]) -> None:
        """Append a record whose ``pieces`` add up to ``size`` bytes."""
        header = self._begin(name, size, 0)
        crc = done = 0
        for piece in pieces:
            crc = zlib.crc32(piece if isinstance(piece, bytes) else piece.data, crc)
            done += write_all(self._fd, piece)
        assert done == size, f"{name}: {done} bytes written, {size} announced"
        os.pwrite(self._fd, struct.pack("<I", crc), header + 14)
        self._written.append(_Written(name.encode(), header, size, crc))

    def copy(
        self, name: str, source: int, extent: Extent, advance: Callable[[int], None] | None = None
    ) -> None:
        """Append a record with the bytes of ``extent`` in ``source``, whose checksum is known."""
        assert extent.crc is not None
        header = self._begin(name, extent.size, extent.crc)
        copy_range(source, extent.offset, extent.size, self._fd, advance)
        self._written.append(_Written(name.encode(), header, extent.size, extent.crc))

    def _begin(self, name: str, size: int, crc: int) -> int:
        """Write a local header; return its offset."""
        header = os.lseek(self._fd, 0, os.SEEK_CUR)
        write_all(self._fd, _local(name.encode(), header, size, crc))
        return header

    def finish(self) -> None:
        """Write the central directory; nothing may follow."""
        start = os.lseek(self._fd, 0, os.SEEK_CUR)
        directory = b"".join(_central(record) for record in self._written)
        write_all(self._fd, directory + _end(len(self._written), len(directory), start))


def archive_size(records: Iterable[tuple[str, int]]) -> int:
    """Bytes of an archive that :class:`ZipWriter` makes of records with these names and sizes."""
    end, written = 0, []
    for name, size in records:
        record = _Written(name.encode(), end, size, 0)
        written.append(record)
        end += len(_local(record.name, end, size, 0)) + size
    directory = sum(len(_central(record)) for record in written)
    return end + directory + len(_end(len(written), directory, end))


def _local(name: bytes, header: int, size: int, crc: int) -> bytes:
    """A local header at the offset ``header``, padded so that the data after it are aligned."""
    wide = size >= ZIP64_SIZE
    extra = struct.pack("<2H2Q", 1, 16, size, size) if wide else b""
    padding = -(header + _LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
    short = 0xFFFFFFFF if wide else size
    version = 45 if wide else 20
    fields = (version, _UTF8, 0, 0, _DAY, crc, short, short, len(name), len(extra))
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra


def _central(record: _Written) -> bytes:
    """A directory entry; the zip64 extra field holds only the values that do not fit in 32 bits."""
    wide_size = record.size >= ZIP64_SIZE
    wide_header = record.header >= ZIP64_SIZE
    wide = [record.size, record.size] * wide_size + [record.header] * wide_header
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = 0xFFFFFFFF if wide_size else record.size
    header = 0xFFFFFFFF if wide_header else record.header
    version = 45 if wide else 20
    fields = (version, version, _UTF8, 0, 0, _DAY, record.crc, size, size, len(record.name), len(extra))
    return _CENTRAL.pack(b"PK\x01\x02", *fields, 0, 0, 0, 0, header) + record.name + extra


def _end(count: int, size: int, start: int) -> bytes:
    """The end of the central directory, in 64-bit form if a count or offset needs it."""
    wide = b""
    if count >= ZIP64_COUNT or start >= ZIP64_SIZE or size >= ZIP64_SIZE:
        wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
        wide += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        count, size, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    return wide + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
