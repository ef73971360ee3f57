"""open both models → tokens → hidden states of both, batch by batch → how alike they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embcompress.choices import CHECK_TEXTS, DEFAULT_DEVICE, LEAST_TEXTS, MAX_LENGTH, TEXT_COLUMN
from embcompress.data.counting import read_texts
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.models import Pretrained, open_pretrained
from embcompress.pretrained.static import StaticRows, open_static, static_tokens
from embcompress.pretrained.tokens import Tokens, encoded
from embcompress.progress import Progress, silent
from embcompress.reports.comparison import CompareResult
from embcompress.training.devices import Runtime, runtime
from embcompress.training.likeness import check_alike, measure
from embcompress.training.recovery import Likeness


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
    file = Path(texts)
    data = tokens_of(student, file, read_texts(file, text_column, text_format), max_length)
    student.model.to(where.device)
    original.model.to(where.device)
    found = measure(student, original, data, where, progress)
    return CompareResult(
        path=student.path,
        teacher=original.path,
        texts=file,
        size=student.size,
        teacher_size=original.size,
        likeness=found.likeness,
        notes=student.notes,
    )


def open_pair(path: Path, teacher: Path) -> tuple[Pretrained, Pretrained]:
    """Open both models, static ones too, and make sure that their outputs can be compared."""
    student, original = _opened(path), _opened(teacher)
    check_alike(student, original)
    return student, original


def _opened(path: Path) -> Pretrained:
    return open_static(path) or open_pretrained(path)


def tokens_of(model: Pretrained, file: Path, texts: Iterable[str], max_length: int) -> Tokens:
    """The distinct texts that were read from ``file``, encoded as ``model`` reads them.

    Raises:
        InputError: there are fewer than ``LEAST_TEXTS``.
    """
    encode = static_tokens if isinstance(model.model, StaticRows) else encoded
    data = encode(model, texts, max_length)
    if len(data) < LEAST_TEXTS:
        raise InputError(
            f"{file}: holds {len(data)} distinct texts, expected at least {LEAST_TEXTS}",
            remedy="give more texts of the kind that the model reads",
        )
    return data


@dataclass(frozen=True)
class Comparison:
    """An original and texts, opened before the work whose result is compared with it.

    Attributes:
        original: the model.
        data: the texts.
        where: device of the models.
        notes: what the user should know, one sentence each.
    """

    original: Pretrained
    data: Tokens
    where: Runtime
    notes: tuple[str, ...]

    @classmethod
    def prepare(cls, path: Path, texts: Path, text_column: str, text_format: TextFormat) -> Comparison:
        """Open the original and read the texts; of more than ``CHECK_TEXTS`` a random sample.

        Raises:
            UsageError: the model cannot be run, or there is no such file or column.
            InputError: the model or the texts are corrupt, or there are too few texts.
        """
        where = runtime()
        read = read_texts(texts, text_column, text_format)
        distinct = [*dict.fromkeys(text for text in read if text.strip())]
        notes: tuple[str, ...] = ()
        if len(distinct) > CHECK_TEXTS:
            notes = (f"{texts}: compared on {CHECK_TEXTS:,} of its {len(distinct):,} distinct texts",)
            rows = np.random.default_rng(0).choice(len(distinct), CHECK_TEXTS, replace=False)
            distinct = [distinct[row] for row in sorted(rows)]
        try:
            original = _opened(path)
            data = tokens_of(original, texts, distinct, MAX_LENGTH)
        except UsageError as error:
            raise UsageError(error.message, remedy=f"{error.remedy}, or leave out --check") from None
        original.model.to(where.device)
        return cls(original, data, where, notes)

    def likeness(self, path: Path, progress: Progress) -> Likeness:
        """How alike the model in the directory ``path`` is, as :func:`compare` measures it.

        Raises:
            InputError: the model does not run.
        """
        student = _opened(path)
        check_alike(student, self.original)
        student.model.to(self.where.device)
        return measure(student, self.original, self.data, self.where, progress).likeness
