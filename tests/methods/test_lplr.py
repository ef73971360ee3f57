"""LPLR: the algorithm against an independent oracle, the gain of each step, and the stored bytes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.quick import quick

from embcompress.dtypes import DTYPES
from embcompress.errors import InputError, TargetError
from embcompress.methods import METHODS
from embcompress.methods.base import Settings, TableLayout
from embcompress.methods.lplr import planning
from embcompress.methods.lplr.planning import LEFT_BITS, LOSSES, RIGHT_BITS, FactorPlan, _left_of, _left_over
from embcompress.methods.stats import SAMPLE_ROWS, measure
from embcompress.rows import Rows

F32 = DTYPES["F32"]
ASKED = Settings(F32)
METHOD = METHODS["lplr"]


def rows_of(table, dtype=F32):
    return Rows(table.shape, dtype, lambda start, stop: table[start:stop].copy())


def stats_of(table, weights=None, dtype=F32):
    return measure(rows_of(table, dtype), "e.weight", weights=weights)


def table_of(rows=1000, columns=32, decay=1.0, seed=0):
    """Gaussian rows whose components decay in size by 10^decay, in a random basis."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return (rng.standard_normal((rows, columns)) * np.logspace(0, -decay, columns) @ turn).astype(np.float32)


def weights_of(rows, seed=1):
    return np.exp(1.5 * np.random.default_rng(seed).standard_normal(rows))


def layout_of(shape, rank, bits):
    """The layout that ``fit`` returns, but for a given rank and bits."""
    parts = METHOD.stored(shape, rank, bits)
    return TableLayout(parts, rank, DTYPES["F16"], bits[0], 0.0, 0.05, FactorPlan(rank, bits, 0.0))


def stored(stats, layout):
    """The parts, by suffix."""
    found = {}
    contents = METHOD.encode(stats, layout, ASKED)
    for part in layout.parts:
        values = np.concatenate(list(contents[part.suffix]()))
        assert values.shape == part.shape
        assert values.dtype == {"U8": np.uint8, "F16": np.float16, "F32": np.float32}[part.dtype.name]
        found[part.suffix] = rows_of(values, part.dtype)
    return found


def decoded(stats, layout):
    return METHOD.decoder(stored(stats, layout), stats.rows.shape, layout.rank)(0, stats.rows.shape[0])


def coded(table, rank, bits, weights=None):
    return decoded(stats_of(table, weights), layout_of(table.shape, rank, bits))


def error_of(stand_in, table, weights=None):
    weights = np.ones(len(table)) if weights is None else weights
    squares = weights @ (stand_in.astype(np.float64) - table) ** 2
    return np.sqrt(squares.sum() / (weights @ table.astype(np.float64) ** 2).sum())


def rounded(rows, bits):
    """Nearest levels s·(q + ½) with the best of many scales s for each row, by trying them all."""
    best, least = np.zeros_like(rows), np.vecdot(rows, rows)
    half = 2 ** (bits - 1)
    for share in np.linspace(0.05, 1, 240):
        scale = np.abs(rows).max(axis=1, keepdims=True) * share / (half - 0.5)
        levels = scale * (np.clip(np.floor(rows / scale), -half, half - 1) + 0.5)
        # A least-squares scale for these integers, of no other ones.
        levels *= (np.vecdot(rows, levels) / np.vecdot(levels, levels))[:, None]
        errors = np.vecdot(rows - levels, rows - levels)
        best[errors < least], least = levels[errors < least], np.minimum(errors, least)
    return best


