"""From targets to ranks: the largest rank within a size, the smallest that reaches an error."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from helpers.quick import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.dtypes import DTYPES, TABLE_DTYPES
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.planning import Target, bytes_for_ratio, plan_tables
from embcompress.rows import Rows
from embcompress.tables import Table

SVD, F32, F16 = METHODS["svd"], DTYPES["F32"], DTYPES["F16"]


def rank_for_ratio(method, rows, dtype, ratio):
    return method.largest_rank(rows.shape, bytes_for_ratio(rows, ratio), Settings(dtype))


def shape_only(rows, columns, dtype=F32):
    """A table whose rows must not be read, since sizes decide everything."""

    def read(start, stop):
        raise AssertionError(f"rows {start} to {stop} were read")

    return Rows((rows, columns), dtype, read)


def random_table(rows=200, columns=16, seed=0, name="embedding.weight"):
    values = np.random.default_rng(seed).standard_normal((rows, columns)) * np.logspace(0, -2, columns)
    values = values.astype(np.float32)
    return Table(name, Rows(values.shape, F32, lambda start, stop: values[start:stop]))


def kinds_of_table(kind, rows=3000, columns=24):
    """Tables of which different methods are the best."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((rows, columns))
    if kind == "decaying":
        values /= 1 + np.arange(columns)
    elif kind == "low rank":
        values = values[:, :3] @ values[:3]
    elif kind == "clusters":
        values = values[rng.integers(0, 20, rows)] + 0.05 * rng.standard_normal((rows, columns))
    elif kind == "few rows":
        values[rng.random(rows) > 0.05] = values[0]
    values = values.astype(np.float32)
    return Table(kind, Rows(values.shape, F32, lambda start, stop: values[start:stop]))


@pytest.mark.parametrize(("ratio", "rank"), [(0.5, 189), (0.75, 94), (0.9, 37)])
def test_ranks_of_minilm(ratio, rank):
    """The ranks that r(V+d) ≤ (1-ratio)·V·d gives for 30522×384."""
    assert rank_for_ratio(SVD, shape_only(30522, 384), F32, ratio) == rank


def test_rank_of_the_paper():
    """V=16000, d=300 and 90 % removed give rank 29, as in the released code."""
    assert rank_for_ratio(SVD, shape_only(16000, 300), F32, 0.9) == 29


def test_decimal_ratios_mean_what_they_say():
    """0.9 of a table of 10×10 bytes·k leaves a tenth, although 1 - 0.9 is below 0.1 in binary."""
    # 20 elements a rank, 2000 in the table: a tenth is 200, exactly ten ranks.
    assert rank_for_ratio(SVD, shape_only(180, 20), F32, 0.9) == int(0.1 * 3600 / 200 + 1e-9)
    assert rank_for_ratio(SVD, shape_only(100, 25), F32, 0.9) == 2


def test_a_narrower_type_buys_rank():
    """The ratio counts bytes: float16 factors of a float32 table have twice the rank."""
    rows = shape_only(30522, 384)
    assert rank_for_ratio(SVD, rows, F16, 0.9) == 75


@given(
    st.integers(1, 3000),
    st.integers(1, 400),
    st.floats(0.01, 0.99),
    st.sampled_from(TABLE_DTYPES),
    st.sampled_from(TABLE_DTYPES),
)
def test_ratio_gives_the_largest_rank_that_fits(rows, columns, ratio, source, stored):
    """At least the requested ratio of bytes is removed; one rank more would remove less."""
    table = shape_only(rows, columns, source)
    rank = rank_for_ratio(SVD, table, stored, ratio)
    limit = (1 - ratio) * table.nbytes
    assert 0 <= rank <= min(rows, columns)
    assert SVD.nbytes((rows, columns), rank, Settings(stored)) <= limit + 1e-3
    if rank < min(rows, columns):
        assert SVD.nbytes((rows, columns), rank + 1, Settings(stored)) > limit - 1e-3


