"""Tables of extreme numbers through every method, against what NumPy makes of the stored bytes in float64."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, succeed
from helpers.quick import quick
from helpers.registry import EVERY
from helpers.trellis import number, slowly
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import embcompress
from embcompress.errors import EmbcompressError, TargetError
from embcompress.rows import Rows

TABLE = "embedding.weight"
HALF, BRAIN = torch.float16, torch.bfloat16
RNG = np.random.default_rng(0)
PLAIN = RNG.standard_normal((240, 16)) * 0.8 ** np.arange(16)


def tensor(values, dtype=torch.float32):
    return torch.from_numpy(np.array(values, np.float64)).to(dtype)


def with_rows(**rows):
    """The plain table with some rows set, ``r3=…`` the fourth."""
    table = PLAIN.copy()
    for name, values in rows.items():
        table[int(name[1:])] = values
    return table


def one_hot(value, place):
    return value * (np.arange(16) == place)


TABLES = {
    "float16's largest and smallest": tensor(
        with_rows(r0=0, r1=one_hot(65504, 0), r2=one_hot(-65504, 1), r3=6e-8, r4=6.1e-5), HALF
    ),
    "all of float16 large": tensor(PLAIN * 1e4, HALF),
    "all of float16 subnormal": tensor(PLAIN * 1e-6, HALF),
    "bfloat16's largest and smallest": tensor(
        with_rows(r0=0, r1=one_hot(3.38e38, 0), r2=one_hot(-3.38e38, 1), r3=1.2e-38, r4=9.2e-41), BRAIN
    ),
    "all of bfloat16 large": tensor(PLAIN * 2e37, BRAIN),
    "all of bfloat16 subnormal": tensor(PLAIN * 1e-39, BRAIN),
    "float32 subnormal": tensor(PLAIN * 1e-42),
    "float32 small": tensor(PLAIN * 1e-30),
    "float32 large": tensor(PLAIN * 2e37),
    "float64 beyond float32": tensor(PLAIN * 1e140, torch.float64),
    "zeros": tensor(np.zeros((60, 16))),
    "constant": tensor(np.full((60, 16), 0.3)),
    "1 × 1": tensor([[0.7]]),
    "one row": tensor(PLAIN[:1]),
    "fewer rows than columns": tensor(RNG.standard_normal((10, 64))),
    "one column": tensor(PLAIN[:, :1]),
    "three rows again and again": tensor(PLAIN[np.arange(240) % 3]),
    "small and large rows": tensor(np.where(np.arange(240)[:, None] % 2, PLAIN * 1e-20, PLAIN * 1e18)),
}


# ---- what stored bytes mean, written down once more


def exact(held, suffix):
    """A stored part in float64."""
    return held[f"embedding.{suffix}"].double().numpy()


def integers(held, factor, count, bits):
    """scale · (q - (2^bits - 1)/2), the integers packed with the most significant bit first."""
    codes = held[f"embedding.{factor}.codes"].numpy()
    bits_of = np.unpackbits(codes, axis=1)[:, : count * bits].reshape(len(codes), count, bits)
    numbers = bits_of @ (1 << np.arange(bits)[::-1])
    return (numbers - (2**bits - 1) / 2) * exact(held, f"{factor}.scales")


def reference(held, method, shape, rank):
    """The table that the parts in a file stand for."""
    screen, _, inner = method.partition("+")
    if screen == "screen":
        kept = np.unpackbits(held["embedding.0.kept"].numpy()[:, 0])[: shape[0]].astype(bool)
        few = (int(kept.sum()) + 1, shape[1])
        rows = reference(held, inner, few, rank) if inner else exact(held, "0.weight")
        return np.where(kept[:, None], rows[np.cumsum(kept) * kept], rows[0])
    if method == "svd":
        return exact(held, "0.weight") @ exact(held, "1.weight").T
    if method == "lplr":
        left, right = held["embedding.0.bits"].numpy()[0].tolist()
        return integers(held, "0", rank, left) @ integers(held, "1", shape[1], right)
    if method == "pq":
        parts = {name.removeprefix("embedding."): part.numpy() for name, part in held.items()}
        return slowly({s: rows_of(part) for s, part in parts.items() if part.ndim == 2}, shape)
    return integers(held, "0", shape[1], int(method[3:]))


def rows_of(array):
    return Rows(array.shape, None, lambda start, stop: array[start:stop])


def test_the_reference_reads_bits_as_they_are_written_down():
    """Both ways of reading packed bits agree, so that neither is wrong by itself."""
    codes = RNG.integers(0, 256, (3, 7)).astype(np.uint8)
    held = {"embedding.0.codes": torch.from_numpy(codes), "embedding.0.scales": torch.ones(3, 1)}
    found = integers(held, "0", 18, 3)
    expected = [[number(np.unpackbits(row), 3 * i, 3) - 3.5 for i in range(18)] for row in codes]
    np.testing.assert_array_equal(found, expected)


# ---- every table with every method


def relative(dense, stand_in, weights=None):
    """Frobenius error in float64, scaled to 1 first so that squares do not overflow."""
    size = np.abs(dense).max() or 1.0
    weights = np.ones(len(dense)) if weights is None else weights
    squares = weights @ np.square(dense / size).sum(axis=1)
    lost = weights @ np.square((stand_in - dense) / size).sum(axis=1)
    return float(np.sqrt(lost / squares)) if squares else float(lost > 0)


def last_digit(table):
    """What rounding to the smallest number of float32 adds, to the typical number of a table."""
    typical = np.sqrt(np.square(table / (np.abs(table).max() or 1.0)).mean()) * np.abs(table).max()
    return 4 * 2.0**-149 / typical if typical else 0.0


def most_bytes(path, output, **options):
    """Compressed as little as the method allows; None where it cannot make such a table smaller."""
    for ratio in (0.03, 0.5, 0.8, 0.93):
        try:
            return embcompress.factorize(path, ratio=ratio, output=output, force=True, **options)
        except TargetError as error:
            reason = error
    assert re.search("takes at least|has no layout in|a factor reaches|a row reaches", str(reason))
    return None


CASES = {f"{table}, {method}": (table, method) for table in TABLES for method in EVERY}
SOME = (
    *(f"{table}, {method}" for table in TABLES for method in ("svd", "pq", "int4")),
    *(f"{table}, {method}" for table in ("float32 large", "small and large rows") for method in EVERY),
)


@pytest.mark.parametrize(("table", "method"), quick(CASES, *SOME))
def test_what_is_stored_is_what_is_said(tmp_path, table, method):
    """Expanded, loaded and measured tables are NumPy's; zero rows are zeros; verify agrees; no warnings."""
    path, output = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: TABLES[table], "other": torch.ones(2)}, path)
    dense = TABLES[table].double().numpy()
    result = most_bytes(path, output, method=method)
    if result is None:
        return
    (one,) = result.tables
    held = load_file(output)
    stand_in = reference(held, method, dense.shape, one.rank)
    size = np.abs(dense).max() or 1.0
    assert np.isfinite(stand_in).all()
    assert not stand_in[~dense.any(axis=1)].any()
    error = relative(dense, stand_in)
    assert one.relative_error == pytest.approx(error, rel=1e-4, abs=4e-7 + last_digit(dense))
    assert embcompress.verify(output, against=path).is_right
    assert embcompress.report(output, against=path).compressed[0].measured_error == pytest.approx(
        error, rel=1e-4, abs=4e-7 + last_digit(dense)
    )
    expanded = load_file(embcompress.expand(output, output=tmp_path / "dense.safetensors").output)[TABLE]
    assert expanded.dtype == TABLES[table].dtype
    roundoff = torch.finfo(expanded.dtype).eps + 2**-22
    tiny = torch.finfo(expanded.dtype).tiny * torch.finfo(expanded.dtype).eps + 16 * 2.0**-149  # a sum of 16
    allowed = 4 * roundoff * max(size, np.abs(stand_in).max()) + tiny
    np.testing.assert_allclose(expanded.double().numpy(), stand_in, rtol=0, atol=allowed)


