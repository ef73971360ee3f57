"""word2vec text: a header "V d", then one line per vector; fastText writes it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from embcompress.checkpoint.vectors.base import Written, suffix_of
from embcompress.checkpoint.vectors.header import (
    Header,
    check_claim,
    has_header,
    has_text_behind_header,
    header_line,
    parse_header,
)
from embcompress.checkpoint.vectors.packing import Sink
from embcompress.checkpoint.vectors.stream import Stream
from embcompress.checkpoint.vectors.streamed import Entries, StreamedFormat
from embcompress.checkpoint.vectors.textlines import (
    TEXT_SUFFIXES,
    filled,
    line_entries,
    text_size,
    write_lines,
)
from embcompress.dtypes import DType


class Word2VecText(StreamedFormat):
    """``V d``, then ``token v1 … vd`` lines, plain or compressed (``-binary 0``, .vec)."""

    name = "word2vec text"
    suffixes = TEXT_SUFFIXES

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Recognize a header, with either a text suffix or a number as text after the first token."""
        if not has_header(head):
            return False
        suffix = suffix_of(path)
        return suffix in TEXT_SUFFIXES or (suffix != ".bin" and has_text_behind_header(head))

    def entries(self, stream: Stream) -> Entries:
        lines = filled(stream.lines())
        header = parse_header(next(lines, (0, b""))[1], stream.path)
        return line_entries(_claimed(header, lines, stream.path), header.dimension, stream.path)

    def write_to(self, file: Sink, new: Written) -> None:
        file.write(header_line(new.shape))
        write_lines(file, new)

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        return len(header_line(shape)) + text_size(shape, dtype, token_bytes)


def _claimed(header: Header, lines: Iterable[tuple[int, bytes]], path: Path) -> Iterator[tuple[int, bytes]]:
    """Pass the lines on, and check that there are as many as the header claims."""
    found = 0
    for found, line in enumerate(lines, 1):
        if found <= header.count:
            yield line
    check_claim(found, header, path)
