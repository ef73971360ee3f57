"""Packed rows of small integers against Python's own big integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embcompress.linalg.packing import pack, packed_width, unpack

WIDTHS = range(1, 9)


def as_bytes(row, bits):
    """A row as one big-endian number, first value on top, zeros at the bottom up to whole bytes."""
    number = 0
    for value in row:
        number = number << bits | value
    total = -(-len(row) * bits // 8)
    return (number << (8 * total - len(row) * bits)).to_bytes(total, "big")


def as_values(code, count, bits):
    """Each value extracted from the whole row as one number."""
    number = int.from_bytes(code, "big")
    return [number >> (8 * len(code) - (i + 1) * bits) & ((1 << bits) - 1) for i in range(count)]


def values_of(rows, count, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, count), dtype=np.uint8)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(WIDTHS), st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
@example(3, 0, 0, 0)
@example(3, 0, 5, 0)
@example(3, 5, 0, 0)
@example(5, 2, 1, 0)
def test_rows_come_back_and_lie_as_the_reference_lays_them(bits, rows, count, seed):
    values = values_of(rows, count, bits, seed)
    codes = pack(values, bits)
    assert codes.dtype == np.uint8
    assert codes.shape == (rows, packed_width(count, bits))
    assert codes.flags.c_contiguous
    assert [row.tobytes() for row in codes] == [as_bytes(row.tolist(), bits) for row in values]
    found = unpack(codes, count, bits)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, values)


@settings(deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_any_bytes_unpack_as_the_reference_reads_them(bits, count, seed):
    """Also if the bits after the last value are not zero, as only untrusted files have them."""
    codes = np.random.default_rng(seed).integers(0, 256, (3, packed_width(count, bits)), dtype=np.uint8)
    assert unpack(codes, count, bits).tolist() == [as_values(row.tobytes(), count, bits) for row in codes]


@pytest.mark.parametrize(
    ("bits", "row", "code"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1, 1], "b180"),
        (2, [3, 0, 1, 2, 1], "c640"),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], "29cbb8"),
        (3, [7], "e0"),
        (4, [1, 2, 15], "12f0"),
        (5, [31, 0, 1], "f802"),
        (6, [63, 1, 2, 3], "fc1083"),
        (7, [127, 1], "fe04"),
        (8, [0, 255, 16], "00ff10"),
    ],
)
def test_golden_bytes(bits, row, code):
    """The layout on disk, computed by hand: it must not change."""
    values = np.array([row], np.uint8)
    assert pack(values, bits).tobytes().hex() == code
    assert unpack(np.frombuffer(bytes.fromhex(code), np.uint8)[None], len(row), bits).tolist() == [row]


def test_what_fills_the_last_byte_is_zero():
    """Of rows of any length, in any width."""
    wrong = []
    for bits, count in itertools.product(WIDTHS, range(20)):
        ones = np.unpackbits(pack(np.full((2, count), (1 << bits) - 1, np.uint8), bits), axis=1)
        used = count * bits
        if not ones[:, :used].all() or ones[:, used:].any() or ones.shape[1] - used >= 8:
            wrong.append((bits, count))
    assert not wrong


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_that_are_not_contiguous(bits):
    """Slices and transposes are packed by their values, and no memory is shared."""
    values = values_of(26, 34, bits)
    for view in (values[::2, 1::2], values.T, values[:, ::-1]):
        before = view.copy()
        codes = pack(view, bits)
        np.testing.assert_array_equal(codes, pack(before, bits))
        wide = np.zeros((codes.shape[0], codes.shape[1] + 3), np.uint8)
        wide[:, 1:-2] = codes
        np.testing.assert_array_equal(unpack(wide[:, 1:-2], view.shape[1], bits), before)
        codes[:] = 0
        np.testing.assert_array_equal(view, before)


def test_width_is_rounded_up():
    assert [packed_width(5, bits) for bits in WIDTHS] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert packed_width(0, 3) == 0
    assert packed_width(384, 3) == 144


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_value_too_large_is_our_own_mistake(bits):
    with pytest.raises(AssertionError):
        pack(np.array([[0, 1 << bits]], np.uint8), bits)
    with pytest.raises(AssertionError):
        unpack(np.zeros((1, 1), np.uint8), 9, bits)
