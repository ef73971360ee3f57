"""The embedding table of another checkpoint as a source of vectors, with the tokens of its tokenizer."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint import FORMATS, open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.vectors.base import check_dimension
from embcompress.checkpoint.vectors.compressed import tokens_of
from embcompress.checkpoint.vectors.fasttext.subwords import subwords_of
from embcompress.data.vectors.base import Choice, Matrix
from embcompress.data.vectors.composing import compose
from embcompress.data.vectors.gathering import gather
from embcompress.data.vectors.vocabularies import vocabulary_of
from embcompress.errors import UsageError
from embcompress.methods.decoding import decoded
from embcompress.progress import Progress
from embcompress.rows import Rows
from embcompress.tables import locate


class CheckpointTable:
    """A .safetensors, PyTorch or ONNX file or a Hugging Face directory, compressed or dense.

    This includes compressed word vectors, and fastText models, whose n-grams are composed to words.
    """

    name = "checkpoint"

    def recognizes(self, path: Path, head: bytes) -> bool:  # noqa: ARG002 - the formats read it themselves
        """Whether any checkpoint format recognizes ``path``."""
        return any(kind.recognizes(path) for kind in FORMATS)

    def read(self, path: Path, choice: Choice, progress: Progress) -> Matrix:
        """The vectors of the tokens that ``choice`` keeps, in its order.

        Raises:
            UsageError: there is no table, or no vocabulary for its rows.
            InputError: the checkpoint is corrupt.
        """
        with open_checkpoint(path) as checkpoint:
            rows = _rows(checkpoint)
            check_dimension(rows.shape[1], str(path))
            if (subwords := subwords_of(checkpoint)) is not None:
                words = tokens_of(checkpoint, rows.shape[0]) or ()
                return compose(rows, enumerate(words), subwords, choice, path, progress)
            return gather(rows, vocabulary_of(checkpoint, rows.shape[0]), choice, path, progress)


def _rows(checkpoint: Checkpoint) -> Rows:
    """The only token table, decoded if it is compressed."""
    remedy = "give a checkpoint with one token table"
    records = checkpoint.description.tables if checkpoint.description is not None else ()
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        raise UsageError(f"{checkpoint.path}: {len(records)} compressed tables: {names}", remedy=remedy)
    if records:
        return decoded(checkpoint, records[0])
    try:
        return locate(checkpoint)[0].rows
    except UsageError as error:
        # Its remedy is for commands that can choose among tables with an option.
        reason = error.message.removeprefix(f"{checkpoint.path}: ")
        raise UsageError(f"{checkpoint.path}: {reason}", remedy=remedy) from None