@pytest.mark.parametrize("table", [name for name in TABLES if name != "float64 beyond float32"])
def test_factors_are_the_best_of_their_rank(tmp_path, table):
    """NumPy's SVD in float64 cuts off as much; what rounding to the stored type adds is in its roundoffs."""
    path = tmp_path / "model.safetensors"
    save_file({TABLE: TABLES[table]}, path)
    dense = TABLES[table].double().numpy()
    size = np.abs(dense).max() or 1.0
    singular = np.linalg.svd(dense / size, compute_uv=False)
    try:
        result = embcompress.factorize(
            path, rank=2, output=tmp_path / "small.safetensors", split_scale="even"
        )
    except TargetError:
        assert min(dense.shape) < 2 or dense.shape[1] == 1
        return
    optimum = np.sqrt((singular[2:] ** 2).sum() / (singular**2).sum()) if singular.any() else 0.0
    u = torch.finfo(TABLES[table].dtype).eps / 2
    measured = result.tables[0].relative_error
    slack = 2e-7 + last_digit(dense)
    assert optimum * (1 - 1e-6) - slack <= measured <= np.hypot(optimum, 2 * u) * (1 + 1e-5) + slack


@pytest.mark.parametrize(
    ("classifier", "split", "norms"),
    [
        (False, None, "left"),
        (True, None, "even"),
        (True, "left", "left"),
        (True, "right", "right"),
        (False, "even", "even"),
    ],
)
def test_where_the_singular_values_go(tmp_path, classifier, split, norms):
    """Without a word in both factors of a classifier, and else in the left; the product is the same."""
    path, table = tmp_path / "model.safetensors", torch.randn(40, 8, generator=torch.manual_seed(0))
    save_file({TABLE: table}, path, {"classifier": "{}"} if classifier else {})
    result = embcompress.factorize(path, rank=3, split_scale=split, output=tmp_path / "small.safetensors")
    held = load_file(result.output)
    left, right = held["embedding.0.weight"], held["embedding.1.weight"]
    values = torch.linalg.svdvals(table)[:3]
    power = {"left": (1, 0), "even": (0.5, 0.5), "right": (0, 1)}[norms]
    for factor, exponent in zip((left, right), power, strict=True):
        torch.testing.assert_close(factor.norm(dim=0), values**exponent, rtol=1e-4, atol=0)
    u, s, vt = torch.linalg.svd(table, full_matrices=False)
    torch.testing.assert_close(left @ right.T, (u[:, :3] * s[:3]) @ vt[:3], rtol=1e-4, atol=1e-5)
    assert embcompress.verify(result.output, against=path).is_right
    with safe_open(result.output, "pt") as file:
        command = json.loads(file.metadata()["embcompress"])["command"]
    assert (f"--split-scale {norms}" in command) == (norms != "left")