def oracle(table, rank, bits, weights, *, refit=True, turn=True, powers=None):
    """Algorithm 1 in float64 with least squares by LAPACK, on the same rotation of the singular vectors."""
    wide, roots = table.astype(np.float64), np.sqrt(weights)[:, None]
    sketch = np.linalg.svd(roots * wide, full_matrices=False)[2][:rank].T
    sketch *= np.where(sketch.max(axis=0) > -sketch.min(axis=0), 1, -1)  # the largest number is positive
    if turn:
        rotation, triangle = np.linalg.qr(np.random.default_rng(0).standard_normal((rank, rank)))
        sketch = sketch @ (rotation * np.sign(np.diag(triangle)))
    if powers is not None:
        gram = (roots * wide).T @ (roots * wide)
        random = np.random.default_rng(7).standard_normal((table.shape[1], rank))
        sketch = np.linalg.qr(np.linalg.matrix_power(gram, powers) @ random)[0]
    left = rounded(wide @ sketch, bits[0])
    right = np.linalg.lstsq(roots * left, roots * wide, rcond=None)[0] if refit else sketch.T
    return left @ rounded(right, bits[1])


class TestAgainstTheOracle:
    """The error is that of the published algorithm, computed in another way."""

    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    @pytest.mark.parametrize(("rank", "bits"), [(32, (1, 8)), (24, (2, 6)), (32, (3, 8)), (20, (4, 4))])
    def test_errors_agree(self, rank, bits, weighted):
        """Within 1 %, since the quantizers may differ."""
        table = table_of(2000)
        weights = weights_of(2000) if weighted else np.ones(2000)
        ours = error_of(coded(table, rank, bits, weights if weighted else None), table, weights)
        theirs = error_of(oracle(table, rank, bits, weights), table, weights)
        assert ours == pytest.approx(theirs, rel=0.01)

    def test_it_is_no_better_than_the_best_of_its_rank(self):
        """With many bits the error approaches that of the truncated SVD from above."""
        table = table_of()
        values = np.linalg.svd(table.astype(np.float64), compute_uv=False)
        optimum = np.sqrt((values[12:] ** 2).sum() / (values**2).sum())
        assert optimum < error_of(coded(table, 12, (8, 8)), table) < 1.005 * optimum


class TestEachStep:
    """Negative controls: without any step of the algorithm the error is larger."""

    @pytest.mark.parametrize(("bits", "margin"), [((1, 8), 1.15), ((2, 8), 1.1)])
    def test_the_fit_to_rounded_rows(self, bits, margin):
        """With Sᵀ as the right factor the error is larger, most of all with few bits."""
        table, weights = table_of(), np.ones(1000)
        without = error_of(oracle(table, 32, bits, weights, refit=False), table)
        assert without > margin * error_of(coded(table, 32, bits), table)

    @pytest.mark.parametrize("bits", [(2, 8), (3, 8)])
    def test_the_rotation(self, bits):
        """E V_r has most of its energy in a few columns, which do not suit one scale per row."""
        table, weights = table_of(), np.ones(1000)
        without = error_of(oracle(table, 32, bits, weights, turn=False), table)
        assert without > 1.2 * error_of(coded(table, 32, bits), table)

    @pytest.mark.parametrize("powers", [0, 1, 2])
    def test_power_iterations_without_end(self, powers):
        """A basis of C^q Ω is worse: for small q it cuts off more, for larger q it mixes the columns less."""
        table, weights = table_of(), np.ones(1000)
        without = error_of(oracle(table, 16, (3, 8), weights, powers=powers), table)
        assert without > 1.03 * error_of(coded(table, 16, (3, 8)), table)

    def test_the_weights(self):
        """Rows of more weight are approximated better, and the weighted error is smaller."""
        rng = np.random.default_rng(3)
        # Frequent rows are of another kind than rare ones.
        table = np.concatenate([table_of(200, seed=4), table_of(1800, seed=5)])
        weights = np.where(np.arange(2000) < 200, 50.0, 1.0) * rng.uniform(0.5, 1, 2000)
        with_them, without = coded(table, 12, (3, 6), weights), coded(table, 12, (3, 6))
        assert error_of(with_them, table, weights) < 0.9 * error_of(without, table, weights)
        assert error_of(with_them, table) > error_of(without, table)

    def test_the_price_of_rounding_the_right_factor(self):
        """If L hardly determines R, plain least squares makes R large, and rounding it is costly."""
        table = table_of(34, 32)
        bare = error_of(oracle(table, 32, (1, 4), np.ones(34)), table)
        assert error_of(coded(table, 32, (1, 4)), table) < 0.95 * bare


