"""open both models → tokens → hidden states of both, batch by batch → how like they are."""

from __future__ import annotations

from pathlib import Path

from embcompress.data.counting import read_texts
from embcompress.errors import InputError
from embcompress.pretrained.models import Pretrained, open_pretrained
from embcompress.pretrained.tokens import Tokens, encoded
from embcompress.progress import Progress, silent
from embcompress.reports.comparison import CompareResult
from embcompress.training.devices import runtime
from embcompress.training.likeness import check_alike, measure

LEAST_TEXTS = 10
"""Distinct texts below which a share of nearest neighbours says nothing."""


def compare(
    path: str | Path,
    teacher: str | Path,
    texts: str | Path,
    *,
    text_column: str = "text",
    max_length: int = 256,
    device: str = "auto",
    progress: Progress = silent,
) -> CompareResult:
    """Measure what compression did to a model of a Hugging Face directory, on texts without labels.

    Args:
        path: the directory of the compressed model.
        teacher: that of the model it was made from.
        texts: a CSV with texts, or a text in each line; distinct texts are compared.
        text_column: header of the texts where it is a CSV.
        max_length: tokens that are read of a text.
        device: where to compute.
        progress: called as ``progress("compare", done, total)``.

    Raises:
        UsageError: the request cannot be carried out as it stands.
        InputError: a model or the texts are corrupt.
    """
    where = runtime(device)
    student, original = open_pair(Path(path), Path(teacher))
    data = tokens_of(student, Path(texts), text_column, max_length)
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
    """Both models, with outputs that can be compared."""
    student, original = open_pretrained(path), open_pretrained(teacher)
    check_alike(student, original)
    return student, original


def tokens_of(model: Pretrained, texts: Path, text_column: str, max_length: int) -> Tokens:
    """The distinct texts of a file as ``model`` reads them.

    Raises:
        InputError: there are too few.
    """
    data = encoded(model, read_texts(texts, text_column), max_length)
    if len(data) < LEAST_TEXTS:
        raise InputError(
            f"{texts}: holds {len(data)} distinct texts, expected at least {LEAST_TEXTS}",
            remedy="give more texts of the kind that the model reads",
        )
    return data
