"""Trellis-coded quantization against its definition, brute force and the published gains."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from embcompress.linalg.trellis import Rows, TrellisCode, decode, encode, initial_codebooks, train
from embcompress.linalg.trelliscode import book_starts

POLYNOMIALS = {3: (0o13, 0o04), 5: (0o45, 0o10), 6: (0o103, 0o024), 8: (0o515, 0o362)}
MIXED = (8, 5, 5, 3, 2, 2, 1, 1, 0.5, 0.5, 0.5, 0.5)


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def books_of(code, codebooks):
    """The codebook of each rate, sliced from the flat array in the order of the rates."""
    books, start = {}, 0
    for rate in dict.fromkeys(code.rates):
        size = 2 * 2 ** (code.memory + 1) if rate == 0.5 else 2 ** (rate + 1)
        books[rate] = codebooks[start : start + size].tolist()
        start += size
    assert start == len(codebooks)
    return books


def slow_decode(row, code, codebooks):
    """One row (a string of bits) by the definition of the format."""
    books = books_of(code, codebooks)
    h0, h1 = POLYNOMIALS[code.memory]
    steps = sum(1 if rate >= 1 else 0.5 for rate in code.rates)
    uncoded_at, values = code.memory + int(steps), []
    for step in range(int(steps)):
        window = int(row[step : step + code.memory + 1], 2)
        rate = code.rates[len(values)]
        if rate == 0.5:
            values += books[rate][2 * window : 2 * window + 2]
            continue
        subset = 2 * ((window & h0).bit_count() % 2) + (window & h1).bit_count() % 2
        uncoded = int(row[uncoded_at : uncoded_at + rate - 1] or "0", 2)
        uncoded_at += rate - 1
        values.append(books[rate][4 * uncoded + subset])
    assert len(row) == code.row_bytes * 8
    assert 0 <= len(row) - uncoded_at < 8
    return values


def decibels(rows, found):
    return 10 * np.log10(np.sum(rows.astype(float) ** 2) / np.sum((rows - found).astype(float) ** 2))


def fitted(rows, weights, code, start, rounds):
    """Flat codebooks trained for one code."""
    books = {rate: start[place] for rate, place in code.books.items()}
    return np.concatenate([*train([Rows(rows, code, weights)], books, rounds).values()])


@cache
def gain(rate, components=1024, memory=6):
    """Signal-to-noise ratio on fresh Gaussian rows, long enough for the free first state not to count."""
    code = TrellisCode(memory, (rate,) * components)
    codebooks = fitted(gaussian(40, components), None, code, initial_codebooks(code), 8)
    rows = gaussian(64, components, 1)
    return decibels(rows, decode(encode(rows, code, codebooks), code, codebooks))


@pytest.mark.parametrize("memory", POLYNOMIALS)
@pytest.mark.parametrize("rates", [MIXED, (1,), (8,), (0.5, 0.5), (4,) * 9, (7, 0.5, 0.5)])
def test_decodes_any_bits_as_the_format_is_defined(memory, rates):
    code = TrellisCode(memory, rates)
    codebooks = initial_codebooks(code)
    codes = np.random.default_rng(0).integers(0, 256, (20, code.row_bytes), dtype=np.uint8)
    expected = [slow_decode("".join(f"{byte:08b}" for byte in row), code, codebooks) for row in codes]
    np.testing.assert_array_equal(decode(codes, code, codebooks), np.array(expected, np.float32))


@pytest.mark.parametrize(
    "rates", [(1,), (3, 2), (2, 2, 1), (2, 1, 1, 1), (0.5,) * 4, (1, 0.5, 0.5), (3, 2, 0.5, 0.5)]
)
def test_no_path_is_nearer(rates):
    """Of all possible rows of bits, none decodes with less squared error than the encoder's."""
    code = TrellisCode(3, rates)
    codebooks = initial_codebooks(code)
    bits = int(3 + sum(rates))
    numbers = np.array(list(itertools.product((0, 1), repeat=bits)), np.uint8)
    every = decode(np.packbits(numbers, axis=1), code, codebooks)
    rows = 1.5 * gaussian(50, len(rates))
    least = np.square(rows[:, None] - every).sum(axis=2).min(axis=1)
    codes = encode(rows, code, codebooks)
    found = np.square(rows - decode(codes, code, codebooks)).sum(axis=1)
    np.testing.assert_allclose(found, least, rtol=1e-4, atol=1e-6)
    assert not np.unpackbits(codes, axis=1)[:, bits:].any(), "the rest of the last byte is zeros"


@pytest.mark.parametrize(("rate", "published"), [(1, 5.43), (2, 10.94), (3, 16.56)])
def test_gain_is_the_published_one(rate, published):
    """64 states on a Gaussian source (Marcellin & Fischer 1990)."""
    assert abs(gain(rate) - published) < 0.25


@pytest.mark.parametrize(("rate", "scalar"), [(2, 9.30), (3, 14.62)])
def test_a_scalar_quantizer_of_the_same_rate_loses(rate, scalar):
    """Lloyd–Max levels are the best for a single component."""
    levels = np.quantile(gaussian(1, 4096), (np.arange(2**rate) + 0.5) / 2**rate)
    samples = gaussian(1, 100_000, 2).ravel()
    for _ in range(60):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, samples)
        levels = np.bincount(nearest, samples) / np.bincount(nearest)
    measured = decibels(samples, levels[nearest])
    assert abs(measured - scalar) < 0.1
    assert gain(rate) > measured + 0.8


def test_half_a_bit_each_beats_a_bit_for_one_of_two():
    kept = 10 ** (-gain(1) / 10)
    assert gain(0.5) > -10 * np.log10((kept + 1) / 2) + 0.5


