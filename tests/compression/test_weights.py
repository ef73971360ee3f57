"""Token weights: what is written against NumPy's SVD of the weighted table, and its errors computed anew.

The weight of a token is (count + 1)^s. The best factors under weights w are those of diag(√w) E, its
rows divided by √w afterwards (Eckart and Young 1936); all here is computed so, in float64, with NumPy alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers.checkpoints import assert_one_line, assert_refused, contents, run, succeed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcompress
from embcompress.data.labelled import read_labelled, split_off
from embcompress.dtypes import DTYPES
from embcompress.errors import UsageError
from embcompress.methods import METHODS
from embcompress.methods.planning import Target, plan_tables
from embcompress.methods.stats import measure
from embcompress.rows import Rows
from embcompress.tables import Table

KEY = "embedding.weight"
FORMATS = (".safetensors", ".pt", "")
"""The three shapes of a checkpoint; the last is a directory."""
TYPES = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
"""Bits of the significand of each type of table."""
V, D, R = 150, 16, 5


def make(rows=V, columns=D, seed=0, *, decay=0.75):
    """A float64 table and counts: a third of the tokens is frequent, in other and in fewer directions."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)) * decay ** np.arange(columns)
    frequent = rng.permutation(rows) < rows // 3
    values[frequent] = values[frequent, ::-1] * np.where(np.arange(columns) < 0.6 * columns, 0.1, 1)
    return values, np.where(frequent, rng.integers(200, 3000, rows), rng.integers(0, 4, rows)).astype(float)


def write(folder, tensors, suffix=".safetensors", name="model"):
    """A checkpoint of torch tensors, by torch and safetensors alone."""
    path = folder / f"{name}{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
        return path
    if not suffix:
        path.mkdir()
        (path / "config.json").write_text('{"model_type": "tiny"}')
    file = path if suffix else path / "model.safetensors"
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    return path


def held(path):
    """Every tensor of a checkpoint, by torch and safetensors alone."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    return safetensors.torch.load_file(path if path.is_file() else path / "model.safetensors")


def record(path, at=0):
    """What the file says of a table, without this package."""
    if path.suffix == ".pt":
        text = torch.load(path, weights_only=True)._metadata["embcompress"]
    elif path.is_dir():
        return json.loads((path / "config.json").read_text())["quantization_config"]["tables"][at]
    else:
        with safetensors.safe_open(path, "numpy") as file:
            text = file.metadata()["embcompress"]
    return json.loads(text)["tables"][at]


def product(path, key=KEY):
    """The table that the stored factors stand for, in float64."""
    stem = key.removesuffix(".weight")
    left, right = (held(path)[f"{stem}.{part}.weight"].double().numpy() for part in (0, 1))
    return left @ right.T


def same_tensors(one, other):
    """Whether two checkpoints hold the same tensors to the bit."""
    first, second = held(one), held(other)
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def spectrum_of(dense, weights):
    """Singular values of diag(√w) E."""
    return np.linalg.svd(np.sqrt(weights)[:, None] * dense, compute_uv=False)


def optimum(dense, weights, rank):
    """The product of that rank with the least weighted error."""
    roots = np.sqrt(weights)[:, None]
    u, s, vt = np.linalg.svd(roots * dense, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank] / roots


def error(found, dense, weights=None):
    """Relative Frobenius error, each row's squares times its weight."""
    w = np.ones(len(dense)) if weights is None else weights
    return float(np.sqrt((w @ ((found - dense) ** 2).sum(axis=1)) / (w @ (dense**2).sum(axis=1))))


@pytest.fixture
def counts_file(tmp_path):
    """The counts of ``make()`` as a file."""
    np.save(tmp_path / "counts.npy", make()[1])
    return tmp_path / "counts.npy"


@pytest.fixture
def model(tmp_path):
    """The table of ``make()`` in float32."""
    return write(tmp_path, {KEY: torch.from_numpy(make()[0]).float()})


def dense_of(path, key=KEY):
    return held(path)[key].double().numpy()


def small(path, name="small"):
    """Where a smaller copy of ``path`` goes."""
    return path.with_name(f"{name}{path.suffix}")


# ---- the factors


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_factors_are_those_of_the_weighted_svd(tmp_path, dtype, suffix):
    """In every type and format the product is NumPy's, and the plain SVD's of that rank is another."""
    values, counts = make()
    path = write(tmp_path, {KEY: torch.from_numpy(values).to(getattr(torch, dtype))}, suffix)
    dense, weights = dense_of(path), (counts + 1) ** 0.5
    output = embcompress.factorize(path, rank=R, weights=counts, output=small(path)).output
    found, best = product(output), optimum(dense, weights, R)
    allowed = {"float64": 1e-11, "float32": 2e-6}.get(dtype, 2.0 ** -TYPES[dtype])
    assert np.linalg.norm(found - best) <= allowed * np.linalg.norm(dense)
    plain = optimum(dense, np.ones(V), R)
    assert np.linalg.norm(plain - best) > 0.3 * np.linalg.norm(dense), "or weights change nothing here"


@pytest.mark.parametrize("smoothing", [0, 0.25, 0.5, 1, 2])
def test_the_weight_is_a_power_of_the_count(model, smoothing):
    """Smoothing s weighs a token by (count + 1)^s, 0 by 1; each gives other factors."""
    counts, dense = np.floor(10 ** np.random.default_rng(1).uniform(0, 4, V)), dense_of(model)
    found = product(
        embcompress.factorize(model, rank=R, weights=counts, smoothing=smoothing, output=small(model)).output
    )
    for s in (0, 0.25, 0.5, 1, 2):
        best = optimum(dense, (counts + 1) ** s, R)
        distance = np.linalg.norm(found - best) / np.linalg.norm(dense)
        assert distance < 5e-6 if s == smoothing else distance > 0.01