class TestBytes:
    """Stored parts have the documented meaning."""

    @pytest.mark.parametrize(
        ("rank", "bits"), [(5, (1, 4)), (7, (3, 6)), (11, (5, 8)), (6, (7, 4)), (4, (8, 8))]
    )
    def test_a_slow_reader_finds_the_same_table(self, rank, bits):
        """Bits come from the left, levels are symmetric about zero, scales are float16 and float32."""
        table = table_of(30, 13)
        stats, layout = stats_of(table), layout_of((30, 13), rank, bits)
        parts = {suffix: part.read(0, part.shape[0]) for suffix, part in stored(stats, layout).items()}
        assert [*parts] == ["0.codes", "0.scales", "1.codes", "1.scales", "0.bits"]
        assert sum(part.nbytes for part in parts.values()) == layout.nbytes
        assert parts["0.bits"].tolist() == [[*bits]]

        def read(codes, scales, count, width):
            rows = []
            for code, scale in zip(codes, scales[:, 0], strict=True):
                string = "".join(f"{byte:08b}" for byte in code.tobytes())
                levels = [int(string[i * width : (i + 1) * width], 2) for i in range(count)]
                rows.append([float(scale) * (level - (2**width - 1) / 2) for level in levels])
            return np.array(rows)

        left = read(parts["0.codes"], parts["0.scales"], rank, bits[0])
        right = read(parts["1.codes"], parts["1.scales"], 13, bits[1])
        np.testing.assert_allclose(decoded(stats, layout), left @ right, rtol=1e-4, atol=1e-6)

    def test_other_bits_than_the_codes_are_refused(self):
        """Bits that no version reads, or that do not fit the codes."""
        table = table_of(30, 13)
        stats, layout = stats_of(table), layout_of((30, 13), 7, (3, 6))
        parts = stored(stats, layout)
        for bits, words in (
            ((9, 6), "9 and 6 bits"),
            ((0, 6), "0 and 6 bits"),
            ((3, 5), "3 and 5 bits"),
            ((8, 6), "not those"),
        ):
            other = rows_of(np.array([bits], np.uint8), DTYPES["U8"])
            with pytest.raises(InputError, match=words):
                METHOD.decoder({**parts, "0.bits": other}, table.shape, 7)
        for rank in (6, 8, None):
            with pytest.raises(InputError, match="as its record says"):
                METHOD.decoder(parts, table.shape, rank)

    def test_the_table_is_read_once_and_when_needed(self):
        """The table is read once and in order, when the first part is needed."""
        table, seen, heard = table_of(2500, 32), [], []

        def read(start, stop):
            seen.append((start, stop))
            return table[start:stop].copy()

        rows = Rows(table.shape, F32, read)
        stats = measure(rows, "e.weight")
        seen.clear()
        contents = METHOD.encode(stats, layout_of(table.shape, 9, (4, 8)), ASKED, heard.append)
        assert not seen
        for _ in range(2):
            for blocks in contents.values():
                list(blocks())
        assert seen == [*rows.spans()]
        assert sum(heard) == 2500


