"""The packed classes of rows, with running counts."""

from __future__ import annotations

import numpy as np
import pytest

from embcompress.linalg.classes import RowClasses, packed_classes

COUNTS = [1, 7, 8, 9, 4095, 4096, 4097, 8192, 10_000, (1 << 20) + 4099]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("classes", [1, 2, 3, 8])
def test_spans_and_counts_are_those_of_the_classes(count, classes):
    """At the ends of bytes, blocks and chunks."""
    numbers = np.random.default_rng(0).integers(0, classes, count, np.uint8)
    found = RowClasses(packed_classes(numbers, classes), count, classes)
    before = np.stack([np.append(0, np.cumsum(numbers == each)) for each in range(classes)], axis=1)
    places = {0, 1, count // 2, count - 1, count, *(k for k in (8, 4095, 4096, 4097) if k <= count)}
    for row in sorted(places):
        np.testing.assert_array_equal(found.before(row), before[row])
        np.testing.assert_array_equal(found.span(row, min(row + 77, count)), numbers[row : row + 77])
    np.testing.assert_array_equal(found.totals, before[-1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_classes_are_one_bit_a_row(share):
    """The most significant bit is the first row's; bits after the last row do not count."""
    rows = np.random.default_rng(0).random(8195) < share
    bits = np.packbits(np.append(rows, np.ones(-len(rows) % 8, bool)))
    found = RowClasses(bits, len(rows), 2)
    np.testing.assert_array_equal(found.span(0, len(rows)), rows)
    assert found.totals.tolist() == [(~rows).sum(), rows.sum()]
    np.testing.assert_array_equal(packed_classes(rows.astype(np.uint8), 2)[:-1], bits[:-1])


def test_what_cannot_be_is_refused():
    """Too few bytes, and a row in a class that does not exist."""
    planes = packed_classes(np.array([0, 1, 2, 3], np.uint8), 4)
    with pytest.raises(ValueError, match="1 bytes for the classes of 4 rows"):
        RowClasses(planes[:1], 4, 4)
    with pytest.raises(ValueError, match="a row is in class 3"):
        RowClasses(planes, 4, 3)