def test_the_plain_svd_loses_where_it_counts(model):
    """The negative control: of two outputs of one rank each is the better one by its own measure."""
    counts, dense = make()[1], dense_of(model)
    weights = (counts + 1) ** 0.5
    with_weights = product(
        embcompress.factorize(model, rank=R, weights=counts, output=small(model, "a")).output
    )
    without = product(embcompress.factorize(model, rank=R, output=small(model, "b")).output)
    assert error(without, dense, weights) > 1.2 * error(with_weights, dense, weights)
    assert error(with_weights, dense) > 1.05 * error(without, dense)


def test_a_weight_is_a_row_so_many_times(tmp_path):
    """No formula of ours: a token of count 2 is one whose row stands there three times, unweighted."""
    rng = np.random.default_rng(3)
    values, counts = make(60, 12, 3)[0], rng.integers(0, 5, 60)
    times = counts + 1
    once = write(tmp_path, {KEY: torch.from_numpy(values)}, name="once")
    often = write(tmp_path, {KEY: torch.from_numpy(np.repeat(values, times, axis=0))}, name="often")
    one = embcompress.factorize(once, rank=4, weights=counts, smoothing=1, output=tmp_path / "a.safetensors")
    many = embcompress.factorize(often, rank=4, output=tmp_path / "b.safetensors")
    np.testing.assert_allclose(
        np.repeat(product(one.output), times, axis=0), product(many.output), atol=1e-12
    )
    assert one.tables[0].weighted_error == pytest.approx(many.tables[0].relative_error, rel=1e-12)
    assert one.tables[0].predicted_error == pytest.approx(many.tables[0].predicted_error, rel=1e-12)


def test_each_block_gets_the_weights_of_its_rows(model, monkeypatch):
    """A table read in many blocks, the last a short one, gives what it gives in one."""
    counts, dense = make()[1], dense_of(model)
    whole = embcompress.factorize(model, rank=R, weights=counts, output=small(model, "whole"))
    monkeypatch.setattr("embcompress.rows.BLOCK_BYTES", 4 * D * 7)
    parts = embcompress.factorize(model, rank=R, weights=counts, output=small(model, "parts"))
    np.testing.assert_allclose(product(parts.output), product(whole.output), atol=1e-5)
    weights = (counts + 1) ** 0.5
    (table,) = parts.tables
    assert table.weighted_error == pytest.approx(error(product(parts.output), dense, weights), rel=1e-5)
    assert table.weighted_error == pytest.approx(error(optimum(dense, weights, R), dense, weights), rel=1e-5)


@pytest.mark.parametrize("split", ["left", "even", "right"])
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "float64"])
def test_other_types_and_splits_hold_the_same_product(model, split, dtype):
    """Where singular values go and how factors are rounded changes their product by rounding only."""
    counts, dense = make()[1], dense_of(model)
    result = embcompress.factorize(
        model, rank=R, weights=counts, split_scale=split, dtype=dtype, output=small(model)
    )
    best = optimum(dense, (counts + 1) ** 0.5, R)
    allowed = max(2e-6, 2.0 ** -TYPES[dtype or "float32"])
    assert np.linalg.norm(product(result.output) - best) <= allowed * np.linalg.norm(dense)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 14),
    span=st.floats(0, 12),
    data=st.data(),
)
def test_no_product_of_this_rank_is_better(rows, columns, span, data):
    """Eckart and Young hold for the weighted table: the spectrum is NumPy's, its tail the error reached."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dense = (
        rng.standard_normal((rows, columns)) * np.logspace(0, -data.draw(st.floats(0, 3)), columns)
    ).astype(np.float32)
    weights = 10 ** (rng.random(rows) * span)
    rank = data.draw(st.integers(1, min(rows, columns)))
    table = Rows(dense.shape, DTYPES["F32"], lambda start, stop: dense[start:stop].copy())
    found = measure(table, KEY, weights=weights, precise=True).spectrum
    singular = spectrum_of(dense.astype(np.float64), weights)
    np.testing.assert_allclose(np.sqrt(found.eigenvalues), singular, atol=1e-6 * singular[0])
    best = np.sqrt((singular[rank:] ** 2).sum() / (singular**2).sum())
    assert found.relative_errors()[rank] == pytest.approx(best, rel=1e-5, abs=3e-7)
    basis = found.vectors[:, :rank]
    reached = error(dense.astype(np.float64) @ basis @ basis.T, dense.astype(np.float64), weights)
    assert reached == pytest.approx(best, rel=1e-5, abs=3e-7)


# ---- the errors


@pytest.mark.parametrize("suffix", FORMATS)
def test_both_errors_are_those_of_the_written_bytes(tmp_path, counts_file, suffix):
    """Result, JSON, screen and the file's own record have the errors that its bytes give."""
    path = write(tmp_path, {KEY: torch.from_numpy(make()[0]).float()}, suffix)
    dense, weights = dense_of(path), (np.load(counts_file) + 1) ** 0.5
    command = ("factorize", path, "--rank", R, "--weights", counts_file)
    shown = succeed(*command, "-o", small(path)).stdout
    told = json.loads(succeed(*command, "-o", small(path, "again"), "--json").stdout)["tables"][0]
    assert same_tensors(small(path), small(path, "again"))

    found = product(small(path))
    weighted, plain = error(found, dense, weights), error(found, dense)
    assert weighted < 0.9 * plain
    written = record(small(path))
    for says in (told, written):
        assert says["weighted_error"] == pytest.approx(weighted, rel=1e-5)
        assert says["relative_error"] == pytest.approx(plain, rel=1e-5)
        assert says["weighting"] == "counts.npy, (count+1)^0.5"
    assert {name: told[name] for name in ("weighted_error", "relative_error")} == {
        name: written[name] for name in ("weighted_error", "relative_error")
    }
    lines = shown.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[-3:] == ["weighted error", "predicted", "unweighted"]
    predicted_errors = error(optimum(dense, weights, R), dense, weights)
    assert lines[1].split()[-3:] == [f"{x:.4f}" for x in (weighted, predicted_errors, plain)]
    assert lines[2] == "rows weighted by counts.npy, (count+1)^0.5"