class TestOddTables:
    """Shapes and values at the ends of the range."""

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 40), (40, 5)])
    @pytest.mark.parametrize("bits", [(1, 4), (8, 8)])
    def test_small_tables(self, shape, bits):
        """At full rank and 8 bits the error is about a per cent; with one bit it is below that of zeros."""
        table = table_of(*shape, decay=0.3)
        assert error_of(coded(table, min(shape), bits), table) < (0.011 if bits[0] == 8 else 0.9)

    def test_rank_deficient_tables(self):
        """Ranks beyond that of the table do no harm."""
        table = (table_of(200, 3) @ table_of(3, 24)).astype(np.float32)
        for rank in (3, 10, 24):
            assert error_of(coded(table, rank, (8, 8)), table) < 0.01

    def test_zeros(self):
        """A table of zeros, and rows of zeros in other tables, decode exactly."""
        assert not coded(np.zeros((20, 6), np.float32), 4, (2, 4)).any()
        table = table_of(20, 6)
        table[[0, 13]] = 0
        found = coded(table, 4, (1, 4))
        assert np.flatnonzero(~found.any(axis=1)).tolist() == [0, 13]
        layout = METHOD.fit(stats_of(np.zeros((50, 6), np.float32)), 1000, ASKED)
        assert layout.predicted_error == 0
        assert layout.nbytes == METHOD.least((50, 6), ASKED)

    @pytest.mark.parametrize("size", [1e-30, 1e-9, 1e9, 1e30])
    def test_sizes_that_float16_does_not_hold(self, size):
        """Scales suit the left factor at any magnitude of the table."""
        table = table_of()
        plain = error_of(coded(table, 16, (4, 8)), table)
        scaled = (table.astype(np.float64) * size).astype(np.float32)
        assert error_of(coded(scaled, 16, (4, 8)), scaled) == pytest.approx(plain, rel=1e-2)

    def test_values_beyond_float32_are_refused(self):
        """The right factor's scales would be infinite."""
        table = table_of(50, 8).astype(np.float64) * 1e60
        with pytest.raises(TargetError, match="right factor"):
            decoded(stats_of(table, dtype=DTYPES["F64"]), layout_of((50, 8), 4, (4, 8)))


