"""Trellis-coded tables against a slow decoder, the bound, and simpler codes that must be worse."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.coding import F32, relative_error, rows_of, stats_of, stored, through, zipf
from helpers.quick import quick
from helpers.trellis import slowly
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.errors import InputError
from embcompress.linalg import trellis
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio

PQ = METHODS["pq"]


def gaussian(rows=8000, columns=64, seed=0, decay=1.0):
    """A table with a decaying spectrum, in a random basis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    values = rng.standard_normal((rows, columns)) * np.logspace(0, -decay, columns)
    return (values @ basis.T).astype(np.float32)


def fitted(table, ratio, weights=None):
    stats = stats_of(table, weights)
    return stats, PQ.fit(stats, bytes_for_ratio(stats.rows, ratio), Settings(F32))


def decibels(error):
    return -20 * np.log10(error)


@pytest.mark.parametrize(("ratio", "weighted"), [(0.8, False), (0.9, True), (0.955, True)])
def test_bits_mean_what_is_written_down(ratio, weighted):
    """A decoder in plain Python, written from the documented layout alone, reads the same table."""
    table = gaussian(1200, 40)
    table[[3, 700]] = 0
    stats, layout = fitted(table, ratio, zipf(1200) if weighted else None)
    parts = stored(PQ, stats, layout)
    assert ("0.hot" in parts) == weighted
    expected = PQ.decoder(parts, table.shape, layout.rank)(0, len(table))
    np.testing.assert_allclose(slowly(parts, table.shape), expected, atol=2e-5 * np.abs(table).max())


@pytest.mark.parametrize("ratio", quick([0.88, 0.92, 0.95], "0.92"))
def test_it_stays_near_the_bound(ratio):
    """Gaussian rows are coded within 2.7 dB of the rate–distortion bound, counting all stored bytes."""
    table = gaussian(20000, 64)
    stats, layout = fitted(table, ratio)
    error = relative_error(through(PQ, stats, layout), table)
    bound = stats.spectrum.gaussian_bound(8 * layout.nbytes / len(table))
    assert decibels(error) > decibels(bound) - 2.7


@pytest.mark.parametrize("ratio", quick([0.88, 0.92, 0.95], "0.92"))
def test_simpler_codes_lose(ratio):
    """Negative controls in at least as many bytes: truncation, and equal bits for all components."""
    table = gaussian(20000, 64)
    stats, layout = fitted(table, ratio)
    error = decibels(relative_error(through(PQ, stats, layout), table))
    svd = METHODS["svd"].fit(stats, layout.nbytes, Settings(F32))
    assert error > decibels(svd.predicted_error) + 3
    bits = 8 * layout.nbytes / table.size
    even = decibels(2.0**-bits)  # the bound itself, were all components alike and none transformed
    assert error > even + 0.5


def test_kmeans_of_one_byte_a_group_loses():
    """Product quantization with as many bytes per row, not counting its codebooks, is 2 dB worse."""
    table = gaussian(6000, 32)
    stats, layout = fitted(table, 0.9)
    error = decibels(relative_error(through(PQ, stats, layout), table))
    rng, coefficients = np.random.default_rng(0), table @ stats.spectrum.vectors.astype(np.float32)
    count = int(layout.parts[0].shape[1])
    # Groups of about equal bits under reverse water-filling.
    level = np.sort(stats.spectrum.eigenvalues)[0]
    share = np.cumsum(np.log2(stats.spectrum.eigenvalues / level))
    groups = np.minimum((share / share[-1] * count).astype(int), count - 1)
    decoded = np.zeros_like(coefficients)
    for group in range(count):
        members = groups == group
        if not members.any():
            continue
        points = coefficients[:, members]
        centres = points[rng.permutation(len(points))[:256]]
        for _ in range(12):
            nearest = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
            for k in range(256):
                if (nearest == k).any():
                    centres[k] = points[nearest == k].mean(0)
        decoded[:, members] = centres[nearest]
    assert error > decibels(relative_error(decoded, coefficients)) + 1


def test_frequent_rows_get_more_bytes():
    """With several classes the weighted error is lower than with rows of one length."""
    table, weights = gaussian(8000, 48), zipf(8000) ** 4
    stats, layout = fitted(table, 0.9, weights)
    assert len(layout.state.classes) > 2
    weighted = relative_error(through(PQ, stats, layout), table, weights)
    alike, plain = fitted(table, 0.9)
    assert weighted < 0.8 * relative_error(through(PQ, alike, plain), table, weights)


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_a_second_class_needs_bytes_to_get(ratio):
    """If all rows have the most bits possible, there is one class and no empty part."""
    table = gaussian(1500, 24) * np.float32(0.9) ** np.arange(24, dtype=np.float32)
    stats, layout = fitted(table, ratio)
    assert all(0 not in part.shape for part in layout.parts)
    assert relative_error(through(PQ, stats, layout), table) < 0.02