def test_without_weights_there_is_one_error(model):
    """The control: no column, no text and no second error where no weights are given."""
    command = ("factorize", model, "--rank", R, "-o", small(model), "--force")
    shown = succeed(*command).stdout
    assert re.split(r"\s{2,}", shown.splitlines()[0].strip())[-2:] == ["error", "predicted"]
    told = json.loads(succeed(*command, "--json").stdout)["tables"][0]
    for says in (told, record(small(model))):
        assert says["weighting"] is None
        assert says["weighted_error"] is None
    assert told["relative_error"] == pytest.approx(error(product(small(model)), dense_of(model)), rel=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rank", [1, 4, 8, 13])
def test_the_predicted_error_is_the_one_measured(tmp_path, dtype, rank):
    """What the plan says is the weighted optimum, and what the bytes have, up to the type's rounding."""
    values, counts = make(decay=0.4)
    path = write(tmp_path, {KEY: torch.from_numpy(values).to(getattr(torch, dtype))})
    dense, weights = dense_of(path), counts + 1
    result = embcompress.factorize(path, rank=rank, weights=counts, smoothing=1, output=small(path))
    (table,) = result.tables
    best = error(optimum(dense, weights, rank), dense, weights)
    rounding = 2.0 ** -TYPES[dtype]
    assert table.predicted_error == pytest.approx(best, rel=1e-5, abs=rounding)
    measured = error(product(result.output), dense, weights)
    assert measured == pytest.approx(table.predicted_error, rel=0.01, abs=0.3 * rounding)
    assert table.weighted_error == pytest.approx(measured, rel=1e-4, abs=0.01 * rounding)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rank", [2, 6, 11])
def test_weights_over_twelve_orders(tmp_path, dtype, rank):
    """Counts from 0 to 10^12 at smoothing 1: errors and product agree with float64's."""
    values = make(400, decay=0.8)[0]
    counts = np.round(np.logspace(0, 12, 400)) - 1
    path = write(tmp_path, {KEY: torch.from_numpy(values).to(getattr(torch, dtype))})
    dense, weights = dense_of(path), counts + 1
    assert weights.max() / weights.min() == 1e12
    result = embcompress.factorize(path, rank=rank, weights=counts, smoothing=1, output=small(path))
    (table,), found = result.tables, product(result.output)
    best = optimum(dense, weights, rank)
    assert table.weighted_error == pytest.approx(error(best, dense, weights), rel=1e-4)
    assert table.predicted_error == pytest.approx(error(best, dense, weights), rel=1e-4)
    assert table.weighted_error == pytest.approx(error(found, dense, weights), rel=1e-4)
    assert table.relative_error == pytest.approx(error(found, dense), rel=1e-4)
    # Weighted by √w, so that the heaviest rows are compared, which is what was asked for.
    assert error(found, best, weights) < (1e-9 if dtype == "float64" else 1e-4)


def test_errors_of_rounding_alone_are_measured_in_float64(tmp_path):
    """Factors of a table of exact rank lose what float32 rounds: less than float32 itself could show."""
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (300, 4)) @ rng.integers(-8, 8, (4, D))
    path = write(tmp_path, {KEY: torch.from_numpy(values).float()})
    counts = rng.integers(0, 10**6, 300)
    result = embcompress.factorize(path, rank=6, weights=counts, smoothing=1, output=small(path))
    (table,), found = result.tables, product(result.output)
    assert 0 < table.weighted_error < 2**-24
    assert table.weighted_error == pytest.approx(error(found, values, counts + 1.0), rel=1e-4, abs=0)
    assert table.relative_error == pytest.approx(error(found, values), rel=1e-4, abs=0)


def test_report_against_measures_the_plain_error(model, counts_file):
    """Against the original all tokens count alike, as in the record's own plain error."""
    succeed("factorize", model, "--rank", R, "--weights", counts_file, "-o", small(model))
    told = json.loads(succeed("report", small(model), "--against", model, "--json").stdout)["compressed"][0]
    found, dense = product(small(model)), dense_of(model)
    plain, weighted = error(found, dense), error(found, dense, (np.load(counts_file) + 1) ** 0.5)
    assert told["measured_error"] == pytest.approx(plain, rel=1e-5)
    assert told["recorded_error"] == pytest.approx(plain, rel=1e-5)
    assert told["measured_error"] != pytest.approx(weighted, rel=0.05)


