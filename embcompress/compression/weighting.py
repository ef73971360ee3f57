"""How much each token's error counts: from how often the token occurs, or how much it moves predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.data.counting import Counts, check_counts, count_texts, read_counts, read_texts
from embcompress.data.vectors.vocabularies import rows_by_token
from embcompress.data.vectors.words import counting_of
from embcompress.errors import InputError, UsageError
from embcompress.methods.stats import Weights
from embcompress.progress import Progress, silent
from embcompress.tables import Table

SMOOTHING = 0.5
"""Exponent s of the weight (count + 1)^s, the one that is measured best. With 1 the few most frequent tokens
take everything; with 0 all tokens count alike, also those that never occur."""


@dataclass(frozen=True)
class Weighting:
    """Row weights and where they come from.

    Attributes:
        weights: of each row (V), above 0, their mean is 1.
        origin: what the record says of them.
    """

    weights: Weights
    origin: str


def weighting_for(
    source: Checkpoint,
    tables: Sequence[Table],
    *,
    counts: str | Path | Counts | None,
    corpus: str | Path | None,
    text_column: str,
    smoothing: float,
    importance: str | Path | None = None,
    progress: Progress = silent,
) -> Weighting | None:
    """Weights for the tokens of ``tables``; None where neither counts nor texts are given.

    Args:
        source: the checkpoint, which knows its tokenizer.
        tables: all of the same number of rows.
        counts: how often each token occurs: a file (see ``data.counting.read_counts``) or an array (V).
        corpus: texts to count in, with the checkpoint's own tokenizer.
        text_column: header of the texts where ``corpus`` or ``importance`` is a CSV.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        importance: texts by which to measure how much each token moves a classifier's predictions; what
            that comes to goes the way of counts.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        UsageError: two of them or a wrong number are given, there is no tokenizer, tables differ in
            rows, or importances are asked of what is no classifier.
        InputError: a file is corrupt or of another model.
    """
    if not 0 <= smoothing <= 2:
        raise UsageError(f"smoothing {smoothing}", remedy="give an exponent from 0 (all alike) to 2")
    asked = {"--weights": counts, "--corpus": corpus, "--importance": importance}
    given = [option for option, value in asked.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"both {given[0]} and {given[1]} are given", remedy="give one of them")
    sizes = {table.rows.shape[0] for table in tables}
    if len(sizes) > 1:
        listed = ", ".join(f"{table.name} {table.rows.shape[0]:,}" for table in tables)
        raise UsageError(f"weights for tables of different rows: {listed}", remedy="take one with --key")
    (rows,) = sizes
    unit = "count"
    if importance is not None:
        # Imported here: it needs torch, and all else does not.
        from embcompress.compression.importances import importances

        origin, unit = f"{Path(importance).name}, importance", "importance"
        found = importances(source, importance, text_column, rows, progress)
    elif corpus is not None:
        origin = Path(corpus).name
        count = counting_of(source, rows)
        found = count_texts(read_texts(Path(corpus), text_column), count, rows, str(source.path))
        if not found.any():
            raise InputError(
                f"{corpus}: holds no text to count tokens in", remedy="give texts that the model reads"
            )
    elif not isinstance(counts, str | Path):
        origin, found = "counts", check_counts(counts, rows)
    else:
        origin = Path(counts).name
        found = read_counts(Path(counts), rows, lambda: rows_by_token(source, rows))
    # Over the largest, so that nothing overflows, and equal counts are exactly 1.
    weights = ((found + 1) / (found.max() + 1)) ** smoothing
    return Weighting(weights / weights.mean(), f"{origin}, ({unit}+1)^{smoothing:g}")
