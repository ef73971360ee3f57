"""Scaled integers against an exhaustive search for the scale, and against the theory of quantizers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.quick import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.linalg.integers import dequantize, quantize

WIDTHS = range(1, 9)
SMALLEST, LARGEST = 2.0**-24, 65504.0
"""The smallest and largest positive numbers of float16."""


def restored(rows, bits, scale_type=np.float16):
    found = quantize(rows, bits, scale_type)
    return dequantize(found.codes, found.scales, bits).astype(np.float64)


def row_errors(rows, stand_in):
    return ((rows.astype(np.float64) - stand_in) ** 2).sum(axis=1)


def with_scales(rows, scales, bits):
    """The nearest levels in float64, computed the obvious way."""
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    scales = np.asarray(scales, np.float64)[:, None]
    safe = np.where(scales > 0, scales, 1)
    q = np.rint(rows / safe + (2**bits - 1) / 2).clip(0, 2**bits - 1).astype(int)
    return scales * levels[q]


def to_the_peak(rows, bits):
    """The usual scale: the outermost level on the row's largest value."""
    scales = np.abs(rows).max(axis=1) / ((2**bits - 1) / 2)
    return with_scales(rows, scales.astype(np.float16), bits)


def least_errors(rows, bits, steps=1500):
    """Least squared error of each row over many scales, not rounded to float16."""
    peaks = np.abs(rows).max(axis=1) / ((2**bits - 1) / 2)
    shares = np.geomspace(0.02, 1.6, steps)
    return np.min([row_errors(rows, with_scales(rows, peaks * share, bits)) for share in shares], axis=0)


def decibels(rows, stand_in):
    return 10 * np.log10((rows.astype(np.float64) ** 2).sum() / row_errors(rows, stand_in).sum())