# ---- weights that say nothing, or nearly


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float64"),
        "float32",
        "float16",
        "bfloat16",
    ],
)
def test_equal_counts_change_no_bit(tmp_path, suffix, dtype):
    """Tokens that all occur equally often are no weighting: every tensor is what it is without."""
    tensors = {KEY: torch.from_numpy(make()[0]).to(getattr(torch, dtype))}
    path = write(tmp_path, tensors, suffix)
    embcompress.factorize(path, rank=R, output=small(path))
    outputs = []
    for count in (0, 1, 6, 12, 12345):
        name = f"equal{count}"
        result = embcompress.factorize(path, rank=R, weights=np.full(V, count), output=small(path, name))
        (table,) = result.tables
        assert table.weighted_error == pytest.approx(table.relative_error, rel=1e-6)
        outputs.append(result.output)
    assert all(same_tensors(small(path), output) for output in outputs)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_smoothing_0_changes_no_bit(tmp_path, suffix, dtype):
    """(count + 1)^0 is 1 whatever the counts; smoothing 0.5 changes them, so the test can tell."""
    path = write(tmp_path, {KEY: torch.from_numpy(make()[0]).to(getattr(torch, dtype))}, suffix)
    counts = make()[1]
    embcompress.factorize(path, rank=R, output=small(path))
    same = embcompress.factorize(path, rank=R, weights=counts, smoothing=0, output=small(path, "same"))
    other = embcompress.factorize(path, rank=R, weights=counts, output=small(path, "other"))
    assert same_tensors(small(path), same.output)
    assert not same_tensors(small(path), other.output)
    (table,) = same.tables
    assert table.weighting == "counts, (count+1)^0"
    assert table.weighted_error == pytest.approx(table.relative_error, rel=1e-6)


def test_tokens_that_never_occur_keep_a_weight(model):
    """Most counts 0: what is written is finite, and the rare rows are still met as well as can be."""
    dense = dense_of(model)
    counts = np.where(np.arange(V) % 10 == 0, 500.0, 0.0)
    result = embcompress.factorize(model, rank=R, weights=counts, output=small(model))
    found = product(result.output)
    assert np.isfinite(found).all()
    best = optimum(dense, np.where(counts > 0, 501**0.5, 1), R)
    assert np.linalg.norm(found - best) < 5e-6 * np.linalg.norm(dense)
    never = counts == 0
    assert error(found[never], dense[never]) < 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("split", ["left", "even", "right"])
def test_the_padding_row_stays_exactly_zero(tmp_path, dtype, split):
    """Rows of zeros come back as zeros, the most frequent token's and one's that never occurs."""
    values, counts = make()
    values[[0, 17]] = 0
    counts[0], counts[17] = 10**9, 0
    path = write(tmp_path, {KEY: torch.from_numpy(values).to(getattr(torch, dtype))})
    embcompress.factorize(path, rank=R, weights=counts, split_scale=split, output=small(path))
    embcompress.expand(small(path), output=small(path, "dense"))
    back = held(small(path, "dense"))[KEY]
    assert not back[[0, 17]].any()
    assert back[1].any()
    assert not held(small(path))["embedding.0.weight"][[0, 17]].any()


@pytest.mark.parametrize("counts", [np.zeros(V), make()[1]], ids=["none", "some"])
def test_a_table_of_zeros(tmp_path, counts):
    """Nothing to weigh is no error."""
    path = write(tmp_path, {KEY: torch.zeros(V, D)})
    (table,) = embcompress.factorize(path, rank=2, weights=counts, output=small(path)).tables
    assert (table.predicted_error, table.relative_error, table.weighted_error) == (0, 0, 0)
    assert not product(small(path)).any()


# ---- targets


@pytest.mark.parametrize("target", [0.1, 0.25, 0.4])
def test_max_error_holds_for_the_weighted_error(model, target):
    """It is met by the smallest rank that can; without weights another rank is needed."""
    counts, dense = make()[1], dense_of(model)
    weights = counts + 1
    result = embcompress.factorize(model, max_error=target, weights=counts, smoothing=1, output=small(model))
    (table,), found = result.tables, product(result.output)
    assert error(found, dense, weights) <= target
    assert error(optimum(dense, weights, table.rank - 1), dense, weights) > target
    (without,) = embcompress.factorize(model, max_error=target, dry_run=True, output=small(model, "b")).tables
    assert without.rank > table.rank
    assert error(found, dense) > target, "or the plain error would do"


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95, 0.99])
def test_energy_is_that_of_the_weighted_table(model, energy):
    """The smallest rank whose weighted singular values hold the share, by NumPy's SVD."""
    counts, dense = make()[1], dense_of(model)
    result = embcompress.factorize(model, energy=energy, weights=counts, smoothing=1, output=small(model))
    (table,) = result.tables
    ranks = []
    for weights in (counts + 1, np.ones(V)):
        squares = spectrum_of(dense, weights) ** 2
        ranks.append(int(np.argmax(np.cumsum(squares) >= energy * squares.sum())) + 1)
    assert table.rank == ranks[0] < ranks[1]
    assert error(product(result.output), dense, counts + 1) ** 2 <= 1 - energy + 1e-6


