"""How much each token's error counts: by how often the token occurs, or by how much it moves predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.choices import SMOOTHING, TEXT_COLUMN
from embcompress.data.counting import Counts, check_counts, count_texts, read_counts, read_texts
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.data.vectors.vocabularies import rows_by_token
from embcompress.data.vectors.words import spread
from embcompress.errors import InputError, UsageError
from embcompress.methods.stats import Weights
from embcompress.pretrained.tokenizer import counting_of
from embcompress.progress import Progress, silent
from embcompress.tables import Table

GivenCounts = str | Path | Counts | None
"""How often each token occurs: a file (see ``data.counting.read_counts``), an array (V), or nothing."""


@dataclass(frozen=True)
class WeightSource:
    """What the weights of tokens are computed from. At most one of the first three is given.

    Attributes:
        counts: how often each token occurs: a file (see ``data.counting.read_counts``) or an array (V).
        corpus: texts to count tokens in, with the checkpoint's own tokenizer.
        importance: texts on which to measure how much each token moves a classifier's predictions; these
            importances then take the place of counts.
        text_column: header of the texts of ``corpus`` or ``importance``; a number where there is no header.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        text_format: how these texts are written.

    Raises:
        UsageError: two of them are given, or the exponent is out of its range.
    """

    counts: GivenCounts = None
    corpus: str | Path | None = None
    importance: str | Path | None = None
    text_column: str = TEXT_COLUMN
    smoothing: float = SMOOTHING
    text_format: TextFormat = USUAL_FORMAT

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 2:
            raise UsageError(f"smoothing {self.smoothing}", remedy="give an exponent from 0 (all alike) to 2")
        given = [f"--{option}" for option, value in self.options.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"both {given[0]} and {given[1]} are given", remedy="give one of them")

    @property
    def options(self) -> dict[str, str | Path | Counts | None]:
        """What is given, by the name of its option in the command line."""
        return {"weights": self.counts, "corpus": self.corpus, "importance": self.importance}

    @property
    def is_given(self) -> bool:
        """Whether tokens are weighted at all."""
        return any(value is not None for value in self.options.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return tuple(Path(value) for value in self.options.values() if isinstance(value, str | Path))


@dataclass(frozen=True)
class Weighting:
    """Row weights and where they come from.

    Attributes:
        weights: of each row (V), above 0; their mean is 1.
        origin: what the record says of them, e.g. ``"counts.csv, (count+1)^0.5"``.
    """

    weights: Weights
    origin: str


def weighting_for(
    checkpoint: Checkpoint, tables: Sequence[Table], given: WeightSource, progress: Progress = silent
) -> Weighting | None:
    """The weights of the rows of ``tables``; None where nothing is given to compute them from.

    Args:
        checkpoint: holds the tables, and knows its tokenizer.
        tables: all with the same number of rows, V.
        given: what to compute the weights from.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: an array has another length than V, there is no tokenizer, the tables have different
            numbers of rows, or importances are asked of a model that is no classifier.
        InputError: a file is corrupt, or belongs to another model.
    """
    if not given.is_given:
        return None
    rows = _common_rows(tables)
    unit = "count"
    if given.importance is not None:
        # Imported here: it needs torch, and everything else works without.
        from embcompress.compression.importances import importances

        origin, unit = f"{Path(given.importance).name}, importance", "importance"
        file = Path(given.importance)
        texts = read_texts(file, given.text_column, given.text_format)
        found = importances(checkpoint, texts, file, rows, progress)
    elif given.corpus is not None:
        origin = Path(given.corpus).name
        texts = read_texts(Path(given.corpus), given.text_column, given.text_format)
        found = count_texts(texts, counting_of(checkpoint, rows), rows, str(checkpoint.path))
        if not found.any():
            raise InputError(
                f"{given.corpus}: holds no text to count tokens in", remedy="give texts that the model reads"
            )
    elif isinstance(given.counts, str | Path):
        origin = Path(given.counts).name
        found = read_counts(Path(given.counts), rows, lambda: rows_by_token(checkpoint, rows))
        found = spread(checkpoint, found)
    else:
        assert given.counts is not None, "one of the three is given"
        origin, found = "counts", check_counts(given.counts, rows)
    # Divided by the largest, so that nothing overflows and equal counts come to exactly 1.
    weights = ((found + 1) / (found.max() + 1)) ** given.smoothing
    return Weighting(weights / weights.mean(), f"{origin}, ({unit}+1)^{given.smoothing:g}")


def _common_rows(tables: Sequence[Table]) -> int:
    """How many rows each table has.

    Raises:
        UsageError: they have different numbers of rows.
    """
    sizes = {table.rows.shape[0] for table in tables}
    if len(sizes) > 1:
        listed = ", ".join(f"{table.name} {table.rows.shape[0]:,}" for table in tables)
        raise UsageError(
            f"weights for tables with different numbers of rows: {listed}", remedy="choose one with --key"
        )
    return sizes.pop()