def test_the_refitted_right_factor_is_better_than_the_basis():
    """Least squares with the coded left factor improves on the original basis."""
    table = gaussian(3000, 32, decay=0.5)
    stats, layout = fitted(table, 0.93)
    parts = stored(PQ, stats, layout)
    read = PQ.decoder(parts, table.shape, layout.rank)
    refitted = relative_error(read(0, len(table)), table)
    coder = layout.state
    basis = stats.spectrum.vectors[:, : layout.rank].astype(np.float32)
    coefficients = coder.classes[0].decode(parts["0.codes"].read(0, len(table)))
    assert refitted < 0.995 * relative_error(coefficients @ basis.T, table)


def test_codebooks_are_stored_as_they_were_planned():
    """Levels are rounded to float16 before rows are encoded with them."""
    _, layout = fitted(gaussian(3000, 32), 0.9)
    for code in layout.state.classes:
        np.testing.assert_array_equal(code.codebooks, code.codebooks.astype(np.float16))
        assert code.code == trellis.TrellisCode(8, code.code.rates)


def changed(parts, suffix, values):
    return {**parts, suffix: rows_of(values, parts[suffix].dtype)}


class TestCorruptParts:
    """Parts from untrusted files are refused, never decoded to nonsense or worse."""

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls):
        table = gaussian(1200, 40)
        table[5] = 0
        stats, layout = fitted(table, 0.9, zipf(1200))
        return table.shape, layout.rank, stored(PQ, stats, layout)

    @pytest.mark.parametrize(
        "case", ["rates", "rate of 17", "odd halves", "hot rows", "zeros", "no bits", "order of classes"]
    )
    def test_values_that_cannot_be(self, made, case):
        """Each contradiction between parts is an input error."""
        shape, rank, parts = made
        rates, kinds = (parts[name].read(0, parts[name].shape[0]) for name in ("0.rates", "0.hot"))
        rates = rates.copy()
        if case == "rates":
            rates[0, 0] = 3
        elif case == "rate of 17":
            rates[0, 0] = 34
        elif case == "odd halves":
            rates[1, -1] = 0 if rates[1, -1] == 1 else 1
            rates[1, 0] = 1
        elif case == "no bits":
            rates[0] = 0
        elif case == "order of classes":
            rates = rates[::-1].copy()
        wrong = changed(parts, "0.rates", rates)
        if case == "hot rows":
            wrong = changed(parts, "0.hot", ~kinds)
        elif case == "zeros":
            wrong = changed(parts, "0.zeros", np.array([[1200]], np.int32))
        with pytest.raises(InputError):
            PQ.decoder(wrong, shape, rank)

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_random_bytes_are_decoded_or_refused(self, made, data):
        """Whatever a part holds, the result is a table of numbers or an input error."""
        shape, rank, parts = made
        suffix = data.draw(st.sampled_from([*parts]))
        part = parts[suffix]
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        noise = rng.integers(0, 256, part.nbytes, np.uint8).view(part.dtype.storage).reshape(part.shape)
        try:
            found = PQ.decoder(changed(parts, suffix, part.dtype.decode(noise)), shape, rank)(10, 30)
        except InputError:
            return
        assert found.shape == (20, shape[1])

    def test_a_second_class_in_part(self, made):
        """Hot rows without their bytes, or bytes without hot rows, are refused."""
        shape, rank, parts = made
        for lost in ("0.extra", "0.hot"):
            with pytest.raises(InputError):
                PQ.decoder({s: p for s, p in parts.items() if s != lost}, shape, rank)


def test_values_beyond_float32_are_not_coded():
    """A float64 table whose squares exceed float32's range has no layout, and nothing is infinite."""
    table = gaussian(600, 16).astype(np.float64) * 1e60
    stats = stats_of(table)
    assert PQ.fit(stats, stats.rows.nbytes // 10, Settings(F32)) is None


@pytest.mark.parametrize("scale", quick([1e-30, 1e-12, 1e12, 1e17], "1e-30", "1e+17"))
def test_the_size_of_numbers_does_not_matter(scale):
    """A scaled table is coded as well as the table."""
    table = gaussian(2000, 32)
    errors = []
    for each in (table, (table * np.float32(scale)).astype(np.float32)):
        stats, layout = fitted(each, 0.9)
        errors.append(relative_error(through(PQ, stats, layout).astype(np.float64), each.astype(np.float64)))
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("shape", [(30, 32), (33, 32), (5, 4), (3, 50), (40, 2)])
def test_small_tables_fit_wherever_they_are_said_to(shape):
    """There is a layout for every limit from ``least`` up, however large codebooks would be."""
    rows = gaussian(*shape)
    stats = stats_of(rows)
    for share in (0.9, 0.7, 0.5, 0.3, 0.1, 0.05):
        limit = int(share * rows.nbytes)
        found = PQ.fit(stats, limit, Settings(F32))
        assert (found is not None) == (limit >= PQ.least(shape, Settings(F32))), share
        if found is not None:
            assert found.nbytes <= limit
            assert found.predicted_error < 1