def test_ratio_and_rank_hold_and_their_bytes_count_most(model):
    """Sizes know no weights: rank and bytes are those without, the weighted error is the least of them."""
    counts, dense = make()[1], dense_of(model)
    weights = (counts + 1) ** 0.5
    for target in ({"ratio": 0.6}, {"rank": 7}):
        result = embcompress.factorize(model, **target, weights=counts, output=small(model), force=True)
        without = embcompress.factorize(model, **target, dry_run=True, output=small(model, "b"))
        (table,) = result.tables
        assert (table.rank, table.bytes_after) == (without.tables[0].rank, without.tables[0].bytes_after)
        assert table.rank == target.get("rank", int(0.4 * V * D / (V + D)))
        best = error(optimum(dense, weights, table.rank), dense, weights)
        assert error(product(result.output), dense, weights) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    "suffix",
    [
        ".pt",
        *(
            pytest.param(
                suffix,
            )
            for suffix in (".safetensors", "")
        ),
    ],
)
def test_max_size_holds(tmp_path, suffix):
    """Any size between two ranks is met, however long the name that the record takes from the counts."""
    path = write(tmp_path, {KEY: torch.from_numpy(make()[0]).float()}, suffix)
    counts = tmp_path / f"{'n' * 200}.npy"
    np.save(counts, make()[1])
    dense, weights = dense_of(path), (np.load(counts) + 1) ** 0.5
    whole = embcompress.factorize(path, rank=6, weights=counts, output=small(path)).size_after
    ranks = set()
    for size in range(whole - 4 * (V + D), whole + 4 * (V + D), 80):
        result = embcompress.factorize(path, max_size=size, weights=counts, output=small(path), force=True)
        written = small(path) if suffix else small(path) / "model.safetensors"
        assert written.stat().st_size == result.size_after <= size
        (table,) = result.tables
        ranks.add(table.rank)
    best = error(optimum(dense, weights, table.rank), dense, weights)
    assert error(product(small(path)), dense, weights) == pytest.approx(best, rel=1e-5)
    assert 2 <= len(ranks) <= 4
    assert max(ranks) >= 5


# ---- where counts come from


def test_all_forms_of_the_counts_give_the_same_bytes(model):
    """An array, .npy, .csv, .tsv and numbers of any type are one and the same."""
    counts = make()[1]
    folder = model.parent
    np.save(folder / "counts.npy", counts.astype(np.int32))
    lines = [f"{row},{int(count)}\n" for row, count in enumerate(counts) if count]
    (folder / "counts.csv").write_text("id,count\n" + "".join(reversed(lines)))
    (folder / "counts.tsv").write_text("".join(lines).replace(",", "\t"))
    forms = [counts, counts.astype(np.float32), counts.astype(np.int64)]
    forms += [folder / "counts.npy", str(folder / "counts.npy"), folder / "counts.csv", folder / "counts.tsv"]
    outputs = []
    for number, form in enumerate(forms):
        result = embcompress.factorize(model, rank=R, weights=form, output=small(model, f"o{number}"))
        name = "counts" if isinstance(form, np.ndarray) else str(form).rsplit("/", 1)[-1]
        assert record(result.output)["weighting"] == f"{name}, (count+1)^0.5"
        outputs.append(result.output)
    assert all(same_tensors(outputs[0], other) for other in outputs[1:])


def test_the_counts_given_are_not_changed(model):
    """Arguments stay what they are."""
    counts = make()[1]
    before = counts.copy()
    embcompress.factorize(model, rank=R, weights=counts, output=small(model))
    assert np.array_equal(counts, before)


def test_all_tables_are_weighted(tmp_path):
    """Two tables of one vocabulary get the same weights, each its own optimum."""
    counts = make()[1]
    tensors = {f"{side}_embedding.weight": torch.from_numpy(make(seed=seed)[0]).float()
               for seed, side in enumerate(("src", "tgt"))}  # fmt: skip
    path = write(tmp_path, tensors)
    np.save(tmp_path / "counts.npy", counts)
    command = ("factorize", path, "--rank", R, "--all", "--weights", tmp_path / "counts.npy", "--json")
    told = json.loads(succeed(*command, "-o", small(path)).stdout)["tables"]
    assert len(told) == 2
    for at, table in enumerate(told):
        dense = dense_of(path, table["name"])
        best = optimum(dense, (counts + 1) ** 0.5, R)
        found = product(small(path), table["name"])
        assert np.linalg.norm(found - best) < 5e-6 * np.linalg.norm(dense)
        assert record(small(path), at)["weighted_error"] == table["weighted_error"]


# ---- what is refused


def test_tables_of_different_rows_are_refused(tmp_path):
    """One list of counts cannot be of two vocabularies; each table alone can have it."""
    tensors = {"src_embedding.weight": torch.randn(V, D), "tgt_embedding.weight": torch.randn(V + 4, D)}
    path = write(tmp_path, tensors)
    np.save(tmp_path / "counts.npy", np.ones(V))
    command = ("factorize", path, "--rank", R, "--weights", tmp_path / "counts.npy")
    says = f"src_embedding.weight {V}"
    assert_refused(tmp_path, *command, "--all", code=2, says="different numbers of rows: ")
    assert_refused(tmp_path, *command, "--all", code=2, says=says)
    assert_refused(tmp_path, *command, "--all", code=2, says="--key")
    succeed(*command, "--key", "src_embedding.weight", "-o", small(path))


def test_two_sources_of_counts_are_refused(model, counts_file):
    """Neither is preferred silently, even where the second does not exist."""
    command = ("factorize", model, "--rank", R, "--weights", counts_file, "--corpus", "texts.txt")
    assert_refused(model.parent, *command, code=2, says="both --weights and --corpus are given; give one")
    with pytest.raises(UsageError, match="both"):
        embcompress.factorize(model, rank=R, weights=make()[1], corpus="texts.txt")


@pytest.mark.parametrize("smoothing", ["-0.1", "2.1", "nan", "inf", "-inf"])
def test_smoothing_out_of_range_is_refused(model, counts_file, smoothing):
    """The exponent lies between 0 and 2, both included."""
    command = ("factorize", model, "--rank", R, "--weights", counts_file, "--smoothing", smoothing)
    says = f"smoothing {float(smoothing)}; give an exponent from 0 (all alike) to 2"
    assert_refused(model.parent, *command, code=2, says=says)


def test_smoothing_out_of_range_is_refused_without_weights(model):
    """A value without meaning has none where it is not used either."""
    command = ("factorize", model, "--rank", R, "--smoothing", 7)
    assert_refused(model.parent, *command, code=2, says="smoothing 7.0")


