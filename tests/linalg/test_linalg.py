"""The streamed linear algebra against NumPy's dense routines in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.linalg.gram import gram
from embcompress.linalg.residual import residual
from embcompress.linalg.spectrum import Spectrum, refined, spectrum


def blocks_of(table, rows=7):
    return (table[i : i + rows] for i in range(0, len(table), rows))


def tables(max_rows=40, max_columns=12):
    """Random matrices with singular values spread over up to four decades."""

    def make(shape_seed):
        rows, columns, seed = shape_seed
        rng = np.random.default_rng(seed)
        return rng.standard_normal((rows, columns)) * np.logspace(0, -rng.uniform(0, 4), columns)

    return st.tuples(st.integers(1, max_rows), st.integers(1, max_columns), st.integers(0, 2**32 - 1)).map(
        make
    )


@settings(deadline=None)
@given(tables(), st.integers(1, 50))
def test_gram_is_the_same_whatever_the_blocks(table, rows):
    """Any split into row blocks gives EᵀE to float64 rounding."""
    found = gram(blocks_of(table, rows), table.shape[1], precise=True)
    np.testing.assert_allclose(found.matrix, table.T @ table, rtol=1e-12, atol=1e-12 * np.sum(table**2))


def test_float32_blocks_are_summed_in_float64():
    """A sum of many float32 blocks keeps six digits where a plain float32 sum does not."""
    rng = np.random.default_rng(0)
    table = np.abs(rng.standard_normal((200_000, 4), dtype=np.float32)) + 1
    exact = table.astype(np.float64).T @ table.astype(np.float64)
    found = gram(blocks_of(table, 1000), 4).matrix
    assert np.abs(found / exact - 1).max() < 1e-6
    naive = np.zeros((4, 4), np.float32)
    for row in table:
        naive += np.outer(row, row)
    assert np.abs(naive / exact - 1).max() > 1e-6, "the weaker method must lose, or this proves nothing"


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_float32_products_neither_overflow_nor_vanish(scale):
    """Values whose squares float32 cannot hold are multiplied in float64."""
    table = (np.random.default_rng(1).standard_normal((50, 5)) * scale).astype(np.float32)
    wide = table.astype(np.float64)
    np.testing.assert_allclose(gram(blocks_of(table), 5).matrix, wide.T @ wide, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_counted(bad):
    """The first bad row and the number of bad rows are reported, across blocks."""
    table = np.ones((30, 3), np.float32)
    table[[11, 12, 25], [0, 2, 1]] = bad
    found = gram(blocks_of(table), 3)
    assert (found.bad_rows, found.first_bad_row) == (3, 11)


@settings(deadline=None)
@given(tables())
def test_spectrum_is_that_of_the_dense_svd(table):
    """Eigenvalues are the squared singular values, and the errors follow Eckart and Young."""
    found = spectrum(table.T @ table, len(table))
    singular = np.linalg.svd(table, compute_uv=False)
    total = np.sum(singular**2)
    np.testing.assert_allclose(found.eigenvalues, singular**2, atol=1e-12 * total)
    optimum = np.sqrt(np.append(np.cumsum(singular[::-1] ** 2)[::-1], 0) / total)
    np.testing.assert_allclose(found.relative_errors(), optimum, atol=1e-6)


def test_imposed_singular_values_are_recovered():
    """A table built from known singular values gives them back."""
    rng = np.random.default_rng(2)
    left, _ = np.linalg.qr(rng.standard_normal((60, 8)))
    right, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    imposed = np.array([9.0, 5, 4, 3, 1, 0.5, 0.1, 0.0])
    found = spectrum((left * imposed @ right).T @ (left * imposed @ right), 60)
    np.testing.assert_allclose(np.sqrt(found.eigenvalues), imposed, atol=1e-7)


def test_more_columns_than_rows_have_as_many_components_as_rows():
    """A table with V < d has V components, which together have no error."""
    table = np.random.default_rng(3).standard_normal((3, 10))
    found = spectrum(table.T @ table, 3)
    assert found.limit == 3
    np.testing.assert_allclose(table @ found.vectors @ found.vectors.T, table, atol=1e-12)


@settings(deadline=None)
@given(tables(), st.floats(0.01, 0.99))
def test_rank_for_error_is_the_smallest(table, error):
    """With one component less the error would be too large."""
    found = spectrum(table.T @ table, len(table))
    rank = found.rank_for_error(error)
    assert found.relative_errors()[rank] <= error
    assert rank == 1 or found.relative_errors()[rank - 1] > error


@settings(deadline=None)
@given(tables(), st.floats(0.01, 1.0))
def test_rank_for_energy_is_the_smallest(table, energy):
    """With one component less too little energy would be kept."""
    found = spectrum(table.T @ table, len(table))
    rank = found.rank_for_energy(energy)
    kept = np.cumsum(found.eigenvalues) / np.cumsum(found.eigenvalues)[-1]
    assert kept[rank - 1] >= energy * (1 - 1e-12)
    assert rank == 1 or kept[rank - 2] < energy


def spectra(max_size=30):
    """Eigenvalues over up to eighteen decades, some of them 0, descending."""
    sizes = st.one_of(st.just(0.0), st.floats(1e-12, 1e6))
    return st.lists(sizes, min_size=1, max_size=max_size).map(lambda v: np.array(sorted(v, reverse=True)))


def bound_by_bisection(eigenvalues, bits):
    """Find by bisection the water level whose rates add up to ``bits``; return what is below it."""
    present = eigenvalues[eigenvalues > 0]
    low, high = np.log2(present.min()) - 2 * bits - 1, np.log2(present.max())
    for _ in range(200):
        level = (low + high) / 2
        rates = np.maximum(0, (np.log2(present) - level) / 2).sum()
        low, high = (level, high) if rates > bits else (low, level)
    return float(np.sqrt(np.minimum(present, 2**high).sum() / present.sum()))


@settings(deadline=None)
@given(spectra(), st.floats(0, 400))
def test_the_gaussian_bound_is_reverse_water_filling(eigenvalues, bits):
    """It equals the result of bisection for the water level, for any spectrum, of full rank or not."""
    found = Spectrum(eigenvalues, np.eye(len(eigenvalues)))
    if not found.total:
        assert found.gaussian_bound(bits) == 0
        return
    assert found.gaussian_bound(bits) == pytest.approx(bound_by_bisection(eigenvalues, bits), rel=1e-9)
    assert found.gaussian_bound(0) == pytest.approx(1)
    assert found.gaussian_bound(1e5) < 1e-9
    assert found.gaussian_bound(bits + 1) < found.gaussian_bound(bits)


@settings(deadline=None)
@given(spectra(), st.integers(1, 32))
def test_the_bound_is_below_what_equal_bits_or_truncation_leave(eigenvalues, bits):
    """Other splits of the bits leave more: equal bits, or all bits for the first components."""
    found, size = Spectrum(eigenvalues, np.eye(len(eigenvalues))), len(eigenvalues)
    kept = size // 2
    evenly = 2.0**-bits
    truncated = np.hypot(
        found.relative_errors()[kept], evenly**2 * np.sqrt(1 - found.relative_errors()[kept] ** 2)
    )
    assert found.gaussian_bound(bits * size) <= evenly * (1 + 1e-9)
    assert found.gaussian_bound(2 * bits * kept) <= truncated * (1 + 1e-9)


def test_the_bound_of_equal_eigenvalues():
    """Equal components share the bits equally: 2^(-bits/d), the D(R) of textbooks."""
    flat = Spectrum(np.full(16, 3.0), np.eye(16))
    assert flat.gaussian_bound(16) == pytest.approx(0.5)
    assert flat.gaussian_bound(160) == pytest.approx(2.0**-10)


def test_effective_rank_of_known_spectra():
    """It is k for k equal singular values, 1 for one dominant value, 0 for none."""
    assert spectrum(np.diag([4.0, 4, 4, 0, 0]), 9).effective_rank == pytest.approx(3)
    assert spectrum(np.diag([4.0, 1e-30, 0]), 9).effective_rank == pytest.approx(1)
    assert spectrum(np.zeros((3, 3)), 9).effective_rank == 0


def test_signs_do_not_depend_on_the_solver():
    """The largest entry of each vector is positive, whatever sign the solver returns."""
    table = np.random.default_rng(4).standard_normal((20, 6))
    vectors = spectrum(table.T @ table, 20).vectors
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(6)] > 0).all()


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_residual_is_the_relative_frobenius_error(scale):
    """Block sums give the dense norm, at any scale float32 can hold."""
    rng = np.random.default_rng(5)
    table = (rng.standard_normal((64, 9)) * scale).astype(np.float32)
    other = (table * np.float32(1.25)).astype(np.float32)
    wide, far = table.astype(np.float64), other.astype(np.float64)
    expected = np.linalg.norm(wide - far) / np.linalg.norm(wide)
    found = residual(zip(blocks_of(table), blocks_of(other - table), strict=True)).plain.relative
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(60, 12), (9, 12)])
@pytest.mark.parametrize("noise", [1e-6, 1e-9, 1e-12])
def test_small_singular_values_are_exact_when_refined(shape, noise):
    """Errors of every rank are those of what the vectors leave, far below what a Gram matrix shows."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    table += noise * rng.standard_normal(shape)
    found = refined(gram(blocks_of(table), shape[1]).matrix, shape[0], lambda: blocks_of(table))
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(found.limit), atol=1e-13)
    for rank in range(found.limit):
        left = table - table @ found.vectors[:, :rank] @ found.vectors[:, :rank].T
        error = np.linalg.norm(left) / np.linalg.norm(table)
        assert found.relative_errors()[rank] == pytest.approx(error, rel=1e-2, abs=1e-15)


def test_a_spectrum_without_small_values_is_not_refined():
    """The table is not read again, and its vectors are bit for bit the same."""
    table = np.random.default_rng(0).standard_normal((60, 12))
    matrix = gram(blocks_of(table), 12).matrix
    found = refined(matrix, 60, lambda: pytest.fail("read again"))
    np.testing.assert_array_equal(found.vectors, spectrum(matrix, 60).vectors)
    assert refined(np.zeros((3, 3)), 5, lambda: pytest.fail("read again")).total == 0


def test_residual_of_a_zero_table():
    """Zeros approximate a zero table without error; the error of anything else is infinite."""
    zero = np.zeros((2, 2), np.float32)
    assert residual([(zero, zero)]).plain.relative == 0
    assert residual([(zero, zero + 1)]).plain.relative == float("inf")
