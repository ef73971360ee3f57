"""The result of ``embcompress report`` as plain records; their ``to_dict`` is the JSON output."""

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
        model_bytes: bytes of all weights with the factors.
        relative_error: predicted relative Frobenius error.
        flops: FLOPs per token, by the convention of ``reports/flops.py``.
    """

    ratio: float
    rank: int
    table_bytes: int
    model_bytes: int
    relative_error: float
    flops: int


@dataclass(frozen=True)
class Comparison:
    """The predicted errors of all methods for a table in the same bytes.

    Attributes:
        ratio: fraction of the table's bytes removed.
        nbytes: bytes that are left, at most.
        errors: relative Frobenius error by name of the method; methods that do not fit are missing.
        bound: smallest error that any code with as many bits per row could have, with equal weights, if the
            rows were Gaussian.
    """

    ratio: float
    nbytes: int
    errors: Mapping[str, float]
    bound: float

    @property
    def best(self) -> str | None:
        """The method with the smallest error; None if none fits."""
        return min(self.errors, key=lambda name: self.errors[name], default=None)


def methods_of(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Names of the methods that fit at any ratio, in the order in which they first appear."""
    return tuple(dict.fromkeys(name for each in comparisons for name in each.errors))


@dataclass(frozen=True)
class DenseTable:
    """A table that can be compressed.

    Attributes:
        name: stored name.
        shape: (V, d).
        dtype: element type.
        nbytes: bytes of the table, stored once.
        share: fraction of the model's weights, 0 to 1.
        ties: other names of the same table.
        heads: number of output heads that share it.
        flops: FLOPs per token of the dense table.
        effective_rank: effective rank (Roy & Vetterli 2007), at most min(V, d).
        break_even_rank: largest rank at which factors are smaller than the table.
        spectrum: singular values over the largest one, descending.
        options: one entry per requested ratio.
        comparisons: one entry per requested ratio.
        curve: comparisons at more ratios, for a chart; empty if none was requested.
        weighting: how rows were weighted in errors and spectrum, None for equal weights.
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
        flops: FLOPs per token.
        recorded_error: relative error in the file's own record, before any training of its parts.
        trained: whether its parts were trained.
        weighting: how rows were weighted, None for equal weights.
        weighted_error: weighted relative error in the record, None for equal weights.
        measured_error: relative error against the given original, None without one.
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
        against: the original it was compared with, None without one.
        against_size: bytes of the original's weight files.
        chart: whether the curves of its tables are to be shown as charts.
        plot: the plot that was drawn of them, None if none was requested.
        notes: what the user should know, one sentence each.
    """

    path: Path
    format: str
    size: int
    tensors: int
    tables: tuple[DenseTable, ...]
    compressed: tuple[CompressedTable, ...]
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
