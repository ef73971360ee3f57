"""The results of the workflows that write, as plain records; their ``to_dict`` is the JSON output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TableResult:
    """The compression of one table: the fields of ``TableRecord``, and sizes in bytes.

    ``predicted_error`` is weighted if ``weighting`` is set. ``relative_error`` (unweighted) and
    ``weighted_error`` are measured on the written bytes and None on a dry run; the latter is also None
    without weights. ``rivals`` are the predicted errors of each method in the same bytes, by name; empty
    if they were not computed. ``layout`` is ``"native"``, ``"sequential"`` or ``"embcompress"``.
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
    rivals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FactorizeResult:
    """The result of :func:`embcompress.factorize`, or with ``dry_run`` the result it would have.

    Attributes:
        source: the input.
        output: path of the result.
        written: whether it was written.
        tables: one entry per table.
        size_before: bytes of the input's weight files.
        size_after: bytes of the output's weight files; an estimate on a dry run.
        notes: what the user should know, one sentence each.
    """

    source: Path
    output: Path
    written: bool
    tables: tuple[TableResult, ...]
    size_before: int
    size_after: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result with paths as text, ready for JSON."""
        return {**asdict(self), "source": str(self.source), "output": str(self.output)}


@dataclass(frozen=True)
class ExpandResult:
    """The result of :func:`embcompress.expand`.

    Attributes:
        source: the compressed input.
        output: the dense result.
        tables: names of the tables that are dense again.
        size_before: bytes of the input's weight files.
        size_after: bytes of the output's weight files.
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
