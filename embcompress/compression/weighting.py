"""How much each token's error counts: by how often the token occurs, or by how much it moves predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embcompress.checkpoint.base import Checkpoint
from embcompress.choices import AUTO, NO_WEIGHTS, SMOOTHING, TEXT_COLUMN
from embcompress.data.counting import Counts, check_counts, count_texts, read_counts, read_texts
from embcompress.data.priors import ORIGINS, prior_of
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.data.vectors.vocabularies import rows_by_token
from embcompress.data.vectors.words import spread
from embcompress.errors import EmbcompressError, InputError, UsageError
from embcompress.methods.stats import Weights
from embcompress.pretrained.tokenizer import converted, counting_of
from embcompress.progress import Progress, silent
from embcompress.tables import Table

_PRIORS = {AUTO: True, NO_WEIGHTS: False}

GivenCounts = str | Path | Counts | None
"""How often each token occurs: a file (see ``data.counting.read_counts``) or an array (V), to which the prior
of the vocabulary is added; ``"auto"`` is that prior alone, ``"none"`` nothing, and ``"none+FILE"`` a file
without the prior. None leaves the prior to the method."""


@dataclass(frozen=True)
class WeightSource:
    """What the weights of tokens are computed from. Counts come from one of the first three at most.

    Attributes:
        counts: how often each token occurs: a file (see ``data.counting.read_counts``) or an array (V). The
            texts ``"auto"`` and ``"none"``, and ``"auto+FILE"`` and ``"none+FILE"``, set ``prior`` as well.
        corpus: texts to count tokens in, with the checkpoint's own tokenizer.
        importance: texts on which to measure how much each token moves a classifier's predictions; these
            importances then take the place of counts and prior.
        text_column: header of the texts of ``corpus`` or ``importance``; a number where there is no header.
        smoothing: exponent s of the weight (count + 1)^s, 0 to 2.
        text_format: how these texts are written.
        prior: whether what the vocabulary suggests (see ``data.priors``) is used, alone or mixed with counts.
            None where it is not said: then with counts, and by methods that weigh by themselves, and what is
            wrong with the vocabulary is a note.

    Raises:
        UsageError: two sources of counts are given, or the exponent is out of its range.
    """

    counts: GivenCounts = None
    corpus: str | Path | None = None
    importance: str | Path | None = None
    text_column: str = TEXT_COLUMN
    smoothing: float = SMOOTHING
    text_format: TextFormat = USUAL_FORMAT
    prior: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 2:
            raise UsageError(f"smoothing {self.smoothing}", remedy="give an exponent from 0 (all alike) to 2")
        if isinstance(self.counts, str | Path):
            word, plus, file = str(self.counts).partition("+")
            if word in _PRIORS:
                object.__setattr__(self, "prior", _PRIORS[word])
                object.__setattr__(self, "counts", Path(file) if plus else None)
        given = [f"--{option}" for option, value in self.options.items() if value is not None]
        if self.prior and self.importance is not None:
            given.insert(0, f"--weights {AUTO}")
        if len(given) > 1:
            raise UsageError(f"both {given[0]} and {given[1]} are given", remedy="give one of them")

    @property
    def options(self) -> dict[str, GivenCounts]:
        """Files and arrays that are given, by the name of their option in the command line."""
        return {"weights": self.counts, "corpus": self.corpus, "importance": self.importance}

    @property
    def has_counts(self) -> bool:
        """Whether counts are given, or texts to make them from."""
        return self.counts is not None or self.corpus is not None

    @property
    def is_given(self) -> bool:
        """Whether weights are asked for."""
        return bool(self.prior) or any(value is not None for value in self.options.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return tuple(Path(value) for value in self.options.values() if isinstance(value, str | Path))

    def has_prior(self, usual: bool) -> bool:
        """Whether the prior is used; ``usual`` says whether it is without counts, where nothing is said."""
        if self.prior is not None:
            return self.prior
        return self.has_counts or (usual and self.importance is None and self.smoothing > 0)

    def words(self, usual: bool) -> list[str]:
        """The options of the command line, with files by their names alone; without what changes nothing.

        Args:
            usual: see :meth:`has_prior`.

        Raises:
            UsageError: an array is given, which has no name.
        """
        names: dict[str, str] = {}
        for option, value in self.options.items():
            if isinstance(value, str | Path):
                names[option] = Path(value).name or Path(value).resolve().name
            elif value is not None:
                raise UsageError("an array of counts has no name", remedy="give a file")
        if self.prior is not None and self.prior != replace(self, prior=None).has_prior(usual):
            word = next(word for word, prior in _PRIORS.items() if prior == self.prior)
            names = {**names, "weights": "+".join(filter(None, (word, names.get("weights"))))}
        return [word for option in self.options if option in names for word in (f"--{option}", names[option])]


@dataclass(frozen=True)
class Weighting:
    """Row weights and where they come from.

    Attributes:
        weights: of each row (V), above 0; their mean is 1. None if all rows count alike.
        origin: what the record says of them, e.g. ``"counts.csv, (count+1)^0.5"``; None without weights.
        notes: what the user should know of them.
    """

    weights: Weights | None = None
    origin: str | None = None
    notes: tuple[str, ...] = ()


def weighting_for(
    checkpoint: Checkpoint,
    tables: Sequence[Table],
    given: WeightSource,
    progress: Progress = silent,
    *,
    usual: bool = False,
) -> Weighting:
    """The weights of the rows of ``tables``; none where there is nothing to compute them from.

    Args:
        checkpoint: holds the tables, and knows its tokenizer.
        tables: all with the same number of rows, V, if weights are asked for.
        given: what to compute the weights from.
        progress: called as ``progress(stage, done, total)``.
        usual: whether the prior of the vocabulary is used where nothing is said.

    Raises:
        UsageError: an array has another length than V, there is no tokenizer, the tables have different
            numbers of rows, or importances are asked of a model that is no classifier.
        InputError: a file is corrupt, or belongs to another model. That the prior cannot be read is a note
            instead if it is not asked for.
    """
    wants_prior = given.has_prior(usual)
    if not given.is_given and not wants_prior:
        return Weighting()
    if not given.is_given and len({table.rows.shape[0] for table in tables}) > 1:
        return Weighting(notes=("tables have different numbers of rows; so all rows count alike",))
    rows = _common_rows(tables)
    if given.importance is not None:
        # Imported here: it needs torch, and everything else works without.
        from embcompress.compression.importances import importances

        file = Path(given.importance)
        texts = read_texts(file, given.text_column, given.text_format)
        found = importances(checkpoint, texts, file, rows, progress)
        return _smoothed(found, f"{file.name}, importance", given.smoothing, "importance")
    origin, counts = _counts(checkpoint, rows, given)
    if not wants_prior:
        assert counts is not None, "something is given"
        return _smoothed(counts, origin, given.smoothing)
    prior = unknown = None
    try:
        prior = prior_of(checkpoint, rows, lambda: converted(checkpoint))
    except (InputError, UsageError, OSError) as error:
        if given.prior:
            raise
        unknown = error.message if isinstance(error, EmbcompressError) else f"{checkpoint.path}: {error}"
    if prior is not None:
        origin = " and ".join(filter(None, (origin, prior.origin)))
        return _smoothed(prior.mixed(counts), origin, given.smoothing)
    if unknown is None and (counts is None or given.prior):
        unknown = f"{checkpoint.path}: nothing says which of its tokens are frequent"
    if counts is None:
        return Weighting(notes=(f"{unknown}; so all rows count alike",))
    notes = () if unknown is None else (f"{unknown}; so rows are weighted by {origin} alone",)
    return replace(_smoothed(counts, origin, given.smoothing), notes=notes)


def has_prior(origin: str | None) -> bool:
    """Whether weights of this origin, which a record names, were made with the prior of a vocabulary."""
    return (origin or "").rpartition(", ")[0].endswith(ORIGINS)


def _counts(checkpoint: Checkpoint, rows: int, given: WeightSource) -> tuple[str, Counts | None]:
    """Where counts come from, and the counts (V), None where none are given."""
    counts = given.counts
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