def test_more_states_lose_less():
    assert gain(2, memory=3) < gain(2) < gain(2, memory=8)


def test_training_follows_weights_and_shared_levels():
    """Rows of weight 0 do not count; each round reduces the weighted error."""
    code = TrellisCode(4, (2, 2, 1, 0.5, 0.5))
    rows = gaussian(600, 5)
    rows[300:] *= 3
    weights = np.repeat([2.0, 0.0], 300)
    start = initial_codebooks(code)
    kept = start.copy()
    weighted = fitted(rows, weights, code, start, 3)
    np.testing.assert_array_equal(start, kept)
    np.testing.assert_allclose(weighted, fitted(rows[:300], None, code, start, 3), rtol=1e-5, atol=1e-6)
    errors = []
    for rounds in range(4):
        books = fitted(rows[:300], None, code, start, rounds)
        errors.append(np.square(rows[:300] - decode(encode(rows[:300], code, books), code, books)).sum())
    assert errors == sorted(errors, reverse=True)
    for rate in (2, 1):
        book = weighted[code.books[rate]]
        assert (np.diff(book) >= 0).all()


def test_codes_that_share_a_codebook_train_it_together():
    """As if the rows of both were of one code; what only one has is trained by its rows alone."""
    one, other = TrellisCode(4, (2, 2)), TrellisCode(4, (3, 2))
    start = {rate: initial_codebooks(other)[place] for rate, place in other.books.items()}
    rows, more = gaussian(300, 2), 2 * gaussian(300, 2, 1)
    both = train([Rows(rows, one), Rows(more, other)], start, 1)
    codes = encode(rows, one, start[2]), encode(more, other, np.concatenate([start[3], start[2]]))
    near = (
        decode(codes[0], one, start[2]),
        decode(codes[1], other, np.concatenate([start[3], start[2]]))[:, 1],
    )
    values, levels = np.append(rows, more[:, 1]), np.append(near[0], near[1])
    means = [values[levels == level].mean() for level in start[2]]
    np.testing.assert_allclose(both[2], np.sort(means), rtol=1e-4)
    assert not np.allclose(both[3], start[3])
    np.testing.assert_array_equal(train([Rows(rows, one)], start, 1)[3], start[3])


def test_where_codebooks_begin_in_an_array_of_several_codes():
    """Shared ones once, with the first code that has them; or, in older files, all of each code."""
    codes = TrellisCode(8, (3, 2)), TrellisCode(8, (2, 1, 0.5, 0.5)), TrellisCode(8, (4, 3))
    assert book_starts(codes) == [{3: 0, 2: 16}, {2: 16, 1: 24, 0.5: 28}, {4: 1052, 3: 0}]
    assert book_starts(codes, 1084) == book_starts(codes)
    assert book_starts(codes, 24 + 8 + 4 + 1024 + 32 + 16)[2] == {4: 1060, 3: 1092}
    with pytest.raises(ValueError, match="codebooks of 1,085 numbers"):
        book_starts(codes, 1085)


def test_levels_without_members_stay():
    code = TrellisCode(3, (5,))
    start = initial_codebooks(code)
    books = fitted(np.full((4, 1), start[20]), None, code, start, 1)
    np.testing.assert_allclose(books, start)


def test_rows_do_not_depend_on_each_other():
    """Slices encoded in threads give the same codes as all rows at once, across the edges of blocks."""
    code = TrellisCode(8, MIXED)
    codebooks = initial_codebooks(code)
    rows = gaussian(700, len(MIXED))
    codes = encode(rows, code, codebooks)
    cuts = [0, 1, 130, 400, 700]
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda cut: encode(rows[slice(*cut)], code, codebooks), itertools.pairwise(cuts))
    np.testing.assert_array_equal(np.concatenate(list(parts)), codes)
    np.testing.assert_array_equal(
        decode(codes[500:501], code, codebooks), decode(codes, code, codebooks)[500:501]
    )


@pytest.mark.parametrize("rates", [(1,), MIXED])
def test_no_rows(rates):
    code = TrellisCode(6, rates)
    codebooks = initial_codebooks(code)
    codes = encode(gaussian(0, len(rates)), code, codebooks)
    assert codes.shape == (0, code.row_bytes)
    assert decode(codes, code, codebooks).shape == (0, len(rates))
    np.testing.assert_array_equal(fitted(gaussian(0, len(rates)), None, code, codebooks, 1), codebooks)


def test_rows_of_zeros_and_large_rows():
    code = TrellisCode(6, MIXED)
    codebooks = initial_codebooks(code)
    found = decode(encode(np.zeros((3, len(MIXED)), np.float32), code, codebooks), code, codebooks)
    assert np.abs(found[:, 0]).max() < 0.05
    assert (found == found[0]).all()
    far = decode(encode(np.full((1, len(MIXED)), 1e4, np.float32), code, codebooks), code, codebooks)
    assert (far[0, :8] > 0).all()


def test_levels_survive_half_precision():
    code = TrellisCode(6, (5,) * 64)
    codebooks = fitted(gaussian(200, 64), None, code, initial_codebooks(code), 3)
    rounded = codebooks.astype(np.float16).astype(np.float32)
    rows = gaussian(100, 64, 1)
    exact, coarse = (decibels(rows, decode(encode(rows, code, b), code, b)) for b in (codebooks, rounded))
    assert coarse > exact - 0.02


@pytest.mark.parametrize(
    ("memory", "rates"),
    [(2, (1,)), (9, (1,)), (6, ()), (6, (1, 2)), (6, (9,)), (6, (1.5,)), (6, (0,)), (6, (1, 0.5))],
)
def test_codes_that_are_none(memory, rates):
    with pytest.raises(ValueError, match=r"memory|rates"):
        TrellisCode(memory, rates)