@given(st.integers(1, 3000), st.integers(1, 400), st.sampled_from(TABLE_DTYPES))
def test_break_even_is_the_last_rank_that_pays(rows, columns, stored):
    """At the break-even rank the factors are smaller than the table; at the next rank they are not."""
    table = shape_only(rows, columns)
    rank = SVD.break_even(table, Settings(stored))
    assert SVD.nbytes((rows, columns), rank, Settings(stored)) < table.nbytes
    if rank < min(rows, columns):
        assert SVD.nbytes((rows, columns), rank + 1, Settings(stored)) >= table.nbytes


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("rank", 17), "rank 17 is above min"),
        (Target("rank", 15), "break-even rank is 14"),
        (Target("ratio", 0.999), "svd takes at least 864"),
    ],
)
def test_targets_that_sizes_rule_out_are_refused_before_a_row_is_read(target, words):
    """The message names the break-even rank; the table is not read."""
    table = Table("e.weight", shape_only(200, 16))
    with pytest.raises(TargetError, match=words) as refused:
        plan_tables([table], target, SVD)
    assert "14" in str(refused.value)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.02, 0.9))
def test_max_error_is_met_by_the_smallest_rank(seed, error):
    """The predicted error is at most the requested one; one rank less would exceed it."""
    table = random_table(seed=seed)
    (plan,) = plan_tables([table], Target("max_error", error), SVD)
    assert plan.layout.predicted_error <= error
    assert (
        plan.layout.rank == 1 or SVD.predicted_error(plan.stats.spectrum, plan.layout.rank - 1, F32) > error
    )


def test_max_error_counts_the_rounding_of_the_stored_type():
    """An error near bfloat16's rounding needs more components in bfloat16 than in float32."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((4000, 16)) * np.logspace(0, -4, 16)).astype(np.float32)
    table = Table("e.weight", Rows(values.shape, F32, lambda a, b: values[a:b]))
    target = Target("max_error", 0.0031)
    (wide,) = plan_tables([table], target, SVD)
    (short,) = plan_tables([table], target, SVD, DTYPES["BF16"])
    assert short.layout.rank > wide.layout.rank
    with pytest.raises(TargetError, match="below the rounding of bfloat16"):
        plan_tables([table], Target("max_error", 0.001), SVD, DTYPES["BF16"])


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_is_the_share_of_squared_singular_values(energy):
    """The smallest rank whose squared singular values add up to the share, by NumPy's SVD."""
    table = random_table()
    (plan,) = plan_tables([table], Target("energy", energy), SVD)
    squares = np.linalg.svd(table.rows.read(0, 200), compute_uv=False) ** 2
    assert plan.layout.rank == int(np.argmax(np.cumsum(squares) / squares.sum() >= energy)) + 1


def test_energy_past_break_even_is_refused():
    """An error target never makes the table larger."""
    with pytest.raises(TargetError, match="break-even rank is 14"):
        plan_tables([random_table()], Target("energy", 1), SVD)


def test_max_size_is_shared_in_proportion():
    """Two tables share a budget so that each keeps the same fraction, and never exceed it."""
    tables = [random_table(2000, 64), random_table(4000, 96, seed=1, name="other.weight")]
    total = sum(t.rows.nbytes for t in tables)
    plans = plan_tables(tables, Target("max_size", 1), SVD, budget=total // 3)
    assert sum(p.bytes_after for p in plans) <= total // 3
    assert all(p.ratio == pytest.approx(2 / 3, abs=0.02) for p in plans)


def test_float64_is_used_where_float32_predicts_too_coarsely():
    """A steep spectrum near full rank is planned precisely, a flat one is not."""
    rng = np.random.default_rng(0)
    steep = (rng.standard_normal((500, 16)) * np.logspace(0, -7, 16)).astype(np.float32)
    table = Table("e.weight", Rows(steep.shape, F32, lambda a, b: steep[a:b]))
    (plan,) = plan_tables([table], Target("rank", 12), SVD)
    assert plan.stats.precise
    (flat,) = plan_tables([random_table()], Target("rank", 2), SVD)
    assert not flat.stats.precise


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("rank", value) for value in (0, -1, 2.5)),
        *(("ratio", value) for value in (0, 1, 1.5, -0.1, float("nan"))),
        *(("energy", value) for value in (0, 1.1)),
        *(("max_error", value) for value in (0, 1)),
        ("max_size", 0),
        ("speed", 1),
    ],
)
def test_targets_without_meaning_are_usage_errors(kind, value):
    """Values outside their range are refused with the range."""
    with pytest.raises(UsageError):
        Target(kind, value)


