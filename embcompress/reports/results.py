"""What the workflows that write report back, as plain records; JSON is their ``to_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TableResult:
    """What was done with one table; the fields of ``TableRecord`` and sizes in bytes.

    ``predicted_error`` is weighted where ``weighting`` says so. ``relative_error`` and ``weighted_error``
    are measured on the written bytes, None on a dry run; the second also without weights. ``rivals`` are
    the errors foretold of each method in the same bytes, by name; empty where they were not looked at.
    ``layout`` is ``"native"``, ``"sequential"`` or ``"embcompress"``.
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
    """What :func:`embcompress.factorize` did, or with ``dry_run`` would do.

    Attributes:
        source: the input.
        output: where the result is or would be.
        written: whether it was written.
        tables: one entry a table.
        size_before: bytes of the weight files of the input.
        size_after: bytes of those of the output; on a dry run their estimate.
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
    """What :func:`embcompress.expand` did.

    Attributes:
        source: the compressed input.
        output: the dense result.
        tables: names of the tables that are dense again.
        size_before: bytes of the weight files of the input.
        size_after: bytes of those of the output.
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
