"""Where the numbers of a trellis-coded row lie, as graphs want it that decode them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.errors import InputError
from embcompress.linalg.trelliscode import code_of, coded_order


class GraphCode:
    """The code of one class of rows.

    Args:
        doubled: twice the bits of each component (r), 0 where it is left out.

    Raises:
        InputError: no code has such bits.
    """

    def __init__(self, doubled: NDArray[Any]) -> None:
        try:
            code, coded = code_of(doubled / 2), coded_order(doubled)
        except ValueError as error:
            raise InputError(f"0.rates: {error}", remedy="make the file again from its source") from None
        self.scalars = code.scalars
        """How many components have whole bits; the others come in pairs that share one."""
        self.places: NDArray[Any] = np.zeros(len(doubled), np.int64)
        """Where in the order of coding each component stands, 0 where it is left out."""
        self.places[coded] = np.arange(len(coded))
        self.is_coded = doubled > 0
        self.windows = code.windows
        """Bit at which the window of each coded component begins."""
        self.uncoded_bits = code.uncoded_bits[: code.scalars]
        """Further bits of each component with whole ones."""
        self.uncoded = code.uncoded_starts[: code.scalars]
        """Bit at which they begin."""
        self.bases = np.array([code.books[rate].start for rate in code.rates], np.int64)
        """Where in the flat codebooks the levels of each component begin."""
        self.bases[code.scalars :] += np.arange(len(coded) - code.scalars) % 2
        self.book_size = code.book_size
        """Numbers in the flat codebooks."""
        self.subsets = code.subsets
        """Subset 0 … 3 that each window chooses."""
