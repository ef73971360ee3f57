"""Dictionary screening: which rows are kept, what replaces the others, and when it helps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.coding import F32, never_rise, relative_error, rows_of, stats_of, stored, table_of, through, zipf
from helpers.method_contract import MethodContract
from helpers.quick import quick
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.dtypes import DTYPES
from embcompress.errors import InputError, TargetError, UsageError
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio
from embcompress.methods.screen import dropping
from embcompress.methods.screen.dropping import picked, ranking
from embcompress.methods.stats import measure
from embcompress.rows import Rows

SCREEN = METHODS["screen"]
COMBINED = ("screen+svd", "screen+int8", "screen+int3", "screen+pq")
AS_F32 = Settings(F32)


class TestCombined(MethodContract):
    """Runs the contract of methods for screening in front of another method."""

    @pytest.fixture(params=quick(COMBINED, "screen+svd", "screen+pq"))
    def method(self, request):
        return method_for(request.param)

    def test_name_is_its_key(self, method):
        """A combination is one object with its own name, and is not in the registry."""
        assert method_for(method.name) is method
        assert method.name not in METHODS
        assert method.suffixes == ("0.kept", *method.inner.suffixes)
        assert method.parts[1:] == method.inner.parts


def at(table, ratio, weights=None, method=SCREEN):
    """The layout at a ratio, and the decoded table."""
    stats = stats_of(table, weights)
    layout = method.fit(stats, bytes_for_ratio(stats.rows, ratio), AS_F32)
    return layout, through(method, stats, layout)


def kept_by(layout):
    return layout.state.dropped.kept


def test_what_is_not_registered_is_refused():
    """An unknown inner method, and screening twice."""
    for name in ("screen+pca", "screen+", "screen+screen", "screen+screen+svd", "svd+screen", "screen+auto"):
        with pytest.raises(UsageError, match=r"screen\+METHOD"):
            method_for(name)
        with pytest.raises(InputError, match="newer embcompress"):
            method_for(name, "small.pt")


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_kept_rows_are_exact_and_dropped_ones_are_their_weighted_mean(ratio):
    """Tokens of most weight decode to the bit; all others share one row, the float64 mean of their rows."""
    table, weights = table_of(3000), zipf(3000)
    layout, decoded = at(table, ratio, weights)
    kept = kept_by(layout)
    assert kept.sum() == (bytes_for_ratio(rows_of(table), ratio) - 375) // 96 - 1
    assert weights[kept].min() > weights[~kept].max()
    np.testing.assert_array_equal(decoded[kept], table[kept])
    mean = np.average(table[~kept].astype(np.float64), axis=0, weights=weights[~kept])
    np.testing.assert_allclose(decoded[~kept], np.tile(mean, ((~kept).sum(), 1)), rtol=1e-6, atol=1e-8)
    assert layout.predicted_error == pytest.approx(relative_error(decoded, table, weights), rel=1e-6)


def test_no_other_shared_row_is_better():
    """The weighted mean is the least-squares solution of lstsq in float64, and any step away is worse."""
    table, weights = table_of(500, 6), zipf(500)
    layout, decoded = at(table, 0.6, weights)
    dropped = ~kept_by(layout)
    roots = np.sqrt(weights[dropped])[:, None]
    best, *_ = np.linalg.lstsq(roots, roots * table[dropped].astype(np.float64), rcond=None)
    np.testing.assert_allclose(decoded[dropped][0], best[0], rtol=1e-5, atol=1e-7)
    for column in range(6):
        for step in (-0.05, 0.05):
            other = decoded.astype(np.float64)
            other[dropped, column] += step
            assert relative_error(other, table, weights) > layout.predicted_error


def screened(table, weights, kept):
    """The error if these rows are kept and the mean of the others replaces them."""
    stand_in = table.astype(np.float64)
    stand_in[~kept] = np.average(stand_in[~kept], axis=0, weights=weights[~kept])
    return relative_error(stand_in, table, weights)


def test_dropping_the_wrong_tokens_loses():
    """Dropping as many tokens at random loses more, and dropping the most important ones loses most."""
    table, weights = table_of(3000), zipf(3000)
    layout, _ = at(table, 0.7, weights)
    count = int(kept_by(layout).sum())
    least_first = np.isin(np.arange(3000), np.argsort(weights)[:count])
    at_random = np.random.default_rng(1).permutation(3000) < count
    assert layout.predicted_error == pytest.approx(screened(table, weights, kept_by(layout)), rel=1e-6)
    assert screened(table, weights, at_random) > 1.1 * layout.predicted_error
    assert screened(table, weights, least_first) > 1.04 * screened(table, weights, at_random)


def test_ties_drop_what_is_nearest_to_the_mean():
    """Among tokens of equal weight those nearest to the shared row are dropped, as without weights."""
    table = table_of(1000)
    table[::2] *= 0.05
    table += 1
    for weights in (None, np.ones(1000), np.full(1000, 3.0)):
        layout, decoded = at(table, 0.5, weights)
        distances = np.linalg.norm(table - table.mean(axis=0), axis=1)
        assert distances[kept_by(layout)].min() >= distances[~kept_by(layout)].max()
        any_half = np.random.default_rng(0).permutation(1000) < kept_by(layout).sum()
        assert relative_error(decoded, table) < 0.5 * screened(table, np.ones(1000), any_half)
    seen = np.where(np.arange(1000) % 4 == 0, 5.0, 1.0)
    layout, _ = at(table, 0.5, seen)
    kept = kept_by(layout)
    assert kept[seen > 1].all(), "weight comes before distance"
    means = table[seen == 1].mean(axis=0)
    distances = np.linalg.norm(table - means, axis=1)
    assert distances[kept & (seen == 1)].min() >= distances[~kept].max()


def test_losses_are_exact_for_every_number(monkeypatch):
    """Also between positions with stored sums: as computed directly in float64, falling with every row."""
    monkeypatch.setattr(dropping, "_BUCKETS", 7)
    table, weights = table_of(60, 5), np.round(zipf(60))
    table[[4, 9]] = 0
    ranked = ranking(stats_of(table, weights))
    losses = []
    for keep in range(61):
        found = ranked.drop(keep)
        assert found.kept.sum() <= keep
        stand_in = np.where(found.kept[:, None], table.astype(np.float64), found.shared)
        squares = ((table - stand_in) ** 2).sum(axis=1)
        assert found.loss == pytest.approx(weights @ squares, rel=1e-6, abs=1e-12)
        assert found.weight == pytest.approx(weights[~found.kept].sum())
        assert not stand_in[[4, 9]].any()
        losses.append(found.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


ZEROS = {
    f"{name}, {zeros}": (name, zeros) for name in ("screen", *COMBINED) for zeros in (3, 150, 400, 999, 1000)
}
SOME = ("screen, 3", "screen, 999", "screen, 1000", "screen+svd, 150", "screen+int8, 400", "screen+pq, 999")


@pytest.mark.parametrize(("name", "zeros"), quick(ZEROS, *SOME))
def test_many_zero_rows(name, zeros):
    """However many there are, they stay zeros at every size, and more bytes never lose more."""
    table = table_of(1000)
    table[np.random.default_rng(0).permutation(1000) < zeros] = 0
    weights, method = zipf(1000), method_for(name)
    stats, errors = stats_of(table, weights), []
    for limit in range(2000, 90_000, 8000):
        layout = method.fit(stats, limit, AS_F32)
        errors.append(1.0 if layout is None else layout.predicted_error)
        if layout is not None:
            decoded = through(method, stats, layout)
            assert not decoded[~table.any(axis=1)].any()
            measured = relative_error(decoded, table, weights) if zeros < 1000 else 0
            assert measured == pytest.approx(layout.predicted_error, rel=layout.tolerance, abs=3e-7)
    assert never_rise(errors)


def test_a_table_of_one_row():
    """It cannot shrink; with enough bytes, its one row is the shared one."""
    for table in (table_of(1), np.zeros((1, 24), np.float32)):
        stats = stats_of(table)
        assert SCREEN.fit(stats, stats.rows.nbytes - 1, AS_F32) is None
        layout = SCREEN.fit(stats, stats.rows.nbytes + 1, AS_F32)
        np.testing.assert_allclose(through(SCREEN, stats, layout), table, rtol=1e-6)
        with pytest.raises(TargetError):
            SCREEN.cheapest(stats, 0.5, AS_F32)


def test_a_narrower_type_is_predicted_and_its_range_kept():
    """Rounding of kept rows is part of the error; values beyond float16 are refused."""
    table, weights = table_of(2000, decay=0.2), zipf(2000)
    stats = stats_of(table, weights)
    for name in ("F16", "BF16"):
        asked = Settings(DTYPES[name])
        for limit in (40_000, 90_000, 96_000):
            layout = SCREEN.fit(stats, limit, asked)
            measured = relative_error(through(SCREEN, stats, layout, asked), table, weights)
            assert measured == pytest.approx(layout.predicted_error, rel=0.02)
    table[weights.argmax()] = 1e5
    stats = stats_of(table, weights)
    layout = SCREEN.fit(stats, 40_000, Settings(DTYPES["F16"]))
    with pytest.raises(TargetError, match=r"65504.*bfloat16"):
        through(SCREEN, stats, layout, Settings(DTYPES["F16"]))


def half_never_seen(rows=4000):
    """A table, and weights of tokens of which every second occurs in no text."""
    counts = np.where(np.arange(rows) % 2, 0, np.random.default_rng(0).integers(50, 5000, rows))
    return table_of(rows, 48, decay=0.1), counts + 1.0


@pytest.mark.parametrize(("name", "ratio"), [("screen+svd", 0.8), ("screen+pq", 0.97)])
def test_it_pays_where_half_of_the_tokens_are_never_seen(name, ratio):
    """At equal bytes the combination has a smaller error, weighted by counts, than the same method alone."""
    table, weights = half_never_seen()
    stats, errors = stats_of(table, weights), []
    for method in map(method_for, (name, name.removeprefix("screen+"))):
        layout = method.fit(stats, bytes_for_ratio(stats.rows, ratio), AS_F32)
        errors.append(relative_error(through(method, stats, layout), table, weights))
        assert errors[-1] == pytest.approx(layout.predicted_error, rel=layout.tolerance)
    assert errors[0] < 0.85 * errors[1]


def test_half_of_the_bytes_where_half_of_the_tokens_are_never_seen():
    """A method of one size reaches half of that size at about the same error."""
    table, weights = half_never_seen()
    stats = stats_of(table, weights)
    alone, both = METHODS["int4"], method_for("screen+int4")
    whole = alone.least(stats.rows.shape, AS_F32)
    layout = both.fit(stats, int(0.515 * whole), AS_F32)
    assert layout.predicted_error < 1.05 * alone.fit(stats, whole, AS_F32).predicted_error
    assert relative_error(through(both, stats, layout), table, weights) < 1.01 * layout.predicted_error
    assert kept_by(layout).sum() == 2000, "the tokens that are seen are one of the numbers tried"
    assert alone.fit(stats, whole - 1, AS_F32) is None


def test_it_is_no_loss_where_all_tokens_matter():
    """Keeping all rows is one of the choices: for a flat table the combination costs one row and the bits."""
    table = table_of(2000, 24, decay=1.5)
    stats = stats_of(table)
    both = [method_for(name).fit(stats, 60_000, AS_F32) for name in ("screen+svd", "svd")]
    assert both[0].predicted_error <= 1.1 * both[1].predicted_error


def test_ids_stay_valid():
    """Every id from 0 to V-1 has a row, whatever spans are read, and the bits say which."""
    table, weights = table_of(1003), zipf(1003)
    stats = stats_of(table, weights)
    for name in ("screen", "screen+int8"):
        method = method_for(name)
        layout = method.fit(stats, 15_000, AS_F32)
        parts = stored(method, stats, layout)
        bits = np.unpackbits(parts["0.kept"].read(0, 126).ravel())
        np.testing.assert_array_equal(bits[:1003], kept_by(layout))
        assert bits[1003:].all()
        read = method.decoder(parts, table.shape, layout.rank)
        whole = read(0, 1003)
        for token in (0, 1, 500, 1001, 1002):
            np.testing.assert_array_equal(read(token, token + 1), whole[token : token + 1])
        assert len(np.unique(whole[~kept_by(layout)], axis=0)) == 1
        assert read(0, 1003).flags.writeable


def test_bits_of_another_table_are_refused():
    """Padding bits that are not ones, and a wrong number of rows."""
    table = table_of(1003)
    stats = stats_of(table)
    layout = SCREEN.fit(stats, 15_000, AS_F32)
    parts = stored(SCREEN, stats, layout)
    bits = np.unpackbits(parts["0.kept"].read(0, 126).ravel())
    for place in (0, 1002, 1003, 1007):
        flipped = bits.copy()
        flipped[place] ^= 1
        other = rows_of(np.packbits(flipped)[:, None], DTYPES["U8"])
        with pytest.raises(InputError, match=r"not those of a table \[1003, 24\], as its record says"):
            SCREEN.decoder({**parts, "0.kept": other}, table.shape, None)


def test_the_table_is_read_in_blocks(monkeypatch):
    """Few reads, none of the whole table, and no more passes for many sizes than for one."""
    monkeypatch.setattr("embcompress.rows.BLOCK_BYTES", 40_000)
    table = table_of(4000)
    reads = []

    def read(start, stop):
        reads.append(stop - start)
        return table[start:stop].copy()

    stats = measure(Rows(table.shape, F32, read), "e.weight", weights=zipf(4000))
    for work, passes in (
        (lambda: SCREEN.fit(stats, 100_000, AS_F32), 3),
        (lambda: SCREEN.cheapest(stats, 0.5, AS_F32), 3),
    ):
        reads.clear()
        layout = work()
        assert max(reads) <= 416
        assert sum(size for size in reads if size > 64) == passes * 4000
    reads.clear()
    through(SCREEN, stats, layout)
    assert sum(reads) <= 4000
    assert max(reads) <= 416
    assert len(reads) < 500


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 999), unique=True), st.integers(1, 300))
def test_picked_rows_are_the_ones_asked_for(places, block_rows):
    """In order, wherever they are."""
    table = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    wanted = np.sort(np.array(places, int))
    rows = rows_of(table)
    object.__setattr__(rows, "shape", (1000, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embcompress.rows.BLOCK_BYTES", 8 * block_rows)
        np.testing.assert_array_equal(picked(rows, wanted), table[wanted])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 6), st.integers(0, 2**32 - 1), st.data())
def test_any_table_at_any_size(rows, columns, seed, data):
    """With ties, copies and zero rows: the predicted error is the measured one, and falls with the bytes."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((rows, columns)).astype(np.float32)[rng.integers(0, rows, rows)]
    table[rng.random(rows) < data.draw(st.sampled_from([0, 0.05, 0.4]))] = 0
    weights = data.draw(st.sampled_from([None, rng.integers(1, 4, rows).astype(float), zipf(rows)]))
    stats, errors = stats_of(table, weights), []
    for limit in np.linspace(0, stats.rows.nbytes + 50, 9).astype(int).tolist():
        layout = SCREEN.fit(stats, limit, AS_F32)
        if layout is None:
            assert limit < SCREEN.least(table.shape, AS_F32)
            continue
        assert layout.nbytes <= limit
        errors.append(layout.predicted_error)
        decoded = through(SCREEN, stats, layout)
        assert not decoded[~table.any(axis=1)].any()
        if table.any():
            assert relative_error(decoded, table, weights) == pytest.approx(errors[-1], rel=1e-4, abs=3e-7)
    assert never_rise(errors)


def test_precise_tables_are_ranked_alike():
    """A float64 table keeps its digits."""
    table = table_of(300).astype(np.float64) + 1e-9
    stats = replace(measure(rows_of(table, DTYPES["F64"]), "e.weight", precise=True, weights=zipf(300)))
    layout = SCREEN.fit(stats, 30_000, Settings(DTYPES["F64"]))
    decoded = through(SCREEN, stats, layout, Settings(DTYPES["F64"]))
    np.testing.assert_array_equal(decoded[kept_by(layout)], table[kept_by(layout)])
    assert math.isclose(relative_error(decoded, table, zipf(300)), layout.predicted_error, rel_tol=1e-9)