@pytest.mark.parametrize("method", quick(EVERY, "svd", "pq", "screen+int4"))
@pytest.mark.parametrize(
    "table", ["constant", "float32 subnormal", "float32 large", "bfloat16's largest and smallest"]
)
def test_weights_of_a_million_million_to_one(tmp_path, table, method):
    """The weighted error is NumPy's, the rows that weigh most are kept best, and nothing overflows."""
    path, output = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({TABLE: TABLES[table]}, path)
    dense = TABLES[table].double().numpy()
    counts = np.geomspace(1, 1e12, len(dense)) - 1
    options = {"weights": counts, "smoothing": 1.0}
    result = most_bytes(path, output, method=method, **options)
    if result is None:
        return
    (one,) = result.tables
    stand_in = reference(load_file(output), method, dense.shape, one.rank)
    weights = (counts + 1) / (counts + 1).mean()
    assert one.weighted_error == pytest.approx(
        relative(dense, stand_in, weights), rel=1e-3, abs=4e-7 + last_digit(dense)
    )
    assert one.relative_error == pytest.approx(
        relative(dense, stand_in), rel=1e-3, abs=4e-7 + last_digit(dense)
    )
    assert embcompress.verify(output, against=path, **options).is_right


@pytest.mark.parametrize("method", [*EVERY, "auto"])
def test_nan_taken_for_zero(tmp_path, method):
    """As if the table had zeros there; a note and the record say how many; a row of NaN is one of zeros."""
    path, zeroed = tmp_path / "model.safetensors", tmp_path / "zeroed.safetensors"
    dense = tensor(PLAIN)
    dense[3] = torch.nan
    dense[7, 2], dense[8, 2] = torch.inf, -torch.inf
    save_file({TABLE: dense, "lm_head.weight": dense.clone()}, path)
    filled = torch.nan_to_num(dense, 0.0, 0.0, 0.0)
    save_file({TABLE: filled, "lm_head.weight": filled.clone()}, zeroed)
    outputs = [tmp_path / name for name in ("small.safetensors", "small-zeroed.safetensors")]
    result = most_bytes(path, outputs[0], method=method, nan="zero")
    expected = most_bytes(zeroed, outputs[1], method=method)
    assert f"{TABLE}: 18 of 3,840 numbers are NaN or infinite and were read as zeros" in result.notes
    assert result.tables[0].ties == ("lm_head.weight",)
    assert result.tables[0].relative_error == expected.tables[0].relative_error
    one, other = (load_file(output) for output in outputs)
    assert {*one} == {*other}
    assert all(torch.equal(one[name], other[name]) for name in one)
    found = load_file(embcompress.expand(outputs[0]).output)[TABLE]
    assert not found[3].any()
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", EVERY)
def test_nan_is_refused_unless_it_is_asked_for(tmp_path, method):
    """The first row, how many, and what to do."""
    dense = tensor(PLAIN)
    dense[[3, 200], 5] = torch.nan
    save_file({TABLE: dense}, tmp_path / "model.safetensors")
    says = (
        "2 of 240 rows hold NaN or infinity, the first is row 3; "
        "repair the table first, or replace them with zeros: factorize --nan zero"
    )
    arguments = ("factorize", tmp_path / "model.safetensors", "--method", method, "--ratio", "0.3")
    assert_refused(tmp_path, *arguments, code=3, says=says)