class TestPlans:
    """Ranks and bits, and the predicted error."""

    @pytest.mark.parametrize("weighted", quick({"plain": False, "weighted": True}, "weighted"))
    @pytest.mark.parametrize("rows", [150, 3000])
    def test_more_bytes_never_predict_a_larger_error(self, rows, weighted):
        """In fine steps of the limit, for a table that is encoded on trial and one that is sampled."""
        table = table_of(rows, 24)
        stats = stats_of(table, weights_of(rows) if weighted else None)
        least = METHOD.least(table.shape, ASKED)
        assert METHOD.fit(stats, least - 1, ASKED) is None
        layouts = [METHOD.fit(stats, int(limit), ASKED) for limit in np.geomspace(least, table.nbytes, 7)]
        errors = [layout.predicted_error for layout in layouts]
        assert errors == sorted(errors, reverse=True)
        assert layouts[0].nbytes == least
        assert len({layout.state.bits[0] for layout in layouts}) >= 4
        assert (layouts[-1].rank, layouts[-1].bits) == (24, 8)

    @pytest.mark.parametrize("weighted", quick({"plain": False, "weighted": True}, "weighted"))
    @pytest.mark.parametrize(("ratio", "columns"), [(0.9, 40), (0.95, 40), (0.8, 270)])
    def test_a_sample_predicts_the_error(self, ratio, columns, weighted):
        """With a joint fit to the sample, and with too few rows for one."""
        table = table_of(SAMPLE_ROWS + 1500, columns, 0.7)
        weights = weights_of(len(table)) if weighted else None
        stats = stats_of(table, weights)
        layout = METHOD.fit(stats, int((1 - ratio) * table.nbytes), ASKED)
        measured = error_of(decoded(stats, layout), table, weights)
        assert measured == pytest.approx(layout.predicted_error, rel=layout.tolerance)

    def test_a_small_table_is_predicted_exactly(self):
        """It is encoded on trial, so it does not matter if there are few rows for the rank."""
        table = table_of(60, 30)
        stats = stats_of(table)
        layout = METHOD.fit(stats, int(0.2 * table.nbytes), ASKED)
        assert error_of(decoded(stats, layout), table) == pytest.approx(layout.predicted_error, rel=1e-5)

    def test_no_other_plan_of_its_size_is_better(self):
        """Compared with trying all ranks and bits that fit."""
        table = table_of(300, 16)
        stats, limit = stats_of(table), int(0.1 * 4 * 300 * 16)
        layout = METHOD.fit(stats, limit, ASKED)
        others = [
            layout_of(table.shape, r, (a, b)) for r in range(1, 17) for a in LEFT_BITS for b in RIGHT_BITS
        ]
        errors = [error_of(decoded(stats, other), table) for other in others if other.nbytes <= limit]
        assert layout.predicted_error == pytest.approx(min(errors), rel=1e-5)

    def test_losses_are_those_of_a_gaussian(self):
        """Within 3 %; the numbers of the paper for 1 to 4 bits."""
        assert LOSSES[1:5] == pytest.approx([0.3634, 0.1188, 0.03744, 0.01154], rel=5e-3)
        values = np.random.default_rng(0).standard_normal(400_000)
        for bits, loss in enumerate(LOSSES[1:], start=1):
            half = 2 ** (bits - 1)
            found = []
            for top in np.linspace(1, 4.5, 36):
                scale = top / half
                levels = scale * (np.clip(np.floor(values / scale), -half, half - 1) + 0.5)
                found.append(np.mean((values - levels) ** 2))
            assert loss == pytest.approx(min(found), rel=0.03)

    @pytest.mark.parametrize("spread", [0.0, 1.0])
    def test_what_a_fit_leaves_of_noise(self, spread):
        """Against least squares on random rows of unequal energy; 1 - r/V where they are equal."""
        rng = np.random.default_rng(0)
        sizes = np.exp(spread * rng.standard_normal(500))[:, None]
        left, noise = sizes * rng.standard_normal((500, 60)), sizes * rng.standard_normal((500, 400))
        missed = noise - left @ np.linalg.lstsq(left, noise, rcond=None)[0]
        found = _left_over(sizes[:, 0] ** 2, np.ones(500), 60)
        assert found == pytest.approx((missed**2).sum() / (noise**2).sum(), rel=0.02)
        if not spread:
            assert found == pytest.approx(1 - 60 / 500, rel=1e-4)

    @pytest.mark.parametrize("noise", [0.1, 0.9])
    def test_what_a_fit_leaves_of_an_error(self, noise):
        """Against least squares of orthonormal columns on themselves with noise."""
        rng = np.random.default_rng(0)
        count, rank = 600, 180
        clean = np.linalg.qr(rng.standard_normal((count, rank)))[0] * np.sqrt(count)
        left = np.sqrt(1 - noise) * clean + np.sqrt(noise) * rng.standard_normal((count, rank))
        missed = clean - left @ np.linalg.lstsq(left, clean, rcond=None)[0]
        measured = (missed**2).sum() / (noise * (clean**2).sum())
        assert _left_of(noise, 1 - rank / count) == pytest.approx(measured, rel=0.03)
        assert measured > 1.02 * (1 - rank / count)


@pytest.mark.parametrize(
    "table",
    [
        table_of(600, 24, decay=0),
        table_of(600, 24, decay=2),
        table_of(200, 32, seed=3) * np.exp(np.random.default_rng(0).standard_normal((200, 1))),
        np.repeat(table_of(15, 20, decay=0), 10, axis=0),
    ],
    ids=["flat", "steep", "rows of all sizes", "few distinct rows"],
)
def test_trials_that_are_left_out_would_have_lost(monkeypatch, table):
    """The same plans come from half the trials; where most rows are equal, nothing is left out."""
    plans, trials = [], []
    for share in (0.0, planning._LIKE):
        monkeypatch.setattr(planning, "_LIKE", share)
        planner = planning.Planner(stats_of(table.astype(np.float32)))
        plans.append([planner.best(int(table.size * 4 * kept)) for kept in (0.1, 0.2, 0.4)])
        trials.append(planner._tried.cache_info().currsize)
    assert plans[0] == plans[1]
    few = len(np.unique(table, axis=0)) == 15
    assert trials[1] == trials[0] if few else trials[1] < 0.6 * trials[0]
