"""The contract of all methods in the registry, and the optimality of the SVD."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.coding import (
    F32,
    at_rank,
    relative_error,
    stats_of,
    table_of,
    through,
)
from helpers.method_contract import MethodContract
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.choices import SPLITS
from embcompress.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import RankedMethod, Settings


@pytest.fixture(params=METHODS.values(), ids=lambda m: m.name)
def method(request):
    return request.param


class TestContract(MethodContract):
    """Runs the contract for all methods in the registry."""


class TestRankedContract:
    """What --rank relies on, for methods that take a rank."""

    @pytest.fixture(params=[m for m in METHODS.values() if isinstance(m, RankedMethod)], ids=lambda m: m.name)
    def ranked(self, request):
        return request.param

    def test_bytes_grow_with_the_rank_and_errors_fall(self, ranked):
        """A larger rank takes more bytes, and its predicted error is not larger."""
        stats = stats_of(table_of())
        found = [ranked.at_rank(stats, rank, Settings(F32)) for rank in range(1, 25)]
        sizes, errors = [layout.nbytes for layout in found], [layout.predicted_error for layout in found]
        assert sizes == sorted({*sizes})
        assert errors == sorted(errors, reverse=True)
        assert [layout.rank for layout in found] == [*range(1, 25)]

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_predicted_error_is_the_measured_one(self, ranked, dtype, split):
        """The predicted error is right within one per cent and a fifth of the type's unit roundoff."""
        table, asked = table_of(decay=2.0), Settings(dtype, split)
        stats = stats_of(table, precise=True)
        for rank in (1, 8, 16, 24):
            layout = ranked.at_rank(stats, rank, asked)
            measured = relative_error(through(ranked, stats, layout, asked), table)
            slack = 0.2 * dtype.unit_roundoff + 1e-7
            assert measured == pytest.approx(layout.predicted_error, rel=0.01, abs=slack)

    @pytest.mark.parametrize("split", SPLITS)
    def test_splits_keep_zero_rows_and_lacking_directions(self, ranked, split):
        """The split of the singular values changes neither."""
        for table in (np.outer(np.arange(9), [1, 2, 3, 4]).astype(np.float32), np.zeros((5, 4), np.float32)):
            stats, asked = stats_of(table), Settings(F32, split)
            decoded = through(ranked, stats, ranked.at_rank(stats, 3, asked), asked)
            np.testing.assert_allclose(decoded, table, atol=1e-5)
            assert not decoded[0].any()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_svd_reaches_the_eckart_young_optimum(rows, columns, data):
    """No matrix of this rank has a smaller error, so it equals that of the dense SVD."""
    table = table_of(rows, columns, data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0, 3)))
    rank = data.draw(st.integers(1, min(rows, columns)))
    _, decoded = at_rank(table, Settings(F32), rank, precise=True)
    singular = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    optimum = np.sqrt(np.sum(singular[rank:] ** 2) / np.sum(singular**2))
    assert relative_error(decoded, table) == pytest.approx(optimum, rel=1e-5, abs=4e-7)


def test_svd_beats_other_factors_of_its_rank():
    """A random subspace and the first columns are worse, so the test above can fail."""
    table = table_of(decay=0.5)
    _, decoded = at_rank(table, Settings(F32), 8)
    best = relative_error(decoded, table)
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 8)))
    for weaker in (basis, np.eye(24)[:, 16:]):
        loss = np.linalg.norm(table - table @ weaker @ weaker.T) / np.linalg.norm(table)
        assert loss > 1.1 * best


@pytest.mark.parametrize("split", SPLITS)
def test_singular_values_go_where_they_are_sent(split):
    """left: orthonormal columns in the right factor; right: in the left one; even: equal norms."""
    table = table_of()
    parts, _ = at_rank(table, Settings(F32, split), 6)
    left, right = parts.values()
    norms_left = np.linalg.norm(left.read(0, 300), axis=0)
    norms_right = np.linalg.norm(right.read(0, 24), axis=0)
    singular = np.linalg.svd(table, compute_uv=False)[:6]
    expected = {
        "left": (singular, np.ones(6)),
        "even": (singular**0.5, singular**0.5),
        "right": (np.ones(6), singular),
    }
    np.testing.assert_allclose(norms_left, expected[split][0], rtol=1e-4)
    np.testing.assert_allclose(norms_right, expected[split][1], rtol=1e-4)


def test_float16_overflow_is_refused():
    """A factor beyond 65504 is refused, with a wider type as the remedy, instead of stored as infinity."""
    table = np.full((4, 40), 60000, np.float32)
    with pytest.raises(TargetError, match=r"65504.*bfloat16"):
        at_rank(table, Settings(DTYPES["F16"]), 1)


def test_unknown_methods_are_told_apart():
    """A name the user typed is a usage error, one in a file an input error."""
    with pytest.raises(UsageError, match="svd"):
        method_for("pca")
    with pytest.raises(InputError, match="newer embcompress"):
        method_for("pca", "small.pt")
