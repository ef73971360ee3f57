"""Tables in memory, coded and decoded again as they would be on disk."""

from __future__ import annotations

import itertools
import math

import numpy as np

from embcompress.dtypes import DTYPES
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.stats import measure
from embcompress.rows import Rows

F32 = DTYPES["F32"]


SVD = METHODS["svd"]


def rows_of(table, dtype=F32):
    return Rows(table.shape, dtype, lambda start, stop: table[start:stop].copy())


def table_of(rows=300, columns=24, seed=0, decay=1.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * np.logspace(0, -decay, columns)).astype(np.float32)


def stats_of(table, weights=None, *, precise=False):
    return measure(rows_of(table), "e.weight", precise=precise, weights=weights)


def stored(method, stats, layout, asked=None):
    """The parts of a table as they would be on disk, rounded to their type."""
    parts = {}
    contents = method.encode(stats, layout, asked or Settings(layout.dtype))
    assert [*contents] == [*layout.suffixes]
    for part in layout.parts:
        values = np.concatenate(list(contents[part.suffix]()))
        assert values.shape == part.shape
        parts[part.suffix] = rows_of(part.dtype.decode(part.dtype.encode(values)), part.dtype)
    return parts


def at_rank(table, asked, rank, *, precise=False):
    """The SVD's parts at a rank, and what they decode to."""
    stats = stats_of(table, precise=precise)
    layout = SVD.at_rank(stats, rank, asked)
    parts = stored(SVD, stats, layout, asked)
    return parts, back(SVD, parts, stats, layout)


def back(method, parts, stats, layout):
    return method.decoder(parts, stats.rows.shape, layout.rank)(0, stats.rows.shape[0])


def through(method, stats, layout, asked=None):
    """The table after it was stored and decoded."""
    return back(method, stored(method, stats, layout, asked), stats, layout)


def relative_error(decoded, table, weights=None):
    difference = ((decoded.astype(np.float64) - table) ** 2).sum(axis=1)
    squares = (table.astype(np.float64) ** 2).sum(axis=1)
    weights = np.ones(len(table)) if weights is None else weights
    return math.sqrt(weights @ difference / (weights @ squares))


def never_rise(errors):
    """Whether no error is above the one before it.

    An error is the root of a difference of float64 sums, so that next to zero up to 1e-7 of it is noise.
    """
    return all(after <= before + 1e-7 for before, after in itertools.pairwise(errors))


def zipf(count, seed=0):
    """Weights as a corpus gives them."""
    return np.random.default_rng(seed).permutation((1000 / np.arange(1, count + 1) + 1) ** 0.5)
