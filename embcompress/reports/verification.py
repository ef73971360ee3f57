"""What ``verify`` returns, as plain records; JSON is their ``to_dict``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Difference:
    """One deviation from what is expected.

    Attributes:
        name: of the tensor, the part of a file, or the record.
        found: what is there.
        expected: what should be there; empty where that is not known.
    """

    name: str
    found: str
    expected: str = ""

    @property
    def line(self) -> str:
        """The difference in one line, for a person."""
        return f"{self.name}: {self.found}" + (f", should be {self.expected}" if self.expected else "")


@dataclass(frozen=True)
class VerifiedTable:
    """The checks of one compressed table.

    Attributes:
        name: name of the dense table.
        shape: (V, d) of the dense table.
        method: how it was compressed.
        rank: components kept; None for methods that do not reduce the rank.
        parts: number of stored tensors.
        sealed: whether their bytes were compared with the SHA-256 in the record.
        recorded_error: relative error in the record.
        measured_error: relative error measured again; None if it was not.
        weighting: how rows were weighted, None for all alike.
        weighted_error: weighted error in the record.
        measured_weighted_error: weighted error measured again; None if it was not.
        trained: whether its record says that it was trained afterwards; errors are then not compared.
    """

    name: str
    shape: tuple[int, int]
    method: str
    rank: int | None
    parts: int
    sealed: bool
    recorded_error: float
    measured_error: float | None
    weighting: str | None
    weighted_error: float | None
    measured_weighted_error: float | None
    trained: bool


@dataclass(frozen=True)
class Verification:
    """Whether an output is as it was written, and all but its tables as in its original.

    Attributes:
        path: the output.
        against: the original, None without one.
        tables: one entry a compressed table.
        tensors: how many other tensors were compared byte by byte.
        others: how many files, metadata entries and other data were compared.
        differences: everything that is not as it should be, one entry each.
        notes: what was not checked and why, one sentence each.
        uncompared: how many other tensors have no values that they were found to equal: there is no original,
            or they differ from it and the record says that weights were trained.
        unchecked: everything that was compared with nothing, a few words each.
    """

    path: Path
    against: Path | None
    tables: tuple[VerifiedTable, ...]
    tensors: int
    others: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    uncompared: int
    unchecked: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all tensors were compared: with the original, or with the SHA-256 that was recorded."""
        return not self.uncompared and all(t.sealed and not t.trained for t in self.tables)

    @property
    def is_right(self) -> bool:
        """Whether there are no differences."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """The result with paths as text, ready for JSON."""
        return {
            **asdict(self),
            "path": str(self.path),
            "against": None if self.against is None else str(self.against),
            "is_right": self.is_right,
        }
