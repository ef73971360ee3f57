"""The methods of the registry, with a target that each reaches: what contracts are asked over."""

from __future__ import annotations

from embcompress.methods import METHODS, method_for
from embcompress.methods.base import RankedMethod

COMBINED = tuple(f"screen+{name}" for name in METHODS if name != "screen")
"""Screening before each other method."""
EVERY = (*METHODS, *COMBINED)


def target(method: str, ratio: float = 0.6) -> dict[str, float]:
    """Options of ``factorize`` that ``method`` reaches on a small table of falling spectrum."""
    return {"rank": 6} if isinstance(method_for(method), RankedMethod) else {"ratio": ratio}