def test_smoothing_that_is_no_number_is_refused(model, counts_file):
    """click's own error: exit code 2, nothing written."""
    before = contents(model.parent)
    done = run("factorize", model, "--rank", R, "--weights", counts_file, "--smoothing", "much")
    assert done.exit_code == 2
    assert "'much' is not a valid float" in done.stderr
    assert contents(model.parent) == before


@pytest.mark.parametrize(
    "counts",
    [
        np.ones(V - 1),
        np.ones(V + 1),
        np.ones((V, 1)),
        np.ones(()),
        np.r_[np.ones(V - 1), np.nan],
        np.r_[np.inf, np.ones(V - 1)],
        np.r_[np.ones(V - 1), -1],
    ],
    ids=["few", "many", "column", "scalar", "nan", "inf", "negative"],
)
def test_arrays_that_are_no_counts_are_refused(model, counts):
    """One number a row, none negative; the right number is told."""
    before = contents(model.parent)
    with pytest.raises(
        UsageError,
        match=rf"counts are .*, expected {V} numbers|count \S+ in row \d+, expected a number from 0 to",
    ):
        embcompress.factorize(model, rank=R, weights=counts, output=small(model))
    assert contents(model.parent) == before


@pytest.mark.parametrize(
    "counts",
    [np.array(["a"] * V), np.ones(V, complex), np.ones(V, bool), np.array([1] * V, object), [1.0] * V],
    ids=["text", "complex", "bool", "object", "list"],
)
def test_arrays_of_other_kinds_are_refused(model, counts):
    """As in an .npy file, counts are whole numbers or floats; a list is told what is wanted."""
    with pytest.raises(UsageError):
        embcompress.factorize(model, rank=R, weights=counts, output=small(model))


@pytest.mark.parametrize(("largest", "smoothing"), [(1e300, 2), (1e307, 1)])
def test_counts_too_large_to_weigh_are_refused(model, largest, smoothing):
    """No weights of 0 or NaN: such counts are refused, or weighed as they are; the table is not to blame."""
    counts, dense = np.full(V, largest), dense_of(model)
    counts[::2] = largest / 4
    with np.errstate(all="ignore"):
        try:
            embcompress.factorize(model, rank=R, weights=counts, smoothing=smoothing, output=small(model))
        except UsageError:
            return
    best = optimum(dense, (counts / largest) ** smoothing, R)
    assert np.linalg.norm(product(small(model)) - best) < 5e-6 * np.linalg.norm(dense)


@pytest.mark.parametrize("option", ["--weights", "--corpus"])
def test_the_counts_are_not_overwritten(model, option):
    """--force replaces an earlier output, never an input."""
    path = model.with_name("counts.npy" if option == "--weights" else "texts.txt")
    if option == "--weights":
        np.save(path, make()[1])
    else:
        path.write_text("a b\n")
        vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
        rule = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
        model.with_name("tokenizer.json").write_text(json.dumps({"version": "1.0", "model": rule}))
    command = ("factorize", model, "--rank", R, option, path, "-o", path, "--force")
    assert_refused(model.parent, *command, code=2, says=path.name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weighted_error": "small"}, "weighted_error must be a finite number"),
        ({"weighted_error": True}, "weighted_error must be a finite number"),
        ({"weighted_error": float("nan")}, "weighted_error must be a finite number"),
        ({"weighted_error": 1e300}, "weighted_error must be a finite number"),
        ({"weighting": 5}, "weighting is not text"),
        ({"weighting": ["counts"]}, "weighting is not text"),
    ],
)
def test_a_record_that_is_broken_is_refused(model, change, says):
    """Files come from strangers: what they say of weights is checked like all else."""
    succeed("factorize", model, "--rank", R, "-o", small(model))
    amended(small(model), lambda table: table | change)
    for command in (("report", small(model)), ("expand", small(model))):
        assert_refused(model.parent, *command, code=3, says=says)


def test_a_record_from_before_weights_is_read(model):
    """Files of earlier versions say nothing of a weighted error, and go on as they did."""
    succeed("factorize", model, "--rank", R, "-o", small(model))
    amended(small(model), lambda table: {k: v for k, v in table.items() if not k.startswith("weight")})
    told = json.loads(succeed("report", small(model), "--against", model, "--json").stdout)["compressed"][0]
    assert told["measured_error"] == pytest.approx(told["recorded_error"], rel=1e-6)
    succeed("expand", small(model), "-o", small(model, "dense"))


