"""What compressed files of vectors hold: gzip, bzip2, and zip archives with one file of vectors in them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from embcompress.errors import InputError, UsageError
from embcompress.storage.rawio import naming
from embcompress.storage.regular import opened
from embcompress.storage.zipstore import DirectorySource

_GZIP_MAGIC = b"\x1f\x8b"
_BZIP2_MAGIC = (b"BZh", b"1AY&SY")
"""First bytes of a bzip2 file; the digit between them is the size of its blocks."""
_ZIP_MAGIC = b"PK\x03\x04"
_MAGIC_BYTES = 10

_GZIP_LEVEL = 6
"""Compression level of gzip files: the default of the gzip program; Python's takes much longer."""

Content = IO[bytes] | gzip.GzipFile | bz2.BZ2File
"""What a file holds, decompressed while it is read."""

Sink = BinaryIO | gzip.GzipFile | bz2.BZ2File
"""A file that is written, compressed or not."""

_OTHERS = (".pkl", "/byteorder", ".npy", "/archive_format")
"""Endings of names in the archives of torch.save, also of one that failed, numpy.savez and torch.export."""
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, struct.error)
"""What the library raises for broken archives; the first two also for what it does not read."""
_VECTOR_SUFFIXES = (".txt", ".vec", ".bin", ".ftz", ".w2v", ".glove", "")
"""Suffixes of the files of vectors in zip archives."""
_COMPANIONS = ("readme", "license", "licence", "copying", "notice")
"""First words of the names of text files that come with vectors."""
_SHOWN = 8
"""Most files of an archive that a message names."""


def unpacked(file: io.BufferedReader, path: Path) -> tuple[str, Content] | None:
    """What a compressed file holds, by its first bytes; None if it is not compressed.

    Args:
        file: opened at its start.
        path: its name.

    Returns:
        The kind of compression, as messages call it, and the contents as a stream.

    Raises:
        UsageError: a zip archive with several files of vectors.
        InputError: a zip archive that cannot be read.
    """
    magic = file.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    if magic.startswith(_GZIP_MAGIC):
        return "gzip", gzip.GzipFile(fileobj=file, mode="rb")
    if magic.startswith(_BZIP2_MAGIC[0]) and magic.endswith(_BZIP2_MAGIC[1]):
        return "bzip2", bz2.BZ2File(file)
    if magic.startswith(_ZIP_MAGIC) and (archive := _archive(file)) is not None:
        return "zip", _open_member(archive, _only_member(archive, path), path)
    return None


def is_zip_of_vectors(path: Path) -> bool:
    """Whether a file is a zip archive with files in it that may be vectors, and not a PyTorch file."""
    with naming(path), opened(path) as file:
        return file.peek(_MAGIC_BYTES).startswith(_ZIP_MAGIC) and _archive(file) is not None


def name_inside(path: Path) -> str:
    """The name of the file of vectors in a zip archive; for other files their own name.

    Raises:
        UsageError, InputError: see :func:`unpacked`.
    """
    with naming(path), opened(path) as file:
        zipped = file.peek(_MAGIC_BYTES).startswith(_ZIP_MAGIC)
        archive = _archive(file) if zipped else None
        return path.name if archive is None else PurePosixPath(_only_member(archive, path).filename).name


@contextlib.contextmanager
def packed(target: Path) -> Iterator[Sink]:
    """Make a file to write to, compressed if its name ends in ``.gz`` or ``.bz2``.

    Raises:
        UsageError: the name is that of a zip archive.
    """
    if target.suffix.lower() == ".zip":
        raise UsageError(f"{target.name}: zip archives are not written", remedy="name it .gz or .bz2 with -o")
    with target.open("xb") as file:
        match target.suffix.lower():
            case ".gz":
                # Store neither name nor time, so that the same vectors give the same bytes.
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as content:
                    yield content
            case ".bz2":
                with bz2.BZ2File(file, "wb") as content:
                    yield content
            case _:
                yield file


def _archive(file: io.BufferedReader) -> zipfile.ZipFile | None:
    """A zip archive that may hold vectors; None for a PyTorch file, or if no directory can be read."""
    try:
        archive = zipfile.ZipFile(DirectorySource(file.fileno(), closefd=False))
    except _ZIP_ERRORS:
        return None
    finally:
        file.seek(0)
    is_other = any(name.endswith(_OTHERS) for name in archive.namelist())
    return archive if not is_other and _members(archive) else None


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files that may be vectors, by their names; one file alone may have any name."""
    files = [e for e in archive.infolist() if not (e.filename.endswith("/") or _is_companion(e.filename))]
    likely = [e for e in files if PurePosixPath(e.filename).suffix.lower() in _VECTOR_SUFFIXES]
    return files if len(files) == 1 else likely


def _is_companion(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return hidden or path.name.lower().startswith(_COMPANIONS)


def _only_member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    members = _members(archive)
    if len(members) > 1:
        names = [entry.filename for entry in members]
        listed = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise UsageError(
            f"{path}: holds {len(names):,} files that may be vectors: {listed}",
            remedy=f"unpack the one you want: unzip {path.name} {names[0]}",
        )
    return members[0]


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> IO[bytes]:
    # Other methods may take any amount of memory, as the archive says.
    known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not known or member.flag_bits & 1:
        how = "compressed in a way that is not read here" if not known else "encrypted"
        raise InputError(f"{path}: {member.filename} is {how}", remedy=f"unpack it: unzip {path.name}")
    try:
        return archive.open(member)
    except _ZIP_ERRORS as error:
        raise InputError(
            f"{path}: {member.filename} cannot be read ({error})", remedy="download it again"
        ) from None