def test_nan_on_the_command_line(tmp_path):
    """The option goes into the record's command; a table without NaN has nothing to note."""
    path, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    dense = tensor(PLAIN, HALF)
    dense[0, 0] = torch.nan
    save_file({TABLE: dense, "other.weight": torch.ones(3, 3)}, path)
    done = succeed("factorize", path, "--rank", "4", "--nan", "zero", "-o", small)
    assert "note: embedding.weight: 1 of 3,840 numbers are NaN" in done.stderr
    with embcompress.checkpoint.open_checkpoint(small) as opened:
        assert opened.description.command.endswith("--rank 4 --nan zero")
        assert opened.description.tables[0].nonfinite == 1
    save_file({TABLE: tensor(PLAIN)}, path)
    assert "NaN" not in succeed("factorize", path, "--rank", "4", "--nan", "zero", "-q", "--json").stdout
    with pytest.raises(EmbcompressError, match="nan 'drop'; choose from error, zero"):
        embcompress.factorize(path, rank=4, nan="drop")


@pytest.mark.parametrize("size", [1e-150, 1e-300, 1e-320])
def test_numbers_whose_squares_vanish_are_refused(tmp_path, size):
    """A table of such numbers would look like one of zeros; beside larger ones they are nothing."""
    path = tmp_path / "model.safetensors"
    save_file({TABLE: tensor(PLAIN * size, torch.float64)}, path)
    arguments = ("factorize", path, "--rank", "4")
    assert_refused(tmp_path, *arguments, code=3, says="values below 1e-140 cannot be squared")
    mixed = PLAIN.copy()
    mixed[::2] *= size
    save_file({TABLE: tensor(mixed, torch.float64)}, path)
    result = embcompress.factorize(path, rank=4)
    singular = np.linalg.svd(mixed, compute_uv=False)
    optimum = np.sqrt((singular[4:] ** 2).sum() / (singular**2).sum())
    assert result.tables[0].relative_error == pytest.approx(optimum, rel=1e-5)


KINDS = ("float64", "float32", "float16", "bfloat16")
NOISY = {f"{kind}, {noise}": (kind, noise) for kind in KINDS for noise in (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)}
METHODS_OF = {
    f"{name}, {method}": (*case, method) for name, case in NOISY.items() for method in ("svd", "auto")
}


@pytest.mark.parametrize(
    ("kind", "noise", "method"),
    quick(METHODS_OF, "float64, 1e-08, svd", "float64, 1e-12, svd", "float32, 1e-08, svd"),
)
def test_low_rank_with_noise(tmp_path, kind, noise, method):
    """The error of tables of low rank is predicted, whatever the noise; a Gram matrix alone ends at 1e-8."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 24)) / 2
    dense += noise * rng.standard_normal(dense.shape).astype(np.float32)
    held = torch.from_numpy(dense).to(getattr(torch, kind))
    path, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    save_file({"embedding.weight": held}, path)
    rounded = np.linalg.norm(held.double().numpy() - dense) / np.linalg.norm(dense)
    reachable = 3 * max(noise, rounded, {"float64": 1e-13, "float32": 1e-7}.get(kind, 0.01))
    targets = [{"ratio": 0.5}, {"max_error": reachable}, {"energy": 1 - 1e-4}]
    for target in targets if method == "auto" else [*targets, {"rank": 4}, {"rank": 5}]:
        result = embcompress.factorize(path, method=method, output=small, force=True, **target)
        assert result.tables[0].relative_error <= target.get("max_error", 1)


@pytest.mark.slow
def test_auto_with_low_rank_and_noise(tmp_path):
    """The same with the method that is predicted to be the best."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 24))
    dense += 1e-8 * rng.standard_normal(dense.shape)
    path = tmp_path / "model.safetensors"
    save_file({"embedding.weight": torch.from_numpy(dense)}, path)
    result = embcompress.factorize(path, method="auto", ratio=0.5, output=tmp_path / "small.safetensors")
    assert result.tables[0].method == "svd"
    assert result.tables[0].relative_error < 1e-8