def amended(path, change):
    """Write a safetensors file again with a changed record of its table."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    whole = json.loads(metadata["embcompress"])
    whole["tables"] = [change(table) for table in whole["tables"]]
    safetensors.torch.save_file(held(path), path, metadata | {"embcompress": json.dumps(whole)})


# ---- dry run, and what is done with the output


def test_a_dry_run_predicts_the_weighted_error(model, counts_file):
    """The plan has the weighted optimum, no measured error, and nothing is written."""
    counts, dense = np.load(counts_file), dense_of(model)
    best = {s: error(optimum(dense, (counts + 1) ** s, R), dense, (counts + 1) ** s) for s in (0.5, 1)}
    before = contents(model.parent)
    command = ("factorize", model, "--rank", R, "--weights", counts_file, "--dry-run")
    told = json.loads(succeed(*command, "--json").stdout)
    shown = succeed(*command, "--smoothing", 1).stdout.splitlines()
    assert contents(model.parent) == before
    (table,) = told["tables"]
    assert told["written"] is False
    assert table["predicted_error"] == pytest.approx(best[0.5], rel=1e-5)
    assert table["weighting"] == "counts.npy, (count+1)^0.5"
    assert table["weighted_error"] is table["relative_error"] is None
    assert re.split(r"\s{2,}", shown[0].strip())[-3:] == ["weighted error", "predicted", "unweighted"]
    assert shown[1].split()[-3:] == ["–", f"{best[1]:.4f}", "–"]


def test_a_dry_run_reads_the_counts(model):
    """What is wrong with them is found before the work: that is what a dry run is for."""
    (model.parent / "counts.csv").write_text("id,count\n3,x\n")
    command = ("factorize", model, "--rank", R, "--dry-run", "--weights", model.parent / "counts.csv")
    assert_refused(model.parent, *command, code=3, says="line 2: count 'x'")


class Net(nn.Module):
    """A table and a layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D, padding_idx=0)
        self.out = nn.Linear(D, 3)

    def forward(self, ids):
        return self.out(self.embedding(ids))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_weighted_output_expands_and_loads(tmp_path, suffix):
    """Both give the weighted optimum: as a dense table, and row by row inside a model."""
    values, counts = make()
    torch.manual_seed(0)
    net = Net()
    net.embedding.weight.data.copy_(torch.from_numpy(values))
    path = write(tmp_path, net.state_dict(), suffix)
    best = optimum(dense_of(path), (counts + 1) ** 0.5, R)
    embcompress.factorize(path, rank=R, weights=counts, output=small(path))

    embcompress.expand(small(path), output=small(path, "dense"))
    back = held(small(path, "dense"))
    assert back.keys() == net.state_dict().keys()
    np.testing.assert_allclose(back[KEY].numpy(), best, atol=1e-5)
    assert torch.equal(back["out.weight"], net.out.weight)

    loaded = embcompress.load(Net(), small(path)).eval()
    expected = net.out(torch.from_numpy(best).float())
    ids = torch.arange(V).reshape(10, 15)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids), expected[ids], atol=1e-5, rtol=1e-5)
        assert (loaded(ids) - net(ids)).abs().max() > 0.05, "the factors must have been used"


# ---- compress

COMMON = ["please", "could", "you", "the", "a", "of", "it", "to", "now", "me"]
LABELLED = {
    "music": ["play", "song", "album", "band", "guitar", "loud"],
    "rain": ["sun", "wet", "cold", "storm", "wind", "dry"],
}


def labelled(path, count, seed):
    """Short texts of two labels, of plain words in lower case; some words are frequent."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        file.write("text,label\n")
        for number in range(count):
            label = [*LABELLED][number % 2]
            chosen = [*rng.choice(COMMON, 4, p=np.arange(10, 0, -1) / 55), *rng.choice(LABELLED[label], 2)]
            file.write(f"{' '.join(rng.permutation(chosen))},{label}\n")
    return path


@pytest.fixture(scope="module", params=[".pt", ".safetensors"])
def classifier(request, tmp_path_factory):
    """A trained classifier that reads five tokens of a text, its training texts and its dev texts."""
    folder = tmp_path_factory.mktemp("classifier")
    train, dev = labelled(folder / "train.csv", 60, 0), labelled(folder / "dev.csv", 30, 1)
    path = folder / f"model{request.param}"
    shape = ("--arch", "dan", "--hidden", 8, "--dimension", 12, "--dropout", 0, "--max-length", 5)
    succeed("train", train, "--dev", dev, "-o", path, *shape, "--epochs", 1, "--device", "cpu")
    return path, train, dev


def vocabulary_of(path):
    """The classifier's tokens, without this package."""
    if path.suffix == ".pt":
        found = torch.load(path, weights_only=True)["classifier"]
    else:
        with safetensors.safe_open(path, "numpy") as file:
            found = json.loads(file.metadata()["classifier"])
    return found["tokenizer"]["vocabulary"]


def counts_of(path, texts):
    """How often a classifier that reads five tokens meets each of its tokens."""
    seen = Counter(token for text in texts for token in text.split()[:5])
    vocabulary = vocabulary_of(path)
    assert {*seen} <= {*vocabulary}
    return np.array([seen[token] for token in vocabulary], float)


def texts_of(path):
    return [line.split(",")[0] for line in path.read_text().splitlines()[1:]]


def by_hand(path, train, dev, output, **weights):
    """factorize and finetune one after the other, as compress does both."""
    middle = output.with_name(f"middle-{output.name}")
    result = embcompress.factorize(path, rank=3, output=middle, **weights)
    succeed("finetune", middle, train, "--dev", dev, "-o", output, "--epochs", 1, "--device", "cpu")
    return result.tables[0]


def tensors_of(path):
    found = held(path)
    return found.get("state_dict", found)


def equal(one, other):
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def own_record(path):
    """The record of the table in a classifier's file."""
    if path.suffix == ".pt":
        return json.loads(tensors_of(path)._metadata["embcompress"])["tables"][0]
    return record(path)


def test_compress_weighs_by_the_training_texts(classifier, tmp_path):
    """As factorize does with counts of the tokens read, then finetune: to the bit, and its record says so."""
    path, train, dev = classifier
    output = tmp_path / f"small{path.suffix}"
    command = ("compress", path, train, "--dev", dev, "--no-metric", "--rank", 3, "--smoothing", 0.5)
    command += ("--epochs", 1, "--device", "cpu")
    told = json.loads(succeed(*command, "-o", output, "--json", "-q").stdout)
    (table,) = told["factorized"]["tables"]
    counts = counts_of(path, texts_of(train))
    np.save(tmp_path / "counts.npy", counts)
    alone = f"none+{tmp_path / 'counts.npy'}"
    wanted = by_hand(path, train, dev, tmp_path / f"hand{path.suffix}", weights=alone)
    assert equal(output, tmp_path / f"hand{path.suffix}")
    assert table["weighting"] == "counts, (count+1)^0.5"
    assert table["weighted_error"] == wanted.weighted_error
    assert table["relative_error"] == wanted.relative_error

    dense, weights = tensors_of(path)[KEY].double().numpy(), (counts + 1) ** 0.5
    best = error(optimum(dense, weights, 3), dense, weights)
    assert table["weighted_error"] == pytest.approx(best, rel=1e-5)
    assert table["weighted_error"] < 0.99 * table["relative_error"]
    written = own_record(output)
    assert written["trained"] is True
    assert {k: written[k] for k in ("weighting", "weighted_error", "relative_error")} == {
        k: table[k] for k in ("weighting", "weighted_error", "relative_error")
    }


