"""The dictionary of a fastText model: words, then labels, each with its count."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from embcompress.checkpoint.vectors.base import TOKEN_LIMIT, check_token
from embcompress.checkpoint.vectors.fasttext.header import FastTextHeader
from embcompress.errors import InputError
from embcompress.storage.rawio import read_at

_CHUNK = 1 << 20
_BEHIND = struct.Struct("<qb")
"""What follows a word and its NUL: how often it was counted, and 0 for a word or 1 for a label."""


@dataclass(frozen=True)
class Dictionary:
    """The entries of a dictionary.

    Attributes:
        words: the words, separated by line feeds.
        labels: the labels, likewise.
        counts: of each word and then of each label.
        end: offset of the first byte after it.
    """

    words: bytes
    labels: bytes
    counts: array[int]
    end: int


def read_dictionary(fd: int, offset: int, header: FastTextHeader, where: str) -> Dictionary:
    """Read the entries that ``header`` claims.

    Args:
        fd: the file.
        offset: where they begin.
        header: says how many there are.
        where: name of the file, for messages.

    Raises:
        InputError: they are cut short, too long, out of order, or hold a line feed.
    """
    words, labels, counts = bytearray(), bytearray(), array("q")
    data, at = b"", 0
    for entry in range(header.words + header.labels):
        if len(data) - at < TOKEN_LIMIT + 1 + _BEHIND.size:
            offset += at
            data, at = read_at(fd, _CHUNK, offset), 0
        end = data.find(b"\0", at)
        if end < 0 or end - at > TOKEN_LIMIT or end + 1 + _BEHIND.size > len(data):
            check_token(data[at : end if end >= 0 else None], f"{where}: entry {entry + 1:,}")
            raise InputError(
                f"{where}: is cut short in entry {entry + 1:,} of {header.words + header.labels:,}",
                remedy="download it again",
            )
        token = data[at:end]
        count, kind = _BEHIND.unpack_from(data, end + 1)
        is_label = entry >= header.words
        if kind != is_label or b"\n" in token:
            wrong = "holds a line feed" if b"\n" in token else f"is of kind {kind}, expected {int(is_label)}"
            raise InputError(
                f"{where}: entry {entry + 1:,}, {token[:40].decode('utf-8', 'replace')!r}, {wrong}",
                remedy="save it again with fastText",
            )
        part = labels if is_label else words
        part += token + b"\n"
        counts.append(count)
        at = end + 1 + _BEHIND.size
    return Dictionary(bytes(words[:-1]), bytes(labels[:-1]), counts, offset + at)


def entries(tokens: Iterable[bytes], kind: int, counts: Iterator[int]) -> Iterator[bytes]:
    """The bytes of entries; ``kind`` is 0 for words and 1 for labels."""
    for token in tokens:
        yield b"%b\0%b" % (token, _BEHIND.pack(next(counts), kind))
