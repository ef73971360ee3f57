"""GloVe text: a token and its numbers a line, nothing else (Pennington et al. 2014)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from embcompress.checkpoint.base import Progress
from embcompress.data.vectors.base import Choice, Matrix, VectorFormat, check_dimension, suffix_of
from embcompress.data.vectors.stream import Stream
from embcompress.data.vectors.textlines import TEXT_SUFFIXES, filled, is_number, parse_numbers, read_lines
from embcompress.errors import InputError


class GloVe(VectorFormat):
    """``token v1 … vd`` lines, plain or gzip; the first line says what d is.

    Tokens may hold spaces (". . ." in glove.840B), except the first one. A first line of two whole
    numbers is the header of word2vec text instead.
    """

    name = "GloVe text"

    def recognizes(self, path: Path, head: bytes) -> bool:
        """By the suffix of a text file, or by a number behind the first word."""
        fields = head.split(b"\n", 1)[0].split(None, 2)
        return bool(head) and (suffix_of(path) in TEXT_SUFFIXES or (len(fields) > 1 and is_number(fields[1])))

    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """See the base class."""
        with Stream(path, progress) as stream:
            lines = filled(stream.lines())
            number, line = next(lines, (0, b""))
            if not line:
                raise InputError(f"{path}: holds nothing but blank lines", remedy="download it again")
            _, *fields = line.split()
            where = f"{path}: line {number}"
            check_dimension(len(fields), where)
            # Whether it is kept or not: were this line broken, every other one would be misread.
            parse_numbers(b" ".join(fields), len(fields), where)
            return read_lines(chain([(number, line)], lines), len(fields), choice, path)
