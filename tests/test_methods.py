"""The contract of every method in the registry, and what the SVD must reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.checkpoint.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.linalg.gram import gram
from embcompress.linalg.spectrum import spectrum
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import SPLITS, Dimensions, Settings
from embcompress.tables import Rows

F32 = DTYPES["F32"]


def rows_of(table, dtype=F32):
    return Rows(table.shape, dtype, lambda start, stop: table[start:stop])


def table_of(rows=300, columns=24, seed=0, decay=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * np.logspace(0, -decay, columns)).astype(np.float32)


def stored(method, table, settings_, source=F32):
    """The parts of ``table`` as they would be on disk, rounded to their type."""
    found = spectrum(gram([table], table.shape[1], precise=True).matrix, len(table))
    parts = []
    contents = method.encode(rows_of(table, source), found, settings_)
    for part, blocks in zip(
        method.parts(table.shape, settings_.rank, settings_.dtype), contents, strict=True
    ):
        values = np.concatenate(list(blocks()))
        assert values.shape == part.shape
        parts.append(rows_of(part.dtype.decode(part.dtype.encode(values)), part.dtype))
    return found, parts


def relative_error(method, table, parts):
    back = method.decode(parts, 0, len(table)).astype(np.float64)
    return np.linalg.norm(back - table) / np.linalg.norm(table)


@pytest.fixture(params=METHODS.values(), ids=lambda m: m.name)
def method(request):
    return request.param


class TestContract:
    """What planning, writing and reporting rely on, for whatever joins the registry."""

    def test_name_is_its_key(self, method):
        """The registry finds a method under its own name."""
        assert METHODS[method.name] is method_for(method.name) is method

    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_parts_take_the_bytes_that_are_foretold(self, method, dtype):
        """The size of the stored parts is the size planned with."""
        table = table_of()
        _, parts = stored(method, table, Settings(5, dtype))
        assert [p.suffix for p in method.parts(table.shape, 5, dtype)] == list(method.suffixes)
        assert sum(p.nbytes for p in parts) == method.nbytes(table.shape, 5, dtype)
        assert method.dimensions(parts) == Dimensions(table.shape, 5)

    def test_bytes_grow_with_the_rank_and_errors_fall(self, method):
        """A larger rank costs more and is foretold to lose no more."""
        table = table_of()
        found = spectrum(gram([table], 24).matrix, len(table))
        sizes = [method.nbytes(table.shape, r, F32) for r in range(1, 25)]
        errors = [method.predicted_error(found, r, F32) for r in range(1, 25)]
        assert sizes == sorted(set(sizes))
        assert errors == sorted(errors, reverse=True)

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_predicted_error_is_the_measured_one(self, method, dtype, split):
        """The error foretold is met within one per cent, and a fifth of the type's rounding."""
        table = table_of(decay=2.0)
        for rank in (1, 8, 16, 24):
            found, parts = stored(method, table, Settings(rank, dtype, split, precise=True))
            foretold = method.predicted_error(found, rank, dtype)
            measured = relative_error(method, table, parts)
            assert measured == pytest.approx(foretold, rel=0.01, abs=0.2 * dtype.unit_roundoff + 1e-7)

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_a_zero_row_stays_exactly_zero(self, method, dtype, split):
        """The padding row comes back as zeros, not as something small."""
        table = table_of()
        table[[0, 17]] = 0
        _, parts = stored(method, table, Settings(6, dtype, split))
        assert not method.decode(parts, 0, 300)[[0, 17]].any()

    def test_rows_are_decoded_one_by_one_as_together(self, method):
        """A lookup of some rows gives what the whole table has there."""
        table = table_of()
        _, parts = stored(method, table, Settings(6, F32))
        whole = method.decode(parts, 0, 300)
        np.testing.assert_allclose(method.decode(parts, 123, 130), whole[123:130], rtol=1e-6)

    @pytest.mark.parametrize("split", SPLITS)
    def test_rank_deficient_and_zero_tables(self, method, split):
        """Directions that a table lacks do no harm."""
        for table in (np.outer(np.arange(9), [1, 2, 3, 4]).astype(np.float32), np.zeros((5, 4), np.float32)):
            _, parts = stored(method, table, Settings(3, F32, split))
            np.testing.assert_allclose(method.decode(parts, 0, len(table)), table, atol=1e-5)

    def test_parts_that_do_not_fit_are_refused(self, method):
        """Shapes that have no product are corrupt input."""
        _, parts = stored(method, table_of(), Settings(6, F32))
        wrong = [*parts[:-1], rows_of(np.zeros((24, 5), np.float32))]
        with pytest.raises(InputError, match="no product"):
            method.dimensions(wrong)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_svd_reaches_the_eckart_young_optimum(rows, columns, data):
    """No matrix of this rank is closer, so the dense SVD's error is met and never beaten."""
    table = table_of(rows, columns, data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0, 3)))
    rank = data.draw(st.integers(1, min(rows, columns)))
    _, parts = stored(METHODS["svd"], table, Settings(rank, F32, precise=True))
    singular = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    optimum = np.sqrt(np.sum(singular[rank:] ** 2) / np.sum(singular**2))
    assert relative_error(METHODS["svd"], table, parts) == pytest.approx(optimum, rel=1e-5, abs=4e-7)


def test_svd_beats_other_factors_of_its_rank():
    """A random subspace and the first columns lose: the test above can tell methods apart."""
    table = table_of(decay=0.5)
    _, parts = stored(METHODS["svd"], table, Settings(8, F32))
    best = relative_error(METHODS["svd"], table, parts)
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 8)))
    for weaker in (basis, np.eye(24)[:, 16:]):
        loss = np.linalg.norm(table - table @ weaker @ weaker.T) / np.linalg.norm(table)
        assert loss > 1.1 * best


@pytest.mark.parametrize("split", SPLITS)
def test_singular_values_go_where_they_are_sent(split):
    """left: columns of the right factor are orthonormal; right: those of the left; even: equal norms."""
    table = table_of()
    found, (left, right) = stored(METHODS["svd"], table, Settings(6, F32, split))
    norms_left = np.linalg.norm(left.read(0, 300), axis=0)
    norms_right = np.linalg.norm(right.read(0, 24), axis=0)
    singular = np.sqrt(found.eigenvalues[:6])
    expected = {
        "left": (singular, np.ones(6)),
        "even": (singular**0.5, singular**0.5),
        "right": (np.ones(6), singular),
    }
    np.testing.assert_allclose(norms_left, expected[split][0], rtol=1e-4)
    np.testing.assert_allclose(norms_right, expected[split][1], rtol=1e-4)


def test_float16_overflow_is_refused():
    """A factor beyond 65504 is refused with a wider type as the remedy, not stored as infinity."""
    table = np.full((4, 40), 60000, np.float32)
    with pytest.raises(TargetError, match=r"65504.*bfloat16"):
        stored(METHODS["svd"], table, Settings(1, DTYPES["F16"]))


def test_unknown_methods_are_told_apart():
    """A name the user typed is a usage error, one in a file an input error."""
    with pytest.raises(UsageError, match="svd"):
        method_for("pca")
    with pytest.raises(InputError, match="newer embcompress"):
        method_for("pca", "small.pt")
