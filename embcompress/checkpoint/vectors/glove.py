"""GloVe text: one line per vector, with its token and its numbers (Pennington et al. 2014)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from embcompress.checkpoint.vectors.base import Written, check_dimension, suffix_of
from embcompress.checkpoint.vectors.packing import Sink
from embcompress.checkpoint.vectors.stream import Stream
from embcompress.checkpoint.vectors.streamed import Entries, StreamedFormat
from embcompress.checkpoint.vectors.textlines import (
    TEXT_SUFFIXES,
    filled,
    is_number,
    line_entries,
    parse_numbers,
    text_size,
    write_lines,
)
from embcompress.dtypes import DType
from embcompress.errors import InputError


class GloVe(StreamedFormat):
    """``token v1 … vd`` lines, plain or compressed; the first line determines d.

    Tokens may hold spaces (". . ." in glove.840B), except the first one. A first line of two integers
    is the header of word2vec text instead.
    """

    name = "GloVe text"
    suffixes = TEXT_SUFFIXES

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Recognize a text suffix, or text with a number after the first word."""
        first = head.split(b"\n", 1)[0]
        fields = first.split(None, 2)
        is_text = b"\0" not in first and len(fields) > 1 and is_number(fields[1])
        return bool(head) and (suffix_of(path) in TEXT_SUFFIXES or is_text)

    def is_certain(self, path: Path, head: bytes) -> bool:  # noqa: ARG002 - many files are called .txt
        """Recognize a first line of a word and at least two numbers, before a line that ends in a number."""
        lines = head.split(b"\n", 2)  # the last line is cut off, unless it is the whole file
        first = lines[0].split()
        numbers = first[1:] if len(lines) > 1 else first[1:-1]
        second = lines[1].split() if len(lines) > 2 else []
        return (
            b"\0" not in head
            and len(first) > 2
            and all(map(is_number, numbers))
            and (not second or is_number(second[-1]))
        )

    def entries(self, stream: Stream) -> Entries:
        path = stream.path
        lines = filled(stream.lines())
        number, line = next(lines, (0, b""))
        if not line:
            raise InputError(f"{path}: holds nothing but blank lines", remedy="download it again")
        fields = line.split()[0 if line[:1].isspace() else 1 :]  # the first token may be a blank
        where = f"{path}: line {number}"
        check_dimension(len(fields), where)
        # Always parse the first line: if it is broken, every other line would be misread.
        parse_numbers(len(fields), b" ".join(fields), where)
        return line_entries(chain([(number, line)], lines), len(fields), path)

    def write_to(self, file: Sink, new: Written) -> None:
        write_lines(file, new)

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:
        return text_size(shape, dtype, token_bytes)
