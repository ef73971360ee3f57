"""Trellis-coded quantization of scaled coefficients, at a fixed rate and decoded without recursion.

Marcellin & Fischer 1990, "Trellis coded quantization of memoryless and Gauss-Markov sources": a codebook with
twice the usual number of levels is split into four subsets, a convolutional code of rate 1/2 selects the
subset of each step, and the Viterbi algorithm finds the best path for a whole row. The code is feed-forward,
so that each subset depends only on a window of the coded bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from embcompress.linalg.trelliscode import PAIR, POLYNOMIALS, Indices, TrellisCode

_Floats = NDArray[np.float32]

_SLAB = 1 << 18
"""States × rows of a block. If blocks fit a cache, two threads mostly wait for the interpreter."""

_SPREADS = (1.05, 1.22, 1.34, 1.42, 1.49, 1.57, 1.57, 1.57)
"""Standard deviations of the Gaussians whose quantiles are the best levels for 1 … 8 bits, measured with 64
states."""


def initial_codebooks(code: TrellisCode) -> _Floats:
    """Flat codebooks for Gaussian coefficients of unit variance, from which a few rounds of training suffice.

    Levels are quantiles of a wider Gaussian. Pairs lie on a circle, one quadrant for each subset, with the
    variance 1 - 2^(-2·0.5) of the rate–distortion bound.
    """
    books = []
    for rate in code.books:
        if rate == PAIR:
            turns = np.pi / 4 * (2 * code.subsets + 1)
            books.append(np.stack([np.cos(turns), np.sin(turns)], axis=1).ravel())
        else:
            density, count = NormalDist(0, _SPREADS[int(rate) - 1]), 2 << int(rate)
            books.append(np.array([density.inv_cdf((i + 0.5) / count) for i in range(count)]))
    return np.concatenate(books).astype(np.float32)


def encode(rows: _Floats, code: TrellisCode, codebooks: _Floats) -> NDArray[np.uint8]:
    """Encode rows (N×r, finite) to the codes (N×``row_bytes``) of the nearest paths.

    Rows are encoded independently, so that threads can split a table by rows.
    """
    codes = np.empty((len(rows), code.row_bytes), np.uint8)
    width = 8 * -(-min(_SLAB >> code.memory, max(1, len(rows))) // 8)
    viterbi = _Viterbi(code, codebooks, width)
    for start in range(0, len(rows), width):
        codes[start : start + width] = viterbi.encode(rows[start : start + width])
    return codes


def decode(codes: NDArray[np.uint8], code: TrellisCode, codebooks: _Floats) -> _Floats:
    """Decode codes to coefficients (N×r)."""
    rows = np.empty((len(codes), len(code.rates)), np.float32)
    values = {rate: codebooks[levels] for rate, levels in code.levels.items()}
    for block, rate, run, symbols in _symbols(codes, code):
        rows[block, run] = values[rate].take(symbols).T
    return rows


@dataclass(frozen=True)
class Rows:
    """Rows of one code, to train codebooks on.

    Attributes:
        values: coefficients (N×r).
        code: their code.
        weights: of the rows (N), none negative; None if all count alike.
    """

    values: _Floats
    code: TrellisCode
    weights: NDArray[np.float64] | None = None


def train(groups: Sequence[Rows], books: Mapping[float, _Floats], rounds: int) -> dict[float, _Floats]:
    """Fit codebooks to rows by Lloyd's algorithm: encode, then move each level to the mean of its members.

    Args:
        groups: rows of several codes, which share the codebook of each rate.
        books: initial codebooks, by rate. A level without members does not move.
        rounds: number of rounds.
    """
    found = dict(books)
    for _ in range(rounds):
        totals = {rate: np.zeros((2, len(book))) for rate, book in found.items()}
        for group in groups:
            code = group.code
            flat = np.concatenate([found[rate] for rate in code.books])
            counts, sums = np.zeros((2, len(flat)))
            for block, rate, run, symbols in _symbols(encode(group.values, code, flat), code):
                levels = code.levels[rate].take(symbols).ravel()
                each = 1.0 if group.weights is None else group.weights[block]
                each = np.broadcast_to(each, symbols.shape)
                counts += np.bincount(levels, each.ravel(), len(flat))
                sums += np.bincount(levels, (each * group.values[block, run].T).ravel(), len(flat))
            for rate, book in code.books.items():
                totals[rate] += counts[book], sums[book]
        for rate, (counts, sums) in totals.items():
            means = np.divide(sums, counts, out=found[rate].astype(np.float64), where=counts > 0)
            found[rate] = means.astype(np.float32)
            if rate != PAIR:  # the means of neighbours, which are in different subsets, may cross
                found[rate].sort()
    return found


def _symbols(codes: NDArray[np.uint8], code: TrellisCode) -> Iterator[tuple[slice, float, slice, Indices]]:
    """Yield (block of rows, rate, run of components of that rate, their symbols (components×rows))."""
    for start in range(0, len(codes), 1024):
        block = slice(start, start + 1024)
        octets = np.zeros((code.row_bytes + 1, len(codes[block])), np.uint16)
        octets[:-1] = codes[block].T
        # A window, or the uncoded bits of a component, lies within two neighbouring bytes.
        byte_pairs = np.bitwise_or(octets[:-1] << np.uint16(8), octets[1:])
        for rate, run in code.runs:
            symbols = _field(byte_pairs, code.windows[run], code.memory + 1)
            if rate == PAIR:
                symbols = 2 * symbols + np.arange(len(symbols))[:, None] % 2
            elif rate > 1:
                uncoded = _field(byte_pairs, code.uncoded_starts[run], int(rate) - 1)
                symbols |= uncoded << code.memory + 1
            yield block, rate, run, symbols


def _field(byte_pairs: NDArray[np.uint16], starts: Indices, bits: int) -> Indices:
    """Extract numbers of ``bits`` bits that start at bits ``starts`` of each row."""
    found = byte_pairs.take(starts >> 3, axis=0)
    found >>= (16 - bits - (starts & 7)).astype(np.uint16)[:, None]
    found &= np.uint16((1 << bits) - 1)
    return found.astype(np.intp)


class _Viterbi:
    """The Viterbi algorithm on blocks of rows, with its work arrays.

    Rows are along the last axis, so that all operations run over contiguous numbers.
    """

    def __init__(self, code: TrellisCode, codebooks: _Floats, width: int) -> None:
        states = 1 << code.memory
        self.code, self.codebooks = code, codebooks
        self.costs = np.empty((states, width), np.float32)
        self.candidates = np.empty((2, states, width), np.float32)
        self.better = np.empty((states, width), np.bool_)
        self.survivors = np.empty((code.steps, states, width // 8), np.uint8)

    def encode(self, rows: _Floats) -> NDArray[np.uint8]:
        """Encode at most as many rows as the arrays are wide."""
        x = np.zeros((len(self.code.rates), self.costs.shape[1]), np.float32)
        x[:, : len(rows)] = rows.T
        self.costs.fill(0)
        nearest: list[tuple[slice, NDArray[np.uint8], Indices]] = []
        for rate, run in self.code.runs:
            book = self.codebooks[self.code.books[rate]]
            if rate == PAIR:
                self._pairs(x[run], book.reshape(-1, 2))
            else:
                nearest.append((run, *self._scalars(x[run], run.start, book.reshape(-1, 4).T)))
        coded, windows = self._trace_back()
        parts = [coded]
        for run, uncoded, cells in nearest:
            if uncoded.shape[1] > 1:  # subsets have more than one level
                index = self.code.subsets.take(windows[run]) * np.intp(uncoded.shape[1]) + cells
                places = np.arange(int(self.code.rates[run.start]) - 1)[::-1, None].astype(np.uint8)
                parts.append((uncoded.take(index)[:, None] >> places & np.uint8(1)).reshape(-1, x.shape[1]))
        return np.packbits(np.concatenate(parts)[:, : len(rows)].T, axis=1)

    def _scalars(self, x: _Floats, first: int, subsets: _Floats) -> tuple[NDArray[np.uint8], Indices]:
        """Take the steps of one rate; return the nearest uncoded bits (4×cells) and the cell of each x."""
        # Cells end where the nearest level of any subset changes, so that one search serves all four subsets.
        middles = (subsets[:, 1:] + subsets[:, :-1]) / 2
        order = np.argsort(middles, axis=None)
        passed = order // max(1, middles.shape[1]) == np.arange(4)[:, None]
        uncoded = np.cumsum(np.insert(passed, 0, False, axis=1), axis=1, dtype=np.uint8)
        cells = middles.ravel()[order].searchsorted(x.ravel()).reshape(x.shape)
        values = np.take_along_axis(subsets, uncoded.astype(np.intp), axis=1)
        # A bit of the window that no parity check uses does not change the subset: branch metrics are
        # computed without that axis and broadcast along it.
        taps = np.bitwise_or(*POLYNOMIALS[self.code.memory])
        axes = [1 + (int(taps) >> bit & 1) for bit in range(self.code.memory, -1, -1)]
        corner = self.code.subsets.reshape([2] * len(axes))[tuple(map(slice, axes))]
        branches = corner.ravel().astype(np.intp)
        metrics = np.empty((branches.size, x.shape[1]), np.float32)
        distances = np.empty((4, x.shape[1]), np.float32)
        for j in range(len(x)):
            values.take(cells[j], axis=1, out=distances, mode="clip")
            distances -= x[j]
            distances *= distances
            distances.take(branches, axis=0, out=metrics, mode="clip")
            self._step(first + j, metrics.reshape(*axes, -1))
        return uncoded, cells

    def _pairs(self, x: _Floats, book: _Floats) -> None:
        """Take the steps of pairs; the squares of x are left out, since all paths have them."""
        norms = np.vecdot(book, book)[:, None]
        for j in range(len(x) // 2):
            metrics = norms - 2 * book @ x[2 * j : 2 * j + 2]
            self._step(self.code.scalars + j, metrics.reshape(*[2] * (self.code.memory + 1), -1))

    def _step(self, step: int, metrics: _Floats) -> None:
        """Keep the better of the two windows that lead to each new state."""
        bits = [2] * self.code.memory
        np.add(self.costs.reshape(*bits, 1, -1), metrics, out=self.candidates.reshape(2, *bits, -1))
        zero, one = self.candidates
        np.less(one, zero, out=self.better)
        self.survivors[step] = np.packbits(self.better, axis=1)
        np.minimum(zero, one, out=self.costs)

    def _trace_back(self) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """The coded bits ((memory + steps)×N) and the windows (steps×N) of the best path of each row."""
        steps, (states, width) = len(self.survivors), self.costs.shape
        coded = np.empty((self.code.memory + steps, width), np.uint8)
        windows = np.empty((steps, width), np.uint16)
        state, lanes = self.costs.argmin(axis=0), np.arange(width)
        octets, places = lanes >> 3, (7 - (lanes & 7)).astype(np.uint8)
        coded[steps:] = state >> np.arange(self.code.memory)[::-1, None] & 1
        for step in range(steps - 1, -1, -1):
            coded[step] = self.survivors[step].take(state * (width // 8) + octets) >> places & 1
            state += coded[step] * np.intp(states)
            windows[step] = state
            state >>= 1
        return coded, windows
