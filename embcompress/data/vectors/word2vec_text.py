"""word2vec text: a header "V d", then a token and its numbers a line; fastText writes it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from embcompress.checkpoint.base import Progress
from embcompress.data.vectors.base import Choice, Matrix, VectorFormat, suffix_of
from embcompress.data.vectors.header import check_count, has_header, has_text_behind_header, parse_header
from embcompress.data.vectors.stream import Stream
from embcompress.data.vectors.textlines import TEXT_SUFFIXES, filled, read_lines


class Word2VecText(VectorFormat):
    """``V d``, then ``token v1 … vd`` lines, plain or gzip (``-binary 0``, .vec)."""

    name = "word2vec text"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the header, and by the suffix or a number in text behind the first token."""
        if not has_header(head):
            return False
        suffix = suffix_of(path)
        return suffix in TEXT_SUFFIXES or (suffix != ".bin" and has_text_behind_header(head))

    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """See the base class."""
        with Stream(path, progress) as stream:
            lines = filled(stream.lines())
            header = parse_header(next(lines, (0, b""))[1], path)
            matrix = read_lines(_at_most(header.count, lines, path), header.dimension, choice, path)
        check_count(choice.seen, header.count, path)
        return matrix


def _at_most(count: int, lines: Iterable[tuple[int, bytes]], path: Path) -> Iterator[tuple[int, bytes]]:
    for place, line in enumerate(lines):
        if place == count:
            check_count(count, count, path, more=True)
        yield line
