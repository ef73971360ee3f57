"""What ``factorize`` and ``expand`` return, as plain records; JSON is their ``to_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from embcompress.training.recovery import Likeness


@dataclass(frozen=True)
class TableResult:
    """What was done with one table.

    Attributes:
        name: its name.
        ties: other names that are the same table.
        shape: (V, d).
        dtype: element type of the dense table.
        method: how it was compressed.
        layout: how it is stored, one of ``choices.LAYOUTS``.
        rank: components kept; None where the method keeps the table's own.
        stored_dtype: element type of what a lookup is computed from.
        bytes_before: bytes of the dense table.
        bytes_after: bytes of what replaces it.
        ratio: fraction of the bytes removed.
        predicted_error: relative Frobenius error before the work; weighted if ``weighting`` is given, and in
            the metric if ``metric`` is.
        relative_error: the same measured on the written bytes, with all rows alike; None on a dry run.
        weighting: how rows were weighted, None for all alike.
        weighted_error: measured with weighted rows; None on a dry run and without weights.
        metric: what the metric over the columns was computed from, None if all count alike.
        metric_error: measured in the metric, with weighted rows if there are weights; None on a dry run and
            without a metric.
        rivals: predicted error of each method in the same bytes, by name; empty unless ``auto`` chose.
    """

    name: str
    ties: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    method: str
    layout: str
    rank: int | None
    stored_dtype: str
    bytes_before: int
    bytes_after: int
    ratio: float
    predicted_error: float
    relative_error: float | None
    weighting: str | None
    weighted_error: float | None
    metric: str | None = None
    metric_error: float | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FactorizeResult:
    """What :func:`embcompress.factorize` did, or would do without ``dry_run``.

    Attributes:
        source: the input.
        output: path of the result.
        written: whether it was written.
        tables: one entry a table.
        size_before: bytes of the weight files of the input.
        size_after: bytes of the weight files of the output, estimated on a dry run.
        notes: what the user should know, one sentence each.
        check: how alike the output and the input are on texts; None where that was not asked for, or on a
            dry run.
    """

    source: Path
    output: Path
    written: bool
    tables: tuple[TableResult, ...]
    size_before: int
    size_after: int
    notes: tuple[str, ...]
    check: Likeness | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result with paths as text, ready for JSON."""
        check = None if self.check is None else self.check.to_dict()
        return {**asdict(self), "source": str(self.source), "output": str(self.output), "check": check}


@dataclass(frozen=True)
class ExpandResult:
    """The result of :func:`embcompress.expand`.

    Attributes:
        source: the compressed input.
        output: the dense result.
        tables: names of the tables that are dense again.
        size_before: bytes of the weight files of the input.
        size_after: bytes of the weight files of the output.
        notes: what the user should know, one sentence each.
    """

    source: Path
    output: Path
    tables: tuple[str, ...]
    size_before: int
    size_after: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result with paths as text, ready for JSON."""
        return {**asdict(self), "source": str(self.source), "output": str(self.output)}
