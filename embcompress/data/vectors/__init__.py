"""Pretrained word vectors: the registry of their sources, and the function that reads them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from embcompress.checkpoint.names import check_not_pointer
from embcompress.checkpoint.vectors.base import VectorFormat, check_token
from embcompress.checkpoint.vectors.fasttext import FastText
from embcompress.checkpoint.vectors.registry import VECTOR_FORMATS
from embcompress.checkpoint.vectors.stream import Stream, read_head
from embcompress.checkpoint.vectors.streamed import StreamedFormat
from embcompress.data.vectors.base import Choice, Kept, Matrix, WordVectors, check_finite, decode_token
from embcompress.data.vectors.checkpoint_table import CheckpointTable
from embcompress.data.vectors.gathering import gather
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress, silent
from embcompress.rows import Rows

__all__ = ["SOURCES", "WordVectors", "read_vectors", "source_of"]

Source = VectorFormat | CheckpointTable

SOURCES: tuple[Source, ...] = (*VECTOR_FORMATS, CheckpointTable())
"""Sources of vectors in the order in which they are tried; contract tests run over them. A new file format
joins ``VECTOR_FORMATS`` in ``checkpoint/vectors/registry.py``."""


def read_vectors(
    path: str | Path, wanted: Collection[str] | None = None, *, progress: Progress = silent
) -> WordVectors:
    """Read word vectors of any format, in the order of the file.

    Args:
        path: GloVe or word2vec text, word2vec binary, a fastText model (each plain or compressed), a NumPy
            matrix NAME.npy next to NAME.vocab.txt, or a checkpoint with its tokenizer.
        wanted: keep these tokens only. A token that the file does not hold gets the vector of the first
            token that equals it in lower case; with a fastText model, that of its n-grams. None keeps
            everything.
        progress: called with the number of bytes read.

    Returns:
        The kept tokens, spelled as in ``wanted``, and their vectors.

    Raises:
        UsageError: the file or one that belongs to it is missing, or it holds no wanted token.
        InputError: the file is corrupt or of an unknown format.
    """
    path = Path(path)
    kind, choice = source_of(path), Choice(wanted)
    matrix = _matrix(kind, path, choice, progress)
    tokens = choice.tokens
    if not tokens and wanted is None:
        raise InputError(f"{path}: names no tokens at all", remedy="download it again")
    if not tokens:
        some = "".join(f", {token[:40]!r}" for token in sorted(wanted or ())[:3])
        raise UsageError(
            f"{path}: none of its {choice.seen:,} tokens is one of the {len(wanted or ()):,} wanted{some}",
            remedy="give vectors of the same language, whose tokens are words",
        )
    return WordVectors(tokens, matrix)


def source_of(path: Path) -> Source:
    """The first source that recognizes the vectors in ``path``.

    Raises:
        UsageError: there is no such file.
        InputError: no source recognizes it.
    """
    if not path.is_file() and not path.is_dir():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy="give a file of word vectors or a checkpoint")
    head = b"" if path.is_dir() else read_head(path)
    check_not_pointer(head, path)
    kind = next((kind for kind in SOURCES if kind.recognizes(path, head)), None)
    if kind is None:
        raise InputError(
            f"{path}: is not a known file of word vectors",
            remedy=f"give {', '.join(kind.name for kind in SOURCES)}",
        )
    return kind


def _matrix(kind: Source, path: Path, choice: Choice, progress: Progress) -> Matrix:
    """The vectors of the tokens that ``choice`` keeps, in its order; the others are not parsed."""
    if isinstance(kind, CheckpointTable):
        return kind.read(path, choice, progress)
    if isinstance(kind, StreamedFormat):
        return _streamed(kind, path, choice, progress)
    if isinstance(kind, FastText):
        return CheckpointTable().read(path, choice, progress)
    stored = kind.open(path, progress)
    try:
        rows = Rows(stored.shape, stored.dtype, stored.rows)
        return gather(rows, enumerate(map(decode_token, stored.tokens())), choice, path, progress)
    finally:
        stored.close()


def _streamed(kind: StreamedFormat, path: Path, choice: Choice, progress: Progress) -> Matrix:
    """Like :func:`_matrix` for a stream, of which only the numbers of kept tokens are parsed."""
    with Stream(path, progress) as stream:
        found = kind.entries(stream)
        kept = Kept(found.dimension)
        for token, numbers, place in found.each:
            where = found.where(place)
            check_token(token, where)
            slot = choice.slot(decode_token(token))
            if slot is not None:
                row = found.parse(numbers, where)
                check_finite(row, where)
                kept.put(slot, row)
        return kept.matrix()
