"""The contract of every method in the registry, and what the SVD must reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.checkpoint.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import SPLITS, RankedMethod, Settings
from embcompress.methods.known import measure
from embcompress.methods.planning import bytes_for_ratio, fits
from embcompress.rows import Rows

F32 = DTYPES["F32"]
SVD = METHODS["svd"]


def rows_of(table, dtype=F32):
    return Rows(table.shape, dtype, lambda start, stop: table[start:stop].copy())


def table_of(rows=300, columns=24, seed=0, decay=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * np.logspace(0, -decay, columns)).astype(np.float32)


def known_of(table, weights=None, *, precise=False):
    return measure(rows_of(table), "e.weight", precise=precise, weights=weights)


def stored(method, known, layout, asked=None):
    """The parts of a table as they would be on disk, rounded to their type."""
    parts = {}
    contents = method.encode(known, layout, asked or Settings(layout.dtype))
    for part, blocks in zip(layout.parts, contents, strict=True):
        values = np.concatenate(list(blocks()))
        assert values.shape == part.shape
        parts[part.suffix] = rows_of(part.dtype.decode(part.dtype.encode(values)), part.dtype)
    return parts


def at_rank(table, asked, rank, *, precise=False):
    """The SVD's parts at a rank, and what they decode to."""
    known = known_of(table, precise=precise)
    layout = SVD.at_rank(known, rank, asked)
    parts = stored(SVD, known, layout, asked)
    return parts, back(SVD, parts, known, layout)


def back(method, parts, known, layout):
    return method.decoder(parts, known.rows.shape, layout.rank)(0, known.rows.shape[0])


def through(method, known, layout, asked=None):
    """The table after it was stored and decoded."""
    return back(method, stored(method, known, layout, asked), known, layout)


def relative_error(decoded, table, weights=None):
    difference = ((decoded.astype(np.float64) - table) ** 2).sum(axis=1)
    squares = (table.astype(np.float64) ** 2).sum(axis=1)
    weights = np.ones(len(table)) if weights is None else weights
    return math.sqrt(weights @ difference / (weights @ squares))


def zipf(count, seed=0):
    """Weights as a corpus gives them."""
    return np.random.default_rng(seed).permutation((1000 / np.arange(1, count + 1) + 1) ** 0.5)


@pytest.fixture(params=METHODS.values(), ids=lambda m: m.name)
def method(request):
    return request.param


RATIOS = (0.3, 0.5, 0.75, 0.9)


def layouts(method, known, dtype=F32):
    """What the method makes of each of ``RATIOS``, where it can."""
    found = (method.fit(known, bytes_for_ratio(known.rows, r), Settings(dtype)) for r in RATIOS)
    return [layout for layout in found if layout is not None]


