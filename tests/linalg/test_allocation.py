"""Bits for components and for classes of rows, against exhaustive searches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.linalg.allocation import DISTORTIONS, RATES, allocate, distortion, divisions, split_bits

VARIANCES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4).map(np.array)
LEFT = dict(zip(RATES.tolist(), DISTORTIONS.tolist(), strict=True))


def test_each_further_bit_gains_less():
    """Distortion is convex in the rate, which makes the greedy choice optimal."""
    slopes = np.diff(DISTORTIONS) / np.diff(RATES)
    assert (np.diff(slopes) > 0).all()
    assert (slopes < 0).all()


@settings(deadline=None, max_examples=60)
@given(VARIANCES, st.integers(0, 12))
def test_whole_bits_are_given_as_an_exhaustive_search_gives_them(variances, bits):
    """No other assignment of whole bits leaves less."""
    rates = allocate(variances, bits, pairs=False)
    assert rates.sum() <= bits
    choices = itertools.product(range(min(bits, 8) + 1), repeat=len(variances))
    left = min(sum(v * LEFT[k] for v, k in zip(variances, c, strict=True)) for c in choices if sum(c) <= bits)
    assert distortion(variances, rates) == pytest.approx(left, rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(np.array), st.floats(0, 200))
def test_half_bits_come_in_pairs_and_never_hurt(variances, bits):
    """An even number of components gets half bits, and the sum never exceeds the budget."""
    rates = allocate(variances, bits)
    assert {*rates} <= {*RATES}
    assert (rates == 0.5).sum() % 2 == 0
    assert rates.sum() <= bits + 1e-9
    whole = distortion(variances, allocate(variances, bits, pairs=False))
    # The one half that found no partner is what may be lost.
    assert distortion(variances, rates) <= whole + variances.max() * (1 - LEFT[0.5])


def test_half_bits_pay_at_low_rates():
    """With half a bit for each component, whole bits for every second one are clearly worse."""
    variances = np.ones(100)
    halves = distortion(variances, allocate(variances, 50))
    assert halves < 0.87 * distortion(variances, allocate(variances, 50, pairs=False))


def test_components_of_more_variance_get_more():
    """Four times the variance gets one bit more; components below the water level get none."""
    rates = allocate(np.array([256.0, 64, 16, 4, 1e-9]), 14, pairs=False)
    assert rates.tolist() == [5, 4, 3, 2, 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.just(0.0) | st.floats(1e-20, 1e3), max_size=14).map(np.array), st.integers(1, 3))
def test_the_divisions_of_rows_are_the_best_of_all(energies, least):
    """As if all ways to cut the sorted rows were tried, by the formula of a product of mean energies."""
    present = np.sort(energies[energies > 0])

    def product(cuts):
        """Geometric mean of the means of classes, weighted by their rows, over the mean of all."""
        parts = [present[i:j] for i, j in itertools.pairwise([0, *cuts, len(present)])]
        return np.prod([part.mean() ** (len(part) / len(present)) for part in parts]) / present.mean()

    found = divisions(energies, 4, least)
    assert [len(each.sizes) for each in found] == [*range(1, 1 + max(1, min(4, len(present) // least)))]
    for count, each in enumerate(found, start=1):
        assert each.sizes.sum() == len(energies)
        ascending = np.argsort(energies, kind="stable")
        classes = each.classes_of(ascending)
        assert (np.diff(classes[ascending].astype(int)) >= 0).all()
        assert (np.bincount(classes, minlength=count) == each.sizes).all()
        if count == 1:
            assert each.left == 1
            continue
        ways = itertools.combinations(range(1, len(present)), count - 1)
        tried = [product(c) for c in ways if min(np.diff([0, *c, len(present)])) >= least]
        assert each.left == pytest.approx(min(1.0, *tried), rel=1e-6)
        ends = np.cumsum(each.sizes)[:-1] - (len(energies) - len(present))
        assert product(ends) == pytest.approx(min(tried), rel=1e-6)


def test_cuts_in_a_large_table_are_close_to_the_best():
    """Of 20,000 rows only some places are tried; the best two classes of all are hardly better."""
    energies = np.random.default_rng(0).lognormal(0, 1.5, 20_000)
    two = divisions(energies, 2)[1]
    ordered = np.sort(energies)
    sums, count = np.cumsum(ordered)[:-1], np.arange(1, 20_000)
    share = count / 20_000
    logs = share * np.log(sums / count) + (1 - share) * np.log((ordered.sum() - sums) / (20_000 - count))
    assert two.left == pytest.approx(np.exp(logs.min()) / ordered.mean(), rel=1e-3)


def test_equal_rows_need_no_second_class():
    """Nothing is gained if all rows have the same energy."""
    assert divisions(np.ones(50), 2)[1].left == pytest.approx(1.0)
    two = divisions(np.repeat([16.0, 1.0], 50), 2)[1]
    assert (two.sizes.tolist(), two.left) == ([50, 50], pytest.approx(4 / 8.5))


def test_bits_go_to_the_class_that_weighs_more():
    """16 times the energy per row gets two bits more per component, and all bits are spent."""
    counts = np.array([300, 100])
    variances = np.array([np.full(10, 300.0), np.full(10, 1600.0)])
    cold, hot = split_bits(variances, counts, 400 * 30.0)
    assert hot - cold == pytest.approx(20, abs=8)
    assert counts @ [cold, hot] == pytest.approx(12000, abs=300)
    same = split_bits(variances / variances * counts[:, None], counts, 12000.0)
    assert same == pytest.approx([30, 30], abs=1)