def test_values_that_cannot_be_squared_are_refused():
    """A float64 table beyond 1e154 has no Gram matrix."""
    huge = np.full((3, 2), 1e200)
    table = Table("e.weight", Rows((3, 2), DTYPES["F64"], lambda a, b: huge[a:b]))
    with pytest.raises(InputError, match="cannot be squared"):
        plan_tables([table], Target("max_error", 0.5), SVD)


class TestAuto:
    """Method auto: of all methods the one that is best for the target."""

    @pytest.mark.parametrize("ratio", quick([0.5, 0.74, 0.8, 0.9, 0.98], "0.8", "0.98"))
    @pytest.mark.parametrize("rows", [60, 2000])
    def test_it_takes_the_least_error_within_the_bytes(self, rows, ratio):
        """No method has a smaller predicted error in as many bytes."""
        table = random_table(rows, 24)
        try:
            (plan,) = plan_tables([table], Target("ratio", ratio), None)
        except TargetError:
            assert all(m.least(table.rows.shape, Settings(F32)) > (1 - ratio) * table.rows.nbytes
                       for m in METHODS.values())  # fmt: skip
            return
        assert plan.ratio >= ratio - 1e-9
        for method in METHODS.values():
            with contextlib.suppress(TargetError):
                (other,) = plan_tables([table], Target("ratio", ratio), method)
                assert plan.layout.predicted_error <= 1.015 * other.layout.predicted_error

    @pytest.mark.parametrize("error", quick([0.5, 0.2, 0.05], "0.2"))
    def test_it_takes_the_fewest_bytes_for_an_error(self, error):
        """No method reaches the error in fewer bytes."""
        table = random_table(2000, 24)
        (plan,) = plan_tables([table], Target("max_error", error), None)
        assert plan.layout.predicted_error <= error
        for method in METHODS.values():
            with contextlib.suppress(TargetError):
                (other,) = plan_tables([table], Target("max_error", error), method)
                assert plan.layout.nbytes <= 1.015 * other.layout.nbytes

    @pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
    @pytest.mark.parametrize(
        "kind", quick(["flat", "decaying", "low rank", "clusters", "few rows"], "decaying", "few rows")
    )
    def test_quick_estimates_pass_over_no_method_that_is_the_best(self, kind, ratio):
        """The choice is that of fitting every method, and an error is shown of each method that fits."""
        table = kinds_of_table(kind)
        (plan,) = plan_tables([table], Target("ratio", ratio), None)
        limit = bytes_for_ratio(table.rows, ratio)
        fitted = {n: m.fit(plan.stats, limit, plan.settings) for n, m in METHODS.items()}
        layouts = {name: layout for name, layout in fitted.items() if layout is not None}
        least = min(layout.predicted_error for layout in layouts.values())
        alike = [n for n, layout in layouts.items() if layout.predicted_error <= 1.015 * least]
        assert plan.method.name == min(alike, key=lambda n: METHODS[n].flops((3000, 24), layouts[n].rank))
        assert plan.layout.nbytes == layouts[plan.method.name].nbytes
        assert list(plan.rivals) == list(layouts)
        fits = {name: layout.predicted_error for name, layout in layouts.items()}
        assert all(shown == fits[name] or shown > 1.5 * least for name, shown in plan.rivals.items())

    def test_a_rank_is_no_target_for_it(self):
        """A rank means nothing to methods without one."""
        with pytest.raises(UsageError, match="method auto takes no rank"):
            plan_tables([random_table()], Target("rank", 3), None)
        with pytest.raises(UsageError, match="method int4 takes no rank"):
            plan_tables([random_table()], Target("rank", 3), METHODS["int4"])