def tails(seed, rows, columns):
    """Rows from flat to heavy-tailed, including off-centre and sparse ones."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns)
    kinds = [
        rng.standard_normal(shape),
        rng.laplace(size=shape),
        rng.standard_t(3, shape),
        rng.uniform(-1, 1, shape),
        rng.standard_normal(shape) + 1,
        rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    ]
    return np.concatenate(kinds).astype(np.float32)


@settings(deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 8), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_never_worse_than_scaling_to_the_peak(bits, rows, columns, seed):
    table = tails(seed, rows, columns)
    allowed = row_errors(table, to_the_peak(table, bits)) * (1 + 1e-4)
    # Where a row is met all but exactly, float32 rounding is all that is left.
    allowed += 1e-12 * (table.astype(np.float64) ** 2).sum(axis=1)
    assert (row_errors(table, restored(table, bits)) <= allowed).all()


def test_scaling_to_the_peak_loses_clearly():
    """The simpler method must be worse, or the search proves nothing."""
    rows = np.random.default_rng(0).standard_normal((100, 384), dtype=np.float32)
    assert decibels(rows, restored(rows, 3)) > decibels(rows, to_the_peak(rows, 3)) + 1.5


@pytest.mark.parametrize(("bits", "optimum"), [(1, 4.40), (2, 9.25), (3, 14.27), (4, 19.38)])
def test_gaussian_rows_reach_the_optimum_of_uniform_quantizers(bits, optimum):
    """Max 1960, "Quantizing for minimum distortion", table II: errors 0.3634, 0.1188, 0.03744, 0.01154."""
    rows = np.random.default_rng(1).standard_normal((20, 20_000), dtype=np.float32)
    assert decibels(rows, restored(rows, bits)) == pytest.approx(optimum, abs=0.03)


@pytest.mark.parametrize("bits", WIDTHS)
def test_about_as_good_as_trying_every_scale(bits):
    """Within 1 % over all rows; with more bits the search misses lucky scales of single rows."""
    rows = tails(2, 15, 300)
    found, least = row_errors(rows, restored(rows, bits)), least_errors(rows, bits)
    assert found.sum() < 1.01 * least.sum()
    assert (found < (1.01 if bits <= 3 else 1.2) * least).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_single_outlier(bits):
    """If one value is far larger than the others, the best clipping level is far below it."""
    rows = np.vstack([np.eye(500)[:3], np.full((3, 500), 1e-3) + 5 * np.eye(500)[:3]])
    assert (row_errors(rows, restored(rows, bits)) < 1.01 * least_errors(rows, bits)).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_the_nearest_levels_of_the_stored_scale(bits):
    rows = tails(3, 5, 200)
    found = quantize(rows, bits)
    assert found.codes.dtype == np.uint8
    assert found.scales.dtype == np.float16
    assert found.codes.min() >= 0
    assert found.codes.max() == 2**bits - 1
    best = row_errors(rows, with_scales(rows.astype(np.float64), found.scales, bits))
    decoded = dequantize(found.codes, found.scales, bits)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(row_errors(rows, decoded), best, rtol=1e-5)


def test_dequantize_is_scale_times_centred_integer():
    codes = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint8)
    decoded = dequantize(codes, np.array([2, 0.5], np.float16), 2)
    assert decoded.tolist() == [[-3, -1, 1, 3], [-0.75, -0.25, 0.25, 0.75]]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_rows(bits, dtype):
    """Scale 0 and exact zeros without a sign, though no level of the quantizer is 0."""
    rows = np.zeros((3, 10), dtype)
    rows[1] = np.linspace(-1, 1, 10)
    found = quantize(rows, bits)
    assert found.scales[[0, 2]].tolist() == [0, 0]
    assert found.scales[1] > 0
    decoded = dequantize(found.codes, found.scales, bits)
    assert not decoded[[0, 2]].any()
    assert not np.signbit(decoded[[0, 2]]).any()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("columns", [1, 2, 300])
def test_constant_rows(bits, columns):
    """Some level falls on the value of each row, to the digits that float16 holds."""
    rows = np.repeat(np.array([[1.0], [-0.3], [1000.0], [0.007]], np.float32), columns, axis=1)
    np.testing.assert_allclose(restored(rows, bits), rows, rtol=2.0**-10)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 0)])
def test_empty_tables(shape):
    found = quantize(np.zeros(shape, np.float32), 3)
    assert found.codes.shape == shape
    assert found.scales.tolist() == [0] * shape[0]
    assert dequantize(found.codes, found.scales, 3).shape == shape


@settings(deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(-6, 6), st.integers(0, 2**32 - 1))
def test_a_power_of_two_changes_the_scales_only(bits, power, seed):
    rows = np.random.default_rng(seed).standard_normal((4, 50), dtype=np.float32)
    plain, scaled = quantize(rows, bits), quantize(np.ldexp(rows, power), bits)
    np.testing.assert_array_equal(plain.codes, scaled.codes)
    np.testing.assert_array_equal(np.ldexp(plain.scales.astype(np.float32), power), scaled.scales)


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_do_not_depend_on_their_block(bits, monkeypatch):
    """Nor does it depend on the chunk size, the strides of the array or its float type."""
    rows = tails(4, 7, 33)
    whole = quantize(rows, bits)
    wide = quantize(rows.astype(np.float64), bits)
    strided = quantize(np.repeat(rows, 2, axis=1)[:, ::2], bits)
    parts = [quantize(rows[i : i + 5], bits) for i in range(0, len(rows), 5)]
    monkeypatch.setattr("embcompress.linalg.integers._CHUNK", 100)
    for other in (wide, strided, quantize(rows, bits)):
        np.testing.assert_array_equal(whole.codes, other.codes)
        np.testing.assert_array_equal(whole.scales, other.scales)
    np.testing.assert_array_equal(whole.codes, np.concatenate([part.codes for part in parts]))


@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_too_small_for_float16_become_zeros(bits):
    """Below a quarter of the smallest scale zero is nearer than any level; above it, a level is."""
    rows = np.full((3, 20), [[0.24 * SMALLEST], [0.26 * SMALLEST], [1e-30]], np.float32)
    found = quantize(rows, bits)
    assert found.scales.tolist() == [0, SMALLEST, 0]
    decoded = dequantize(found.codes, found.scales, bits)
    assert not decoded[[0, 2]].any()
    assert (decoded[1] == SMALLEST / 2).all()


def test_small_rows_use_the_smallest_scale_rather_than_none():
    """The best scale would be rounded to 0; with the smallest one, 17 levels still differ."""
    rows = np.linspace(-8 * SMALLEST, 8 * SMALLEST, 100, dtype=np.float32)[None]
    assert quantize(rows, 8).scales.tolist() == [SMALLEST]
    assert decibels(rows, restored(rows, 8)) > 20


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("peak", quick([1e8, 3e38, 1e300], "3e+38", "1e+300"))
def test_rows_too_large_for_float16_are_clipped(bits, peak):
    """The largest scale is used, and values beyond the outermost levels are clipped."""
    rows = np.array([[peak, -peak, peak / 2, 0]])
    if peak < 3.4e38:
        rows = rows.astype(np.float32)
    found = quantize(rows, bits)
    assert found.scales.tolist() == [LARGEST]
    last = 2**bits - 1
    assert found.codes.tolist() == [[last, 0, last, 2 ** (bits - 1)]]
    assert np.isfinite(dequantize(found.codes, found.scales, bits)).all()


@pytest.mark.parametrize("size", [1e-40, 1e-37, 1e-20, 1e20, 1e36])
def test_wider_scales_hold_any_row(size):
    """With float32 scales, squares that overflow or underflow do not spoil the search."""
    rows = (np.random.default_rng(5).standard_normal((10, 300)) * size).astype(np.float32)
    found = quantize(rows, 3, np.float32)
    assert found.scales.dtype == np.float32
    assert decibels(rows / np.float64(size), restored(rows, 3, np.float32) / size) > 14


def test_the_input_is_left_alone():
    rows = tails(6, 2, 30)
    before = rows.copy()
    quantize(rows, 4)
    np.testing.assert_array_equal(rows, before)