def test_compress_with_smoothing_0_is_unweighted(classifier, tmp_path):
    """To the bit what factorize without weights and finetune give; the usual smoothing gives another."""
    path, train, dev = classifier
    command = (
        "compress",
        path,
        train,
        "--dev",
        dev,
        "--no-metric",
        "--rank",
        3,
        "--epochs",
        1,
        "--device",
        "cpu",
        "-q",
    )
    unweighted = by_hand(path, train, dev, tmp_path / f"hand{path.suffix}")
    made = {}
    for smoothing in ("0", "0.5"):
        output = tmp_path / f"s{smoothing}{path.suffix}"
        done = succeed(*command, "--smoothing", smoothing, "-o", output, "--json")
        made[smoothing] = json.loads(done.stdout)["factorized"]["tables"][0]
    assert equal(tmp_path / f"s0{path.suffix}", tmp_path / f"hand{path.suffix}")
    assert not equal(tmp_path / f"s0.5{path.suffix}", tmp_path / f"hand{path.suffix}")
    assert made["0"]["relative_error"] == unweighted.relative_error
    assert made["0"]["weighting"] is made["0"]["weighted_error"] is None


def test_compress_counts_no_text_that_is_held_out(classifier, tmp_path):
    """Without --dev the texts set aside in training do not weigh."""
    (suffix, train) = (classifier[0].suffix, classifier[1])
    path, output = tmp_path / f"model{suffix}", tmp_path / f"small{suffix}"
    small = ("--arch", "dan", "--dimension", 12, "--hidden", 6, "--max-length", 5, "--epochs", 2, "-q")
    succeed("train", train, "--dev-share", 0.4, "--seed", 3, *small, "-o", path)
    command = ("compress", path, train, "--smoothing", 0.5, "--no-metric", "--rank", 3, "--epochs", 1)
    done = succeed(*command, "--device", "cpu", "-o", output, "--json", "-q")
    (table,) = json.loads(done.stdout)["factorized"]["tables"]
    kept, _ = split_off(read_labelled(train), 0.4, 3)
    assert len(kept) == 36
    dense = tensors_of(path)[KEY].double().numpy()
    wanted = {}
    for name, texts in (("kept", kept.texts), ("all", texts_of(train))):
        weights = (counts_of(path, texts) + 1) ** 0.5
        wanted[name] = error(optimum(dense, weights, 3), dense, weights)
    assert table["weighted_error"] == pytest.approx(wanted["kept"], rel=1e-5)
    assert table["weighted_error"] != pytest.approx(wanted["all"], rel=1e-4)


def test_compress_refuses_a_smoothing_out_of_range(classifier, tmp_path):
    """Exit code 2, one line, and nothing is left behind."""
    path, train, dev = classifier
    before = contents(path.parent)
    output = tmp_path / f"small{path.suffix}"
    done = run("compress", path, train, "--dev", dev, "--rank", 3, "--smoothing", 3, "-o", output)
    assert done.exit_code == 2
    assert_one_line(done.stderr, "smoothing 3.0; give an exponent from 0 (all alike) to 2")
    assert contents(path.parent) == before
    assert contents(tmp_path) == {}


# ---- planning


def test_both_passes_over_a_steep_table_are_weighted():
    """Where float32 cannot predict the error the table is read again, with its weights."""
    rng = np.random.default_rng(0)
    dense = (rng.standard_normal((300, 12)) * np.logspace(0, -5, 12)).astype(np.float32)
    dense[:40] = dense[:40, ::-1]
    weights = np.where(np.arange(300) < 40, 1e-6, 1.0)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return dense[start:stop].copy()

    table = Table(KEY, Rows(dense.shape, DTYPES["F32"], read))
    (plan,) = plan_tables([table], Target("rank", 8), METHODS["svd"], weights=weights)
    assert plan.stats.precise
    assert len(reads) > 2
    singular = spectrum_of(dense.astype(np.float64), weights)
    best = np.sqrt((singular[8:] ** 2).sum() / (singular**2).sum())
    assert plan.layout.predicted_error == pytest.approx(best, rel=1e-4)
    (without,) = plan_tables([table], Target("rank", 8), METHODS["svd"])
    assert without.layout.predicted_error > 10 * best


def test_float64_is_used_where_it_is_asked_for(tmp_path):
    """A float32 table of exact rank is met to float64's rounding by float64 factors, weighted or not."""
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (300, 4)) @ rng.integers(-8, 8, (4, 16))
    path = write(tmp_path, {KEY: torch.from_numpy(values).float()})
    errors = []
    for weights in (None, rng.integers(0, 10**6, 300)):
        result = embcompress.factorize(
            path, rank=5, dtype="float64", weights=weights, output=small(path), force=True
        )
        errors.append(error(product(result.output), values.astype(float)))
    assert errors[0] < 1e-13
    assert errors[1] < 1e-12
