"""Methods in a metric over the columns: what they predict, what they keep, and torch's own optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.coding import F32, rows_of, table_of, through, zipf
from helpers.quick import quick

from embcompress.dtypes import DTYPES
from embcompress.linalg.metric import Metric
from embcompress.methods import METHODS, method_for
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio
from embcompress.methods.stats import measure

F64 = DTYPES["F64"]
NAMES = (*METHODS, "screen+svd", "screen+pq")
RATIOS = {"int8": 0.7}
"""Where it cannot remove as much as the others."""


SIZES = {f"{name}{of}": (name, rows) for name in NAMES for of, rows in (("", 300), (", many", 6000))}


def form(columns, seed=0, decay=2.0):
    """A quadratic form whose eigenvalues fall by ``decay`` decades, in directions along no axis."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((columns, columns)))
    return (turn * np.logspace(0, -decay, columns)) @ turn.T


def mixed(matrix, share):
    """(1 − s)·I + s·M, with the trace of the identity."""
    columns = len(matrix)
    return (1 - share) * np.eye(columns) + share * matrix * columns / np.trace(matrix)


def error_in(matrix, decoded, table, weights=None):
    """The root of Σ w_i e_i M e_iᵀ over that of the table itself."""
    weights = np.ones(len(table)) if weights is None else weights

    def squares(rows):
        return weights @ np.einsum("id,de,ie->i", rows, matrix, rows, optimize=True)

    table = table.astype(np.float64)
    return float(np.sqrt(squares(decoded.astype(np.float64) - table) / squares(table)))


def fitted(method, table, metric, weights=None, ratio=0.85):
    stats = measure(rows_of(table), "e.weight", weights=weights, metric=metric)
    return stats, method.fit(stats, bytes_for_ratio(stats.rows, ratio), Settings(F32))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_metric_is_the_root_of_its_form(share):
    """A·A is the mixed form, whatever the form's scale, and the inverse is A's."""
    found = Metric.of(1e-9 * form(24), share)
    assert found.root @ found.root == pytest.approx(mixed(form(24), share))
    assert found.root @ found.inverse == pytest.approx(np.eye(24), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "rows"), quick(SIZES, *(size for size in SIZES if "many" not in size), "pq, many")
)
def test_predicted_error_is_the_one_in_the_metric(name, rows):
    """Weights and metric together: the error predicted is met within the tolerance."""
    table, weights, matrix = table_of(rows, decay=1.0), zipf(rows), form(24)
    method = method_for(name)
    stats, layout = fitted(method, table, Metric.of(matrix, 0.9), weights, ratio=RATIOS.get(name, 0.85))
    found = error_in(mixed(matrix, 0.9), through(method, stats, layout), table, weights)
    assert found == pytest.approx(layout.predicted_error, rel=min(0.05, layout.tolerance), abs=1e-7)


@pytest.mark.parametrize("name", ["svd", "pq", "lplr"])
def test_the_error_in_the_metric_falls_and_the_plain_one_rises(name):
    """By a tenth at least where directions differ a hundredfold; the plain error shows the price."""
    table, matrix = table_of(3000, decay=0.0), form(24)
    method, ratio = method_for(name), 0.7 if name == "svd" else 0.93
    plain = through(method, *fitted(method, table, None, ratio=ratio))
    ours = through(method, *fitted(method, table, Metric.of(matrix, 0.9), ratio=ratio))
    judge = mixed(matrix, 0.9)
    assert error_in(judge, ours, table) < 0.9 * error_in(judge, plain, table)
    assert error_in(np.eye(24), ours, table) > error_in(np.eye(24), plain, table)


@pytest.mark.parametrize("name", ["svd", "pq", "lplr"])
def test_a_wrong_metric_does_not_help(name):
    """One of the same spectrum in other directions is worse than none."""
    table, matrix = table_of(3000, decay=0.5), form(24)
    method = method_for(name)
    plain = through(method, *fitted(method, table, None))
    wrong = through(method, *fitted(method, table, Metric.of(form(24, seed=1), 0.9)))
    judge = mixed(matrix, 0.9)
    assert error_in(judge, wrong, table) > error_in(judge, plain, table)


@pytest.mark.parametrize("weighted", [False, True])
def test_svd_is_the_best_of_its_rank(weighted):
    """Torch's SVD of diag(√w) E A, cut at the rank, has the same error, to the rounding of float32."""
    table, matrix = table_of(200, decay=1.0), form(24)
    weights = zipf(200) if weighted else np.ones(200)
    metric, method = Metric.of(matrix, 0.7), method_for("svd")
    stats = measure(rows_of(table), "e.weight", weights=weights if weighted else None, metric=metric)
    layout = method.at_rank(stats, 7, Settings(F32))
    values, vectors = torch.linalg.eigh(torch.from_numpy(mixed(matrix, 0.7)))
    root = (vectors * values.sqrt()) @ vectors.T
    scaled = torch.from_numpy(weights).sqrt()[:, None] * torch.from_numpy(table).double() @ root
    singular = torch.linalg.svdvals(scaled)
    best = float((singular[7:].square().sum() / singular.square().sum()).sqrt())
    assert layout.predicted_error == pytest.approx(best, rel=1e-5)
    found = error_in(mixed(matrix, 0.7), through(method, stats, layout), table, weights)
    assert found == pytest.approx(best, rel=1e-5)


def test_rows_of_zeros_stay_zeros():
    """Whatever the metric, as without one."""
    table = table_of(300)
    table[[0, 17]] = 0
    for name in NAMES:
        metric, ratio = Metric.of(form(24), 0.9), RATIOS.get(name, 0.85)
        stats, layout = fitted(method_for(name), table, metric, ratio=ratio)
        assert not through(method_for(name), stats, layout)[[0, 17]].any()


def test_small_errors_are_predicted_in_float64():
    """A table of low rank in the metric's own directions: the error left is known to five digits."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 24))
    table += 1e-5 * rng.standard_normal(table.shape)
    matrix, method = form(24), method_for("svd")
    rows = rows_of(table, F64)
    stats = measure(rows, "e.weight", precise=True, metric=Metric.of(matrix, 0.9))
    layout = method.at_rank(stats, 6, Settings(F64))
    found = error_in(mixed(matrix, 0.9), through(method, stats, layout), table)
    assert 1e-7 < found == pytest.approx(layout.predicted_error, rel=1e-5)