class TestContract:
    """What planning, writing and reporting rely on, for whatever joins the registry."""

    def test_name_is_its_key(self, method):
        """The registry finds a method under its own name."""
        assert METHODS[method.name] is method_for(method.name) is method

    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_parts_take_the_bytes_that_are_foretold(self, method, dtype):
        """The size of the stored parts is the size planned with, and their shapes tell the table's."""
        table = table_of(2000)
        known = known_of(table)
        for layout in layouts(method, known, dtype):
            parts = stored(method, known, layout)
            assert {*layout.suffixes} <= {*method.suffixes}
            assert sum(part.nbytes for part in parts.values()) == layout.nbytes
            assert back(method, parts, known, layout).shape == table.shape

    def test_limits_are_kept_and_errors_fall_with_bytes(self, method):
        """No layout exceeds its limit; more bytes foretell no larger error; below the least there is none."""
        known = known_of(table_of(2000))
        whole = known.rows.nbytes
        errors = []
        for limit in range(whole // 20, whole, whole // 20):
            layout = method.fit(known, limit, Settings(F32))
            if layout is not None:
                assert layout.nbytes <= limit
            errors.append(1.0 if layout is None else layout.predicted_error)
        assert errors == sorted(errors, reverse=True)
        assert method.fit(known, method.least(known.rows.shape, Settings(F32)) - 1, Settings(F32)) is None

    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    @pytest.mark.parametrize("rows", [300, 6000])
    def test_predicted_error_is_the_measured_one(self, method, rows, weighted):
        """The error foretold is met within the tolerance, weighted or not, by sample or in full."""
        table, weights = table_of(rows, decay=2.0), zipf(rows) if weighted else None
        known = known_of(table, weights)
        for layout in layouts(method, known):
            measured = relative_error(through(method, known, layout), table, weights)
            assert measured == pytest.approx(
                layout.predicted_error, rel=min(0.05, layout.tolerance), abs=1e-7
            )

    def test_cheapest_meets_an_error(self, method):
        """The smallest layout for an error keeps it, and clearly fewer bytes would not."""
        known = known_of(table_of(2000))
        for layout in layouts(method, known):
            error = layout.predicted_error
            if 0 < error < 1:
                cheapest = method.cheapest(known, 1.03 * error, Settings(F32))
                assert cheapest.predicted_error <= 1.03 * error
                assert cheapest.nbytes <= layout.nbytes
                less = method.fit(known, int(0.98 * cheapest.nbytes), Settings(F32))
                assert less is None or less.predicted_error > error

    def test_an_error_out_of_reach_is_refused(self, method):
        """What no layout smaller than the table can promise is said, with the best there is."""
        with pytest.raises(TargetError, match=r"e\.weight"):
            method.cheapest(known_of(table_of(decay=0)), 1e-9, Settings(DTYPES["BF16"]))

    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_a_zero_row_stays_exactly_zero(self, method, dtype):
        """The padding row comes back as zeros, not as something small."""
        table = table_of(2000)
        table[[0, 17]] = 0
        known = known_of(table)
        for layout in layouts(method, known, dtype):
            decoded = through(method, known, layout)
            assert not decoded[[0, 17]].any()
            assert decoded[1:17].any(axis=1).mean() > 0.2

    def test_rows_are_decoded_one_by_one_as_together(self, method):
        """A lookup of some rows gives what the whole table has there."""
        table = table_of(2000)
        known = known_of(table, zipf(2000))
        for layout in layouts(method, known):
            read = method.decoder(stored(method, known, layout), table.shape, layout.rank)
            whole = read(0, 2000)
            np.testing.assert_allclose(read(1123, 1130), whole[1123:1130], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(read(1999, 2000), whole[1999:], rtol=1e-5, atol=1e-7)

    def test_the_same_table_gives_the_same_bytes(self, method):
        """Nothing random is left to chance."""
        known = known_of(table_of(2000))
        for layout, again in zip(layouts(method, known), layouts(method, known), strict=True):
            first, second = stored(method, known, layout), stored(method, known, again)
            for suffix, part in first.items():
                np.testing.assert_array_equal(
                    part.read(0, part.shape[0]), second[suffix].read(0, part.shape[0])
                )

    def test_rank_deficient_and_zero_tables(self, method):
        """Directions that a table lacks do no harm."""
        for table in (
            np.outer(np.arange(90), [1, 2, 3, 4]).astype(np.float32),
            np.zeros((50, 4), np.float32),
        ):
            known = known_of(table)
            for layout in layouts(method, known):
                decoded = through(method, known, layout)
                assert np.isfinite(decoded).all()
                assert np.linalg.norm(decoded - table) <= (layout.predicted_error * 1.05 + 1e-6) * (
                    np.linalg.norm(table)
                )

    def test_tiny_tables_are_coded_or_refused(self, method):
        """One row, one column, fewer rows than columns: a layout that fits, or none."""
        for shape in ((1, 1), (1, 24), (24, 1), (2, 3), (5, 40)):
            table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            known = known_of(table)
            for layout in layouts(method, known):
                decoded = through(method, known, layout)
                assert relative_error(decoded, table) <= layout.predicted_error * 1.05 + 1e-6

    def test_parts_that_do_not_fit_are_refused(self, method):
        """Shapes that cannot be of one table are corrupt input."""
        table = table_of(2000)
        known = known_of(table, zipf(2000))
        layout = layouts(method, known)[0]
        parts = stored(method, known, layout)
        for suffix, part in parts.items():
            columns = part.shape[1] + 1
            other = Rows((part.shape[0], columns), part.dtype, lambda a, b, n=columns: np.zeros((b - a, n)))
            with pytest.raises(InputError, match=r"are not those of a table \[2000, 24\]"):
                method.decoder({**parts, suffix: other}, table.shape, layout.rank)
        for shape in ((1999, 24), (2000, 40)):
            with pytest.raises(InputError, match="as its record says"):
                method.decoder(parts, shape, layout.rank)

    def test_the_widest_header_is_foreseen(self, method):
        """Sizes are budgeted with every part that a method may store."""
        assert method.widest((2000, 24), Settings(F32, mirrored=True)).suffixes == method.suffixes


def test_a_sample_of_methods_in_one_budget():
    """Every method that fits a budget is looked at, each within it."""
    known = known_of(table_of(2000))
    limit = bytes_for_ratio(known.rows, 0.5)
    found = fits(known, limit, Settings(F32))
    assert "svd" in found
    assert all(layout.nbytes <= limit for layout in found.values())


class TestRankedContract:
    """What --rank relies on, for methods that go by it."""

    @pytest.fixture(params=[m for m in METHODS.values() if isinstance(m, RankedMethod)], ids=lambda m: m.name)
    def ranked(self, request):
        return request.param

    def test_bytes_grow_with_the_rank_and_errors_fall(self, ranked):
        """A larger rank costs more and is foretold to lose no more."""
        known = known_of(table_of())
        found = [ranked.at_rank(known, rank, Settings(F32)) for rank in range(1, 25)]
        sizes, errors = [layout.nbytes for layout in found], [layout.predicted_error for layout in found]
        assert sizes == sorted({*sizes})
        assert errors == sorted(errors, reverse=True)
        assert [layout.rank for layout in found] == [*range(1, 25)]

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
    def test_predicted_error_is_the_measured_one(self, ranked, dtype, split):
        """The error foretold is met within one per cent, and a fifth of the type's rounding."""
        table, asked = table_of(decay=2.0), Settings(dtype, split)
        known = known_of(table, precise=True)
        for rank in (1, 8, 16, 24):
            layout = ranked.at_rank(known, rank, asked)
            measured = relative_error(through(ranked, known, layout, asked), table)
            slack = 0.2 * dtype.unit_roundoff + 1e-7
            assert measured == pytest.approx(layout.predicted_error, rel=0.01, abs=slack)

    @pytest.mark.parametrize("split", SPLITS)
    def test_splits_keep_zero_rows_and_lacking_directions(self, ranked, split):
        """Where the singular values stand changes neither."""
        for table in (np.outer(np.arange(9), [1, 2, 3, 4]).astype(np.float32), np.zeros((5, 4), np.float32)):
            known, asked = known_of(table), Settings(F32, split)
            decoded = through(ranked, known, ranked.at_rank(known, 3, asked), asked)
            np.testing.assert_allclose(decoded, table, atol=1e-5)
            assert not decoded[0].any()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_svd_reaches_the_eckart_young_optimum(rows, columns, data):
    """No matrix of this rank is closer, so the dense SVD's error is met and never beaten."""
    table = table_of(rows, columns, data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0, 3)))
    rank = data.draw(st.integers(1, min(rows, columns)))
    _, decoded = at_rank(table, Settings(F32), rank, precise=True)
    singular = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    optimum = np.sqrt(np.sum(singular[rank:] ** 2) / np.sum(singular**2))
    assert relative_error(decoded, table) == pytest.approx(optimum, rel=1e-5, abs=4e-7)


def test_svd_beats_other_factors_of_its_rank():
    """A random subspace and the first columns lose: the test above can tell methods apart."""
    table = table_of(decay=0.5)
    _, decoded = at_rank(table, Settings(F32), 8)
    best = relative_error(decoded, table)
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 8)))
    for weaker in (basis, np.eye(24)[:, 16:]):
        loss = np.linalg.norm(table - table @ weaker @ weaker.T) / np.linalg.norm(table)
        assert loss > 1.1 * best


@pytest.mark.parametrize("split", SPLITS)
def test_singular_values_go_where_they_are_sent(split):
    """left: columns of the right factor are orthonormal; right: those of the left; even: equal norms."""
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
    """A factor beyond 65504 is refused with a wider type as the remedy, not stored as infinity."""
    table = np.full((4, 40), 60000, np.float32)
    with pytest.raises(TargetError, match=r"65504.*bfloat16"):
        at_rank(table, Settings(DTYPES["F16"]), 1)


def test_unknown_methods_are_told_apart():
    """A name the user typed is a usage error, one in a file an input error."""
    with pytest.raises(UsageError, match="svd"):
        method_for("pca")
    with pytest.raises(InputError, match="newer embcompress"):
        method_for("pca", "small.pt")
