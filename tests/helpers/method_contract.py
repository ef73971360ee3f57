"""What planning, writing and reporting rely on, for whatever method joins the registry."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.coding import (
    F32,
    back,
    never_rise,
    relative_error,
    stats_of,
    stored,
    table_of,
    through,
    zipf,
)
from helpers.quick import quick

from embcompress.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError, TargetError
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio
from embcompress.rows import Rows

RATIOS = (0.3, 0.75, 0.9)
SIZES = {"few": (300, False), "few, weighted": (300, True), "many": (6000, False),
         "many, weighted": (6000, True)}  # fmt: skip


def layouts(method, stats, dtype=F32):
    """What the method makes of each of ``RATIOS``, where it can."""
    found = (method.fit(stats, bytes_for_ratio(stats.rows, r), Settings(dtype)) for r in RATIOS)
    return [layout for layout in found if layout is not None]


class MethodContract:
    """What planning, writing and reporting rely on, for whatever joins the registry."""

    def test_name_is_its_key(self, method):
        """The registry finds a method under its own name."""
        assert METHODS[method.name] is method_for(method.name) is method

    @pytest.mark.parametrize("dtype", quick(TABLE_DTYPES, "F32", "BF16"))
    def test_parts_take_the_predicted_bytes(self, method, dtype):
        """The size of the stored parts is the size planned with, and their shapes give the table's."""
        table = table_of(2000)
        stats = stats_of(table)
        for layout in layouts(method, stats, dtype):
            parts = stored(method, stats, layout)
            assert {*layout.suffixes} <= {*method.suffixes}
            assert sum(part.nbytes for part in parts.values()) == layout.nbytes
            assert back(method, parts, stats, layout).shape == table.shape

    def test_limits_are_kept_and_errors_fall_with_bytes(self, method):
        """Limits are kept, more bytes never predict a larger error, below the least there is none."""
        stats = stats_of(table_of(2000))
        whole = stats.rows.nbytes
        errors = []
        for limit in range(whole // 20, whole, whole // 10):
            layout = method.fit(stats, limit, Settings(F32))
            if layout is not None:
                assert layout.nbytes <= limit
            errors.append(1.0 if layout is None else layout.predicted_error)
        assert never_rise(errors)
        assert method.fit(stats, method.least(stats.rows.shape, Settings(F32)) - 1, Settings(F32)) is None

    @pytest.mark.parametrize(("rows", "weighted"), quick(SIZES, "few, weighted", "many"))
    def test_predicted_error_is_the_measured_one(self, method, rows, weighted):
        """The predicted error is met within the tolerance, weighted or not, by sample or in full."""
        table, weights = table_of(rows, decay=2.0), zipf(rows) if weighted else None
        stats = stats_of(table, weights)
        for layout in layouts(method, stats):
            measured = relative_error(through(method, stats, layout), table, weights)
            assert measured == pytest.approx(
                layout.predicted_error, rel=min(0.05, layout.tolerance), abs=1e-7
            )

    def test_cheapest_meets_an_error(self, method):
        """The smallest layout for an error keeps it, and clearly fewer bytes would not."""
        stats = stats_of(table_of(1000))
        for layout in layouts(method, stats):
            error = layout.predicted_error
            if 0 < error < 1:
                cheapest = method.cheapest(stats, 1.03 * error, Settings(F32))
                assert cheapest.predicted_error <= 1.03 * error
                assert cheapest.nbytes <= layout.nbytes
                less = method.fit(stats, int(0.98 * cheapest.nbytes), Settings(F32))
                assert less is None or less.predicted_error > error

    def test_an_error_out_of_reach_is_refused(self, method):
        """What no layout smaller than the table can promise is said, with the best there is."""
        with pytest.raises(TargetError, match=r"e\.weight"):
            method.cheapest(stats_of(table_of(decay=0)), 1e-9, Settings(DTYPES["BF16"]))

    @pytest.mark.parametrize("dtype", quick(TABLE_DTYPES, "F16"))
    def test_a_zero_row_stays_exactly_zero(self, method, dtype):
        """The padding row comes back as zeros, not as something small."""
        table = table_of(2000)
        table[[0, 17]] = 0
        stats = stats_of(table)
        for layout in layouts(method, stats, dtype):
            decoded = through(method, stats, layout)
            assert not decoded[[0, 17]].any()
            assert decoded[1:17].any(axis=1).mean() > 0.2

    def test_rows_are_decoded_one_by_one_as_together(self, method):
        """A lookup of some rows gives what the whole table has there."""
        table = table_of(2000)
        stats = stats_of(table, zipf(2000))
        for layout in layouts(method, stats):
            read = method.decoder(stored(method, stats, layout), table.shape, layout.rank)
            whole = read(0, 2000)
            np.testing.assert_allclose(read(1123, 1130), whole[1123:1130], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(read(1999, 2000), whole[1999:], rtol=1e-5, atol=1e-7)

    def test_the_same_table_gives_the_same_bytes(self, method):
        """Nothing random is left to chance."""
        stats = stats_of(table_of(2000))
        for layout, again in zip(layouts(method, stats), layouts(method, stats), strict=True):
            first, second = stored(method, stats, layout), stored(method, stats, again)
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
            stats = stats_of(table)
            for layout in layouts(method, stats):
                decoded = through(method, stats, layout)
                assert np.isfinite(decoded).all()
                assert np.linalg.norm(decoded - table) <= (layout.predicted_error * 1.05 + 1e-6) * (
                    np.linalg.norm(table)
                )

    def test_tiny_tables_are_coded_or_refused(self, method):
        """One row, one column, fewer rows than columns: a layout that fits, or none."""
        for shape in ((1, 1), (1, 24), (24, 1), (2, 3), (5, 40)):
            table = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            stats = stats_of(table)
            for layout in layouts(method, stats):
                decoded = through(method, stats, layout)
                assert relative_error(decoded, table) <= layout.predicted_error * 1.05 + 1e-6

    def test_parts_that_do_not_fit_are_refused(self, method):
        """Shapes that cannot be of one table are corrupt input."""
        table = table_of(2000)
        stats = stats_of(table, zipf(2000))
        layout = layouts(method, stats)[0]
        parts = stored(method, stats, layout)
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
