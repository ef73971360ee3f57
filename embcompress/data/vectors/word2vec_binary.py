"""word2vec binary: a header "V d", then tokens with float32 numbers (Mikolov et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embcompress.checkpoint.base import Progress
from embcompress.data.vectors.base import (
    TOKEN_LIMIT,
    Choice,
    Kept,
    Matrix,
    VectorFormat,
    check_finite,
    decode_token,
    suffix_of,
)
from embcompress.data.vectors.header import (
    HEADER_BYTES,
    Header,
    check_count,
    has_header,
    parse_header,
)
from embcompress.data.vectors.stream import Stream
from embcompress.errors import InputError

_TORCH_MAGICS = (b"PK", b"\x80")
"""How PyTorch files begin, as zip archives or pickles; they are called .bin, too."""


class Word2VecBinary(VectorFormat):
    r"""``V d\n``, then token, space and d little-endian float32, plain or gzip.

    The line feed that word2vec writes behind each vector may be there or not (GoogleNews has none).
    """

    name = "word2vec binary"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the suffix, or by a header; word2vec text was asked before."""
        if suffix_of(path) == ".bin":
            return bool(head) and not head.startswith(_TORCH_MAGICS)
        return has_header(head)

    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """See the base class."""
        name = str(path)
        with Stream(path, progress) as stream:
            data = stream.read()
            header = parse_header(data[:HEADER_BYTES], path)
            least = header.length + header.count * (4 * header.dimension + 2)
            if not stream.compressed and stream.size < least:
                raise InputError(
                    f"{path}: line 1 claims {header.count:,} vectors of {header.dimension:,} numbers, "
                    f"at least {least:,} bytes; the file has {stream.size:,}",
                    remedy="download it again",
                )
            kept = Kept(header.dimension)
            for entry, (token, numbers) in enumerate(_entries(stream, data[header.length :], header), 1):
                where = f"{name}: entry {entry:,}"
                slot = choice.slot(decode_token(token, where))
                if slot is not None:
                    row = np.frombuffer(numbers, "<f4")
                    check_finite(row, where)
                    kept.put(slot, row)
            return kept.matrix()


def _entries(stream: Stream, data: bytes, header: Header) -> Iterator[tuple[bytes, bytes]]:
    """Token and numbers of each vector behind the header; ``data`` is what was read of them already."""
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
                    remedy="see that it is a word2vec file, or download it again",
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
        yield data[at:space].lstrip(b"\n"), data[space + 1 : end]
        at = end
    rest = data[at:]
    while rest:
        if rest.strip(b"\r\n"):
            check_count(header.count, header.count, stream.path, more=True)
        rest = stream.read()
