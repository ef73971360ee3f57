"""word2vec binary: a header "V d", then tokens with float32 numbers (Mikolov et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embcompress.checkpoint.vectors.base import TOKEN_LIMIT, Written, suffix_of
from embcompress.checkpoint.vectors.header import (
    HEADER_BYTES,
    Header,
    check_claim,
    has_header,
    header_line,
    parse_header,
)
from embcompress.checkpoint.vectors.packing import Sink
from embcompress.checkpoint.vectors.stream import Stream
from embcompress.checkpoint.vectors.streamed import Entries, Row, StreamedFormat
from embcompress.dtypes import DType
from embcompress.errors import InputError

_TORCH_MAGICS = (b"PK", b"\x80")
"""First bytes of PyTorch files (zip archives or pickles), which are called .bin, too."""


class Word2VecBinary(StreamedFormat):
    r"""``V d\n``, then token, space and d little-endian float32, plain or compressed.

    word2vec writes a line feed after each vector; files without them (GoogleNews) are read as well.
    """

    name = "word2vec binary"
    suffixes = (".bin",)

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Recognize the suffix, or a header; word2vec text has been tried before."""
        if suffix_of(path) == ".bin":
            return bool(head) and not head.startswith(_TORCH_MAGICS)
        return has_header(head)

    def is_certain(self, path: Path, head: bytes) -> bool:  # noqa: ARG002 - other files are called .bin too
        """Recognize a header; word2vec text has been tried before."""
        return has_header(head)

    def entries(self, stream: Stream) -> Entries:
        path, data = stream.path, stream.read()
        header = parse_header(data[:HEADER_BYTES], path)
        least = header.length + header.count * (4 * header.dimension + 1)
        if not stream.compressed and stream.size < least:
            raise InputError(
                f"{path}: line 1 claims {header.count:,} vectors of {header.dimension:,} numbers, "
                f"at least {least:,} bytes; the file has {stream.size:,}",
                remedy="download it again",
            )
        each = _entries(stream, data[header.length :], header)
        return Entries(header.dimension, each, _parse, lambda entry: f"{path}: entry {entry:,}")

    def write_to(self, file: Sink, new: Written) -> None:
        file.write(header_line(new.shape))
        for tokens, rows in new.entries():
            for token, row in zip(tokens, rows.astype("<f4"), strict=True):
                if b" " in token:
                    raise InputError(
                        f"token {token[:40].decode('utf-8', 'replace')!r} holds a space, which would end it",
                        remedy="make the compressed file again from its source",
                    )
                file.write(b"%b %b\n" % (token, row.tobytes()))

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:  # noqa: ARG002
        return len(header_line(shape)) + shape[0] * (4 * shape[1] + 2) + token_bytes


def _parse(numbers: bytes, where: str) -> Row:  # noqa: ARG001 - any bytes are numbers
    return np.frombuffer(numbers, "<f4")


def _entries(stream: Stream, data: bytes, header: Header) -> Iterator[tuple[bytes, bytes, int]]:
    """Token, numbers and entry number of each vector; ``data`` is what was read after the header."""
    nbytes = 4 * header.dimension
    at = 0
    for entry in range(1, header.count + 1):
        while True:
            space = data.find(b" ", at, at + TOKEN_LIMIT + 2)
            if space >= 0 and len(data) - space > nbytes:
                break
            if space < 0 and len(data) - at > TOKEN_LIMIT + 1:
                raise InputError(
                    f"{stream.path}: entry {entry:,}: no space ends its token within {TOKEN_LIMIT:,} bytes",
                    remedy="check that it is a word2vec file, or download it again",
                )
            more = stream.read()
            if not more:
                raise InputError(
                    f"{stream.path}: is cut short in entry {entry:,} of {header.count:,}: "
                    f"{len(data) - at:,} bytes, a token, a space and {nbytes:,} bytes are expected",
                    remedy="download it again",
                )
            data, at = data[at:] + more, 0
        end = space + 1 + nbytes
        yield data[at:space].lstrip(b"\n"), data[space + 1 : end], entry
        at = end
    rest = data[at:]
    while rest:
        if rest.strip(b"\r\n"):
            check_claim(header.count, header, stream.path, more=True)
        rest = stream.read()
