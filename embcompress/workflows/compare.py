"""open both models → tokens → hidden states of both, batch by batch → how alike they are."""

from __future__ import annotations

from pathlib import Path

from embcompress.choices import DEFAULT_DEVICE, LEAST_TEXTS, MAX_LENGTH, TEXT_COLUMN
from embcompress.data.counting import read_texts
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.errors import InputError
from embcompress.pretrained.models import Pretrained, open_pretrained
from embcompress.pretrained.tokens import Tokens, encoded
from embcompress.progress import Progress, silent
from embcompress.reports.comparison import CompareResult
from embcompress.training.devices import runtime
from embcompress.training.likeness import check_alike, measure


def compare(
    path: str | Path,
    teacher: str | Path,
    texts: str | Path,
    *,
    text_column: str = TEXT_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    max_length: int = MAX_LENGTH,
    device: str = DEFAULT_DEVICE,
    progress: Progress = silent,
) -> CompareResult:
    """Measure what compression did to a model of a Hugging Face directory, on texts without labels.

    Args:
        path: the directory of the compressed model.
        teacher: the directory of the model it was made from.
        texts: a file of texts; each distinct text counts once.
        text_column: header of the texts where they are in columns; a number where there is no header.
        text_format: how the texts are written.
        max_length: tokens that are read of a text.
        device: where to compute, one of ``choices.DEVICES``.
        progress: called as ``progress("compare", done, total)``.

    Returns:
        How alike their hidden states, sentence vectors and predictions are.

    Raises:
        UsageError: the models cannot be compared, or there is no such device or column.
        InputError: a model or the texts are corrupt, or there are too few texts.
    """
    where = runtime(device)
    student, original = open_pair(Path(path), Path(teacher))
    data = tokens_of(student, Path(texts), text_column, text_format, max_length)
    student.model.to(where.device)
    original.model.to(where.device)
    found = measure(student, original, data, where, progress)
    return CompareResult(
        path=student.path,
        teacher=original.path,
        texts=Path(texts),
        size=student.size,
        teacher_size=original.size,
        likeness=found.likeness,
        notes=student.notes,
    )


def open_pair(path: Path, teacher: Path) -> tuple[Pretrained, Pretrained]:
    """Open both models, and make sure that their outputs can be compared."""
    student, original = open_pretrained(path), open_pretrained(teacher)
    check_alike(student, original)
    return student, original


def tokens_of(
    model: Pretrained, texts: Path, text_column: str, text_format: TextFormat, max_length: int
) -> Tokens:
    """The distinct texts of a file, encoded as ``model`` reads them.

    Raises:
        InputError: there are fewer than ``LEAST_TEXTS``.
    """
    data = encoded(model, read_texts(texts, text_column, text_format), max_length)
    if len(data) < LEAST_TEXTS:
        raise InputError(
            f"{texts}: holds {len(data)} distinct texts, expected at least {LEAST_TEXTS}",
            remedy="give more texts of the kind that the model reads",
        )
    return data
