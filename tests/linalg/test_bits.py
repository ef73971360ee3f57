"""Packed bits with a running count."""

from __future__ import annotations

import numpy as np
import pytest

from embcompress.linalg.bits import Bits


@pytest.mark.parametrize("count", [1, 7, 8, 9, 4095, 4096, 4097, 8192, 10_000, 8 * (1 << 20) + 4099])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_spans_and_counts_are_those_of_the_unpacked_bits(count, share):
    """At the ends of bytes, blocks and chunks; bits after the last row do not count."""
    rng = np.random.default_rng(0)
    kept = rng.random(count) < share
    packed = np.packbits(np.append(kept, np.ones(-count % 8, bool)))
    bits, before = Bits(packed, count), np.append(0, np.cumsum(kept))
    places = {0, 1, count // 2, count - 1, count, *(k for k in (8, 4095, 4096, 4097) if k <= count)}
    for row in sorted(places):
        assert bits.before(row) == before[row]
        np.testing.assert_array_equal(bits.span(row, min(row + 77, count)), kept[row : row + 77])
    assert bits.total == kept.sum()
