"""Where the numbers of a trellis-coded row lie, for graphs that decode them.

The layout is that of ``linalg/trellis.py`` with memory 8, whose room lies above this one; a test holds
the two together.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MEMORY = 8
_TAPS = (0o515, 0o362)


class Code:
    """The code of one class of rows.

    Args:
        doubled: twice the bits of each component (r), 0 where it is left out.
    """

    def __init__(self, doubled: NDArray[Any]) -> None:
        coded = np.argsort(-doubled, kind="stable")[: np.count_nonzero(doubled)]
        rates = doubled[coded]
        self.scalars = int((rates > 1).sum())
        """How many components have whole bits; the others come in pairs that share one."""
        self.places: NDArray[Any] = np.zeros(len(doubled), np.int64)
        """Where in the order of coding each component stands, 0 where it is left out."""
        self.places[coded] = np.arange(len(coded))
        self.is_coded = doubled > 0
        steps = np.arange(len(coded))
        steps[self.scalars :] = self.scalars + np.arange(len(coded) - self.scalars) // 2
        self.windows = steps
        """Bit at which the window of each coded component begins."""
        self.uncoded_bits = rates[: self.scalars] // 2 - 1
        """Further bits of each component with whole ones."""
        behind = _MEMORY + (self.scalars + len(coded)) // 2
        self.uncoded = behind + np.cumsum(self.uncoded_bits) - self.uncoded_bits
        """Bit at which they begin."""
        bases, size = np.zeros(len(coded), np.int64), 0
        for rate in dict.fromkeys(rates.tolist()):
            bases[rates == rate] = size
            size += 4 << _MEMORY if rate == 1 else 2 << rate // 2
        bases[self.scalars :] += np.arange(len(coded) - self.scalars) % 2
        self.bases = bases
        """Where in the flat codebooks the levels of each component begin."""
        self.book_size = size
        """Numbers in the flat codebooks."""

    @cached_property
    def subsets(self) -> NDArray[Any]:
        """Subset 0 … 3 that each window chooses."""
        windows = np.arange(2 << _MEMORY)
        high, low = (np.bitwise_count(windows & taps) & 1 for taps in _TAPS)
        return np.asarray(2 * high + low)
