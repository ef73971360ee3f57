"""What ``report`` returns, as plain records; JSON is their ``to_dict``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Option:
    """What low-rank compression to one ratio would cost.

    Attributes:
        ratio: fraction of the table's bytes removed.
        rank: components kept; 0 if not even rank 1 fits.
        table_bytes: bytes of the factors.
        model_bytes: bytes of all weights with these factors.
        relative_error: predicted relative Frobenius error.
        flops: per token, as ``reports/flops.py`` counts them.
    """

    ratio: float
    rank: int
    table_bytes: int
    model_bytes: int
    relative_error: float
    flops: int


@dataclass(frozen=True)
class Comparison:
    """What each method is predicted to make of a table in the same bytes.

    Attributes:
        ratio: fraction of the table's bytes removed.
        nbytes: bytes that are left at most.
        errors: predicted relative Frobenius error by method; without methods that do not fit.
        bound: smallest error of any code with as many bits a row, if rows were Gaussian and all alike.
    """

    ratio: float
    nbytes: int
    errors: Mapping[str, float]
    bound: float

    @property
    def best(self) -> str | None:
        """The method with the smallest error; None where none fits."""
        return min(self.errors, key=lambda name: self.errors[name], default=None)


def methods_of(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Names of the methods that fit at any ratio, in the order in which they are compared."""
    return tuple(dict.fromkeys(name for each in comparisons for name in each.errors))


@dataclass(frozen=True)
class DenseTable:
    """A table that can be compressed.

    Attributes:
        name: stored name.
        shape: (V, d).
        dtype: element type.
        nbytes: bytes, stored once.
        share: of the model's weights, 0 to 1.
        ties: other names that are the same table.
        heads: output heads that share it.
        flops: per token, dense.
        effective_rank: directions it uses (Roy & Vetterli 2007), 0 … min(V, d).
        break_even_rank: largest rank that makes it smaller.
        spectrum: singular values over the largest one, descending.
        options: what the default method would cost, one for each ratio.
        comparisons: what every method would lose, one for each of the same ratios.
        curve: the same at more ratios, for a chart; empty unless one was asked for.
        weighting: how rows are weighted in errors and spectrum, None for all alike.
        obstacle: why ``factorize`` would refuse it, None if it would not.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    nbytes: int
    share: float
    ties: tuple[str, ...]
    heads: int
    flops: int
    effective_rank: float
    break_even_rank: int
    spectrum: tuple[float, ...]
    options: tuple[Option, ...]
    comparisons: tuple[Comparison, ...]
    curve: tuple[Comparison, ...]
    weighting: str | None
    obstacle: str | None


@dataclass(frozen=True)
class LeftDense:
    """A matrix at least as large as a table, which stays dense.

    Attributes:
        name: stored name.
        shape: rows and columns.
        dtype: element type.
        nbytes: bytes.
        how: how it could be taken, or why it cannot.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    nbytes: int
    how: str


@dataclass(frozen=True)
class CompressedTable:
    """A table that is already compressed.

    Attributes:
        name: name of the dense table.
        shape: (V, d) of the dense table.
        dtype: element type of the dense table.
        method: how it was compressed.
        rank: components kept; None for methods that do not reduce the rank.
        stored_dtype: element type from which a lookup is computed.
        ties: other names of the same table.
        dense_bytes: bytes of the dense table.
        nbytes: bytes of its parts.
        flops: per token.
        recorded_error: relative error in the file's record, from before its parts were trained.
        trained: whether its parts were trained afterwards.
        weighting: how rows were weighted, None for all alike.
        weighted_error: the recorded error with weighted rows, None without weights.
        metric: what the metric over its columns was computed from, None without one.
        metric_error: the recorded error in the metric, with weighted rows if there are weights.
        measured_error: relative error against the original; None if that was not given.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    method: str
    rank: int | None
    stored_dtype: str
    ties: tuple[str, ...]
    dense_bytes: int
    nbytes: int
    flops: int
    recorded_error: float
    trained: bool
    weighting: str | None
    weighted_error: float | None
    metric: str | None
    metric_error: float | None
    measured_error: float | None


@dataclass(frozen=True)
class Report:
    """The result of :func:`embcompress.report`: where the bytes of a checkpoint are.

    Attributes:
        path: the checkpoint.
        format: its format.
        size: bytes of the weight files.
        tensors: number of stored tensors.
        tables: tables that can be compressed.
        compressed: tables that are compressed.
        left: matrices at least as large as one of its tables, which are none by their names.
        against: the original it was compared with; None without one.
        against_size: bytes of the original's weight files.
        chart: whether to show the curves of its tables as charts.
        plot: the picture that was drawn of the curves; None unless one was asked for.
        notes: what the user should know, one sentence each.
    """

    path: Path
    format: str
    size: int
    tensors: int
    tables: tuple[DenseTable, ...]
    compressed: tuple[CompressedTable, ...]
    left: tuple[LeftDense, ...]
    against: Path | None
    against_size: int | None
    chart: bool
    plot: Path | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report with paths as text, ready for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "against": None if self.against is None else str(self.against),
            "plot": None if self.plot is None else str(self.plot),
        }
