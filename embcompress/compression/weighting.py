"""How much each token's error counts: by how often the token occurs, or by how much it moves predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.choices import AUTO, NO_WEIGHTS, SMOOTHING, TEXT_COLUMN
from embcompress.data.counting import Counts, check_counts, count_texts, read_counts, read_texts
from embcompress.data.priors import prior_of
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.data.vectors.vocabularies import rows_by_token
from embcompress.data.vectors.words import spread
from embcompress.errors import InputError, UsageError
from embcompress.methods.stats import Weights
from embcompress.pretrained.tokenizer import converted, counting_of
from embcompress.progress import Progress, silent
from embcompress.tables import Table

GivenCounts = str | Path | Counts | None
"""How often each token occurs: a file (see ``data.counting.read_counts``), an array (V), or nothing;
``"auto"`` for what the vocabulary suggests, ``"auto+FILE"`` for that and a file, ``"none"`` for nothing."""

_MIXED = f"{AUTO}+"


@dataclass(frozen=True)
class WeightSource:
    """What the weights of tokens are computed from. Counts come from one of the first three at most.

    Attributes:
        counts: how often each token occurs: a file (see ``data.counting.read_counts``) or an array (V);
            ``"auto"`` for what the model's vocabulary suggests (see ``data.priors``), to which ``corpus``
            adds its counts, and ``"auto+FILE"`` for that and the counts in a file.
        corpus: texts to count tokens in, with the checkpoint's own tokenizer.
        importance: texts on which to measure how much each token moves a classifier's predictions; these
            importances then take the place of counts.
        text_column: header of the texts of ``corpus`` or ``importance``; a number where there is no header.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        text_format: how these texts are written.

    Raises:
        UsageError: two sources of counts are given, or the exponent is out of its range.
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
        if self.has_prior and self.importance is not None:
            given.insert(0, f"--weights {AUTO}")
        if len(given) > 1:
            raise UsageError(f"both {given[0]} and {given[1]} are given", remedy="give one of them")

    @property
    def has_prior(self) -> bool:
        """Whether what the vocabulary suggests is asked for."""
        return isinstance(self.counts, str | Path) and str(self.counts).partition("+")[0] == AUTO

    @property
    def options(self) -> dict[str, str | Path | Counts | None]:
        """Files and arrays that are given, by the name of their option in the command line."""
        counts: GivenCounts = self.counts
        if isinstance(counts, str | Path):
            name = str(counts)
            counts = None if name in (AUTO, NO_WEIGHTS) else name.removeprefix(_MIXED)
        return {"weights": counts, "corpus": self.corpus, "importance": self.importance}

    @property
    def words(self) -> list[str]:
        """The options of the command line, with files by their names alone.

        Raises:
            UsageError: an array is given, which has no name.
        """
        found: list[str] = []
        for option, value in self.options.items():
            prefix = AUTO if option == "weights" and self.has_prior else ""
            if isinstance(value, str | Path):
                name = Path(value).name or Path(value).resolve().name
                found += [f"--{option}", f"{prefix}+{name}" if prefix else name]
            elif value is not None:
                raise UsageError("an array of counts has no name", remedy="give a file")
            elif prefix:
                found += [f"--{option}", prefix]
        return found

    @property
    def is_given(self) -> bool:
        """Whether tokens are weighted at all."""
        return self.has_prior or any(value is not None for value in self.options.values())

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
        notes: what the user should know of them.
    """

    weights: Weights
    origin: str
    notes: tuple[str, ...] = ()


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
    if given.importance is not None:
        # Imported here: it needs torch, and everything else works without.
        from embcompress.compression.importances import importances

        file = Path(given.importance)
        texts = read_texts(file, given.text_column, given.text_format)
        found = importances(checkpoint, texts, file, rows, progress)
        return _smoothed(found, f"{file.name}, importance", given.smoothing, "importance")
    origin, counts = _counts(checkpoint, rows, given)
    if not given.has_prior:
        assert counts is not None, "something is given"
        return _smoothed(counts, origin, given.smoothing)
    prior = prior_of(checkpoint, rows, lambda: converted(checkpoint))
    if prior is not None:
        origin = " and ".join(filter(None, (origin, prior.origin)))
        return _smoothed(prior.mixed(counts), origin, given.smoothing)
    known = "weights are even" if counts is None else f"weights are those of {origin} alone"
    note = f"{checkpoint.path}: nothing says which of its tokens are frequent, so {known}"
    counts = np.zeros(rows) if counts is None else counts
    return replace(_smoothed(counts, origin or "nothing known", given.smoothing), notes=(note,))


def _counts(checkpoint: Checkpoint, rows: int, given: WeightSource) -> tuple[str, Counts | None]:
    """Where counts come from, and the counts (V), None where none are given."""
    counts = given.options["weights"]
    if given.corpus is not None:
        texts = read_texts(Path(given.corpus), given.text_column, given.text_format)
        found = count_texts(texts, counting_of(checkpoint, rows), rows, str(checkpoint.path))
        if not found.any():
            raise InputError(
                f"{given.corpus}: holds no text to count tokens in", remedy="give texts that the model reads"
            )
        return Path(given.corpus).name, found
    if isinstance(counts, str | Path):
        found = read_counts(Path(counts), rows, lambda: rows_by_token(checkpoint, rows))
        return Path(counts).name, spread(checkpoint, found)
    return ("", None) if counts is None else ("counts", check_counts(counts, rows))


def _smoothed(found: Counts, origin: str, exponent: float, unit: str = "count") -> Weighting:
    """Weights (number + 1)^s of the numbers found, their mean 1."""
    # Divided by the largest, so that nothing overflows and equal counts come to exactly 1.
    weights = ((found + 1) / (found.max() + 1)) ** exponent
    return Weighting(weights / weights.mean(), f"{origin}, ({unit}+1)^{exponent:g}")


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
