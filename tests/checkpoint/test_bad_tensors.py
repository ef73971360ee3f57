"""Awkward and broken tables: rows 33–38 and 40 of BAD_INPUTS, through the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.checkpoints import assert_refused, directory, entry, raw, run, stored, succeed, table
from safetensors.numpy import load_file, save_file

TABLE = "embedding.weight"
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "small.safetensors"


@pytest.fixture(autouse=True)
def _place(tmp_path):
    (tmp_path / "out").mkdir()


def factors(path, name="embedding"):
    """Left and right factor in float64, read by the safetensors library."""
    held = safetensors.torch.load_file(path)
    return held[f"{name}.0.weight"].double().numpy(), held[f"{name}.1.weight"].double().numpy()


def error_of(path, dense, name="embedding"):
    """Frobenius error of the written product."""
    left, right = factors(path, name)
    return float(np.linalg.norm(left @ right.T - dense.astype(np.float64)))


def optimum(dense, rank):
    """The smallest error that a product of that rank can have (Eckart–Young)."""
    return float(np.linalg.norm(np.linalg.svd(dense.astype(np.float64), compute_uv=False)[rank:]))


def summary(result):
    """The JSON that the command printed."""
    return json.loads(result.stdout)


# ---- rows 33 and 34: values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_33_nan_or_infinity(tmp_path, path, value):
    """The message counts the rows with NaN or infinity and names the first."""
    dense = table(5000, 8)
    dense[[1234, 4000], 3] = value
    dense[4000, 5] = value
    save_file({TABLE: dense}, path)
    says = "embedding.weight: 2 of 5,000 rows hold NaN or infinity, the first is row 1,234"
    assert_refused(tmp_path, "factorize", path, "--rank", 2, code=3, says=says)
    assert_refused(tmp_path, "report", path, code=3, says=says)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_row_33_nan_in_other_types(tmp_path, path, kind):
    """NaN is found in every element type."""
    dense = torch.from_numpy(table()).to(kind)
    dense[63, 15] = torch.nan
    safetensors.torch.save_file({TABLE: dense}, path)
    assert_refused(tmp_path, "factorize", path, "--rank", 2, code=3, says="1 of 64 rows hold NaN")


def test_row_33_nan_elsewhere_is_carried(path, output):
    """Tensors that are not compressed may hold anything."""
    save_file({TABLE: table(), "norm": np.array([np.nan, np.inf], np.float32)}, path)
    succeed("factorize", path, "--rank", 4, "-o", output)
    assert stored(output)["norm"] == stored(path)["norm"]


@pytest.mark.parametrize("scale", [1e-30, 1e30], ids=["tiny", "huge"])
def test_row_33_values_whose_squares_leave_float32(path, output, scale):
    """Finite values are accepted, however small or large their squares are."""
    dense = (table().astype(np.float64) * scale).astype(np.float32)
    save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 4, "-o", output)
    assert error_of(output, dense) == pytest.approx(optimum(dense, 4), rel=1e-5)


def test_row_33_factors_that_overflow_their_type(tmp_path, path):
    """A factor beyond the largest float16 is refused with both values, even after writing has begun."""
    save_file({TABLE: table() * np.float32(1e5)}, path)
    assert_refused(
        tmp_path,
        *("factorize", path, "--rank", 4, "--dtype", "float16", "-o", tmp_path / "out" / "x.safetensors"),
        code=4,
        says="float16 ends at 65504",
    )


@pytest.mark.parametrize("split", ["left", "even", "right"])
def test_row_34_all_zeros(path, output, split):
    """A table of zeros has zero factors, no NaN, and error 0."""
    save_file({TABLE: np.zeros((40, 8), np.float32)}, path)
    result = succeed("factorize", path, "--rank", 2, "--split-scale", split, "--json", "-o", output)
    assert summary(result)["tables"][0]["relative_error"] == 0
    assert error_of(output, np.zeros((40, 8))) == 0
    assert np.isfinite(factors(output)[1]).all()
    succeed("report", path)


@pytest.mark.parametrize("split", ["left", "even", "right"])
def test_row_34_rank_deficient(path, output, split):
    """A rank above the table's gives the table itself, without dividing by zero."""
    dense = (table(60, 3) @ table(3, 12, seed=1)).astype(np.float32)
    save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 8, "--split-scale", split, "-o", output)
    assert error_of(output, dense) <= 4e-7 * np.linalg.norm(dense)
    assert all(np.isfinite(factor).all() for factor in factors(output))


def test_row_34_rank_deficient_by_error(path, output):
    """The rank that an error needs is the rank the table has."""
    save_file({TABLE: (table(60, 3) @ table(3, 12, seed=1)).astype(np.float32)}, path)
    result = succeed("factorize", path, "--max-error", 1e-6, "--json", "-o", output)
    assert summary(result)["tables"][0]["rank"] == 3


def test_row_34_duplicate_rows(path, output):
    """Equal rows stay equal."""
    dense = np.repeat(table(10, 16), 8, axis=0)
    save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 4, "-o", output)
    left, _ = factors(output)
    assert (left.reshape(10, 8, 4) == left.reshape(10, 8, 4)[:, :1]).all()
    assert error_of(output, dense) == pytest.approx(optimum(dense, 4), rel=1e-5)


# ---- row 35: ranks and shapes


def test_row_35_rank_0(tmp_path, path):
    """Rank 0 is a usage error before the input is opened."""
    save_file({TABLE: table()}, path)
    result = run("factorize", path, "--rank", 0)
    assert result.exit_code == 2
    assert "Invalid value for '--rank': 0" in result.stderr.splitlines()[-1]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.safetensors", "out"]


def test_row_35_rank_above_min_of_v_and_d(tmp_path, path):
    """A rank that no matrix of that shape has is refused with the break-even rank."""
    save_file({TABLE: table(64, 16)}, path)
    says = "rank 17 is above min(V, d) = 16; its break-even rank is 12"
    assert_refused(tmp_path, "factorize", path, "--rank", 17, code=4, says=says)


def test_row_35_rank_past_break_even(tmp_path, path):
    """A rank whose factors take as much as the table is refused; the break-even rank works."""
    save_file({TABLE: table(64, 16)}, path)
    says = "rank 13 would take 4,160 bytes, the table takes 4,096; its break-even rank is 12"
    assert_refused(tmp_path, "factorize", path, "--rank", 13, code=4, says=says)
    succeed("factorize", path, "--rank", 12)


def test_row_35_factors_as_large_as_the_table(tmp_path, path):
    """Equal size is not enough: 20 × 20 at rank 10 is refused, rank 9 is not."""
    save_file({TABLE: table(20, 20)}, path)
    assert_refused(tmp_path, "factorize", path, "--rank", 10, code=4, says="break-even rank is 9")
    succeed("factorize", path, "--rank", 9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2)], ids=str)
def test_row_35_tables_that_no_rank_makes_smaller(tmp_path, path, shape):
    """A table of one row, one column or next to nothing stays dense, and report shows it."""
    save_file({TABLE: table(*shape)}, path)
    for target in (("--rank", 1), ("--ratio", 0.5), ("--energy", 0.9), ("--max-error", 0.5)):
        assert_refused(tmp_path, "factorize", path, *target, code=4, says="leave it dense")
    succeed("report", path)


def test_row_35_fewer_rows_than_columns(path, output):
    """V < d works like any other shape."""
    dense = table(8, 64)
    save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 5, "-o", output)
    assert error_of(output, dense) == pytest.approx(optimum(dense, 5), rel=1e-5)


def test_row_35_ratio_that_leaves_less_than_rank_1(tmp_path, path):
    """A ratio beyond what rank 1 gives is refused with the ratio that rank 1 has."""
    save_file({TABLE: table(64, 16)}, path)
    assert_refused(tmp_path, "factorize", path, "--ratio", 0.99, code=4, says="(ratio 0.9219)")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--ratio", 0), ("--ratio", 1), ("--ratio", "nan"), ("--energy", 1.5), ("--max-error", -1)],
    ids=str,
)
def test_row_35_targets_out_of_their_range(tmp_path, path, option, value):
    """Fractions lie between 0 and 1."""
    save_file({TABLE: table()}, path)
    assert_refused(tmp_path, "factorize", path, option, value, code=2, says="give a fraction between 0 and 1")


def test_row_35_more_than_one_target_or_none(tmp_path, path):
    """Exactly one target must be given; the error names those that were."""
    save_file({TABLE: table()}, path)
    assert_refused(tmp_path, "factorize", path, code=2, says="targets given: none")
    assert_refused(
        tmp_path, "factorize", path, "--rank", 4, "--ratio", 0.5, code=2, says="targets given: rank, ratio"
    )


@pytest.mark.parametrize("size", [10, "4.3KB", "1GB"])
def test_row_35_sizes_out_of_reach_or_met_already(tmp_path, path, size):
    """A size below what is carried, below rank 1, or above the input is refused."""
    save_file({TABLE: table(), "rest": table(32, 32)}, path)
    assert_refused(tmp_path, "factorize", path, "--max-size", size, code=4, says="max_size")


# ---- row 36: element types


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored_as", [None, "float32", "bfloat16"])
def test_row_36_short_floats_work(path, output, kind, stored_as):
    """Tables of fp16 and bf16 are compressed, in their own type or in that of --dtype."""
    dense = torch.from_numpy(table(120, 16)).to(TYPES[kind])
    safetensors.torch.save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 6, "-o", output, *(("--dtype", stored_as) if stored_as else ()))
    written = safetensors.torch.load_file(output)["embedding.0.weight"]
    assert written.dtype == TYPES[stored_as or kind]
    exact = dense.double().numpy()
    # The optimum, and beside it the rounding of the factors (0.43 unit roundoffs each).
    rounding = torch.finfo(written.dtype).eps / 2 * float(np.linalg.norm(exact))
    assert error_of(output, exact) <= np.hypot(optimum(exact, 6) * (1 + 1e-5), rounding)


@pytest.mark.parametrize(
    "kind",
    [
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int64),
        *(torch.bool, torch.complex64),
    ],
    ids=str,
)
def test_row_36_tables_of_other_types_are_refused(tmp_path, path, kind):
    """fp8, integers and complex numbers need their scales or meaning, which the table does not hold."""
    safetensors.torch.save_file({TABLE: torch.ones(64, 16).to(kind)}, path)
    says = f"embedding.weight: {stored(path)[TABLE][0]} of shape [64, 16]"
    assert_refused(tmp_path, "factorize", path, "--rank", 4, code=3, says=says)


def test_row_36_packed_tables_are_refused(tmp_path, path):
    """A table cannot have two elements in a byte."""
    raw(path, {TABLE: entry("F4", [64, 16], 0, 512)}, bytes(512))
    assert_refused(tmp_path, "factorize", path, "--rank", 4, code=3, says="F4 of shape [64, 16]")


@pytest.mark.parametrize("shape", [(0, 16), (64, 0), (64,), (4, 4, 4)], ids=str)
def test_row_36_a_key_that_names_no_matrix(tmp_path, path, shape):
    """--key needs a matrix that is not empty."""
    save_file({TABLE: table(), "odd": np.zeros(shape, np.float32)}, path)
    assert_refused(tmp_path, "factorize", path, "--rank", 4, "--key", "odd", code=3, says=str(list(shape)))


# ---- rows 37 and 38: heads


def test_row_37_tied_by_name(tmp_path):
    """Names that share memory in a torch file share the factors, and all names keep working."""
    path, output = tmp_path / "model.pt", tmp_path / "out" / "small.pt"
    shared = torch.from_numpy(table())
    torch.save({"wte.weight": shared, "lm_head.weight": shared}, path)
    result = succeed("factorize", path, "--rank", 4, "--json", "-o", output)
    assert summary(result)["tables"][0]["ties"] == ["lm_head.weight"]
    state = torch.load(output, weights_only=True)
    assert {*state} == {f"{stem}.{i}.weight" for stem in ("wte", "lm_head") for i in (0, 1)}
    for i in (0, 1):
        assert state[f"wte.{i}.weight"].data_ptr() == state[f"lm_head.{i}.weight"].data_ptr()


@pytest.mark.parametrize("as_directory", [False, True])
def test_row_37_tied_by_value(tmp_path, as_directory):
    """A head stored as a copy is dropped and recorded; expanding brings it back, equal to the table."""
    tensors = {"model.embed_tokens.weight": table(), "lm_head.weight": table(), "norm.weight": table(1, 16)}
    source, small, dense = (
        tmp_path / place for place in ("model.safetensors", "out/s.safetensors", "out/d.safetensors")
    )
    save_file(tensors, source)
    if as_directory:
        source, small, dense = (directory(tmp_path / "model", [tensors]), tmp_path / "s", tmp_path / "d")
    result = succeed("factorize", source, "--rank", 4, "--json", "-o", small)
    assert summary(result)["tables"][0]["ties"] == ["lm_head.weight"]
    file = small / "model.safetensors" if as_directory else small
    left = {name for name in stored(file) if not name.startswith("model.embed_tokens")}
    assert left == {"norm.weight"}
    succeed("expand", small, "-o", dense)
    again = stored(dense / "model.safetensors" if as_directory else dense)
    assert {*again} == {*tensors}
    assert again["lm_head.weight"] == again["model.embed_tokens.weight"]


def test_row_37_config_says_tied_but_the_head_differs(tmp_path):
    """A head with values of its own is carried byte for byte, and a note says that the config is wrong."""
    tensors = {"model.embed_tokens.weight": table(), "lm_head.weight": table(seed=1)}
    model = directory(tmp_path / "model", [tensors], vocab_size=64, tie_word_embeddings=True)
    result = succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    assert "lm_head.weight is tied to model.embed_tokens.weight, but its values differ" in result.stderr
    written = stored(tmp_path / "small" / "model.safetensors")
    assert written["lm_head.weight"] == stored(model / "model.safetensors")["lm_head.weight"]


def test_row_37_one_differing_value_unties(path, output):
    """A copy is a tie only when every value is equal."""
    head = table()
    head[-1, -1] = np.nextafter(head[-1, -1], 9)
    save_file({TABLE: table(), "lm_head.weight": head}, path)
    result = succeed("factorize", path, "--rank", 4, "--json", "-o", output)
    assert summary(result)["tables"][0]["ties"] == []
    assert stored(output)["lm_head.weight"] == stored(path)["lm_head.weight"]


@pytest.mark.parametrize("rows", [50, 64 + 64], ids=["slice", "padded"])
def test_row_38_a_head_of_another_height(tmp_path, rows):
    """A head over part of the vocabulary, or a padded one, is another matrix and is carried over."""
    head = np.concatenate([table(), np.zeros((64, 16), np.float32)])[:rows]
    tensors = {"model.embed_tokens.weight": table(), "lm_head.weight": head}
    model = directory(tmp_path / "model", [tensors], vocab_size=64, tie_word_embeddings=True)
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    written = stored(tmp_path / "small" / "model.safetensors")
    assert written["lm_head.weight"] == stored(model / "model.safetensors")["lm_head.weight"]


def test_row_38_padded_vocabulary(tmp_path):
    """A table with more rows than vocab_size is still the table, padding rows and all."""
    padded = np.concatenate([table(), np.zeros((64, 16), np.float32)])
    model = directory(tmp_path / "model", [{"model.embed_tokens.weight": padded}], vocab_size=64)
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    left, _ = factors(tmp_path / "small" / "model.safetensors", "model.embed_tokens")
    assert left.shape == (128, 4)
    assert (left[64:] == 0).all()


# ---- row 40: which table


def test_row_40_several_candidates(tmp_path, path):
    """Equally likely tables are listed with --key as the remedy; --key and --all then work."""
    save_file({"source_embed.weight": table(64, 16), "target_embed.weight": table(80, 16, seed=1)}, path)
    says = (
        "2 tables are equally likely: target_embed.weight [80, 16], source_embed.weight [64, 16]; "
        "choose with --key NAME"
    )
    assert_refused(tmp_path, "factorize", path, "--rank", 4, code=2, says=says)
    one, both = tmp_path / "out/one.safetensors", tmp_path / "out/both.safetensors"
    succeed("factorize", path, "--rank", 4, "--key", "source_embed.weight", "-o", one)
    assert {"source_embed.0.weight", "target_embed.weight"} < {*stored(one)}
    succeed("factorize", path, "--rank", 4, "--all", "-o", both)
    assert {"source_embed.0.weight", "target_embed.1.weight"} < {*stored(both)}
    twice = tmp_path / "out/twice.safetensors"
    keys = ("--key", "source_embed.weight", "--key", "target_embed.weight")
    succeed("factorize", path, "--rank", 4, *keys, "-o", twice)
    assert load_file(twice).keys() == load_file(both).keys()


def test_row_40_a_misspelt_key(tmp_path, path):
    """A key that names no tensor is answered with the closest name."""
    save_file({TABLE: table()}, path)
    assert_refused(
        tmp_path,
        *("factorize", path, "--rank", 4, "--key", "embeding.weight"),
        code=2,
        says="did you mean embedding.weight?",
    )


def test_row_40_position_table_larger_than_token_table(path, output):
    """The token table is found by its name, not by its size."""
    words, positions = "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"
    save_file({positions: table(512, 16), words: table(64, 16, seed=1)}, path)
    result = succeed("factorize", path, "--rank", 4, "--json", "-o", output)
    assert [t["name"] for t in summary(result)["tables"]] == [words]
    assert stored(output)[positions] == stored(path)[positions]


def test_row_40_none_at_all(tmp_path, path):
    """Without a table the tallest matrices are shown, in case one is meant."""
    save_file({"conv.weight": table(30, 9), "bias": table(1, 4)[0], "fc.weight": table(10, 10)}, path)
    says = (
        "no tensor is named like an embedding table; name it with --key; the tallest matrices are conv.weight"
    )
    assert_refused(tmp_path, "factorize", path, "--rank", 2, code=2, says=says)
    succeed("factorize", path, "--rank", 2, "--key", "conv.weight")


def test_row_40_a_file_without_matrices(tmp_path, path):
    """A file with no matrix, or no tensor, says so."""
    for tensors in ({"bias": table(1, 4)[0]}, {}):
        save_file(tensors, path)
        assert_refused(tmp_path, "factorize", path, "--rank", 1, code=2, says="it holds no matrix")


@pytest.mark.parametrize("split", ["left", "even", "right"])
@pytest.mark.parametrize("kind", [*TYPES, "float64"])
def test_row_40_a_padding_row_stays_zero(tmp_path, path, output, kind, split):
    """A row of zeros is exactly zero in the left factor, and in the table when it is expanded."""
    dense = torch.from_numpy(table(80, 16)).to(getattr(torch, kind))
    dense[[0, 41, 79]] = 0
    safetensors.torch.save_file({TABLE: dense}, path)
    succeed("factorize", path, "--rank", 6, "--split-scale", split, "-o", output)
    left, _ = factors(output)
    assert np.flatnonzero((left == 0).all(axis=1)).tolist() == [0, 41, 79]
    succeed("expand", output, "-o", tmp_path / "out/dense.safetensors")
    again = safetensors.torch.load_file(tmp_path / "out/dense.safetensors")[TABLE]
    assert again.dtype == dense.dtype
    assert (again[[0, 41, 79]] == 0).all()


@pytest.mark.parametrize("as_directory", [False, True])
def test_row_40_a_table_already_factorized(tmp_path, path, as_directory):
    """Compressing a compressed table is refused, by name or without, and the message says how it was made."""
    save_file({TABLE: table(), "rest": table(4, 4)}, path)
    source = path
    if as_directory:
        source = directory(tmp_path / "model", [{TABLE: table(), "rest": table(4, 4)}], vocab_size=64)
    small = tmp_path / ("small" if as_directory else "small.safetensors")
    succeed("factorize", source, "--rank", 4, "-o", small)
    says = "compressed already: embedding.weight (svd, rank 4)"
    assert_refused(tmp_path, "factorize", small, "--rank", 2, code=2, says=says)
    assert_refused(tmp_path, "factorize", small, "--rank", 2, "--key", TABLE, code=2, says=says)
    assert_refused(tmp_path, "factorize", small, "--rank", 2, "--all", code=2, says=says)


def test_row_40_expanding_what_is_dense(tmp_path, path):
    """There is nothing to expand in a dense file."""
    save_file({TABLE: table()}, path)
    assert_refused(tmp_path, "expand", path, code=2, says="holds no compressed table")


def test_row_40_a_name_that_a_factor_would_take(tmp_path, path):
    """A tensor that has a factor's name is not overwritten."""
    save_file({TABLE: table(), "embedding.1.weight": table(3, 3)}, path)
    assert_refused(tmp_path, "factorize", path, "--rank", 4, code=2, says="holds embedding.1.weight already")


def damaged(path, small, change):
    """A compressed file whose record or parts were changed by ``change(tensors, record)``."""
    save_file({TABLE: table(), "rest": table(4, 4)}, path)
    succeed("factorize", path, "--rank", 4, "-o", small)
    with safetensors.safe_open(small, framework="numpy") as held:
        record = json.loads(held.metadata()["embcompress"])
    tensors = load_file(small)
    change(tensors, record)
    save_file(tensors, small, {"embcompress": json.dumps(record)})


def setting(**fields):
    """A change of some fields of the record."""
    return lambda _, record: record["tables"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, _: tensors.pop("embedding.1.weight"), "embedding.1.weight, a part of"),
        (
            lambda tensors, _: tensors.update({"embedding.1.weight": table(16, 3)}),
            "not those of a table [64, 16]",
        ),
        (
            lambda tensors, _: tensors.update({"embedding.0.weight": table(60, 4)}),
            "not those of a table [64, 16]",
        ),
        (setting(shape=[64, 17]), "not those of a table [64, 17]"),
        (setting(shape=[64]), "shape and rank must be positive integers"),
        (setting(shape=[64, True]), "shape and rank must be positive integers"),
        (setting(method="magic"), "magic"),
        (setting(name=["embedding.weight"]), "a name is not text"),
        (setting(name="\x1b[2Jx"), "holds control characters"),
        (setting(ties=["\ud800"], copies=["\ud800"]), "holds control characters"),
        (setting(copies=["rest"]), "copies are not among the ties"),
        (setting(ties=["embedding.weight"]), "a name is described twice"),
        (setting(rank=10**400), "positive integers below 2^48"),
        (setting(relative_error=10**400), "must be finite numbers"),
        (setting(dtype="F7"), "unknown dtype F7"),
        (setting(relative_error="small"), "must be finite numbers"),
        (setting(relative_error=True), "must be finite numbers"),
        (setting(ratio=float("nan")), "must be finite numbers"),
    ],
    ids=[
        *("lost part", "no product", "fewer rows", "columns", "one size", "bool size", "method", "name"),
        *("escape", "surrogate", "copy", "twice", "huge rank", "huge error"),
        *("dtype", "error", "bool error", "NaN"),
    ],
)
@pytest.mark.parametrize("command", ["expand", "report"])
def test_row_40_a_record_that_does_not_fit_the_tensors(tmp_path, path, command, change, says):
    """A record that its tensors contradict is refused."""
    small = tmp_path / "small.safetensors"
    damaged(path, small, change)
    assert_refused(tmp_path, command, small, code=3, says=says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting(parts=["0.weight"]), "parts"),
        (setting(parts=[]), "parts"),
        (setting(rank=5), "rank 5"),
        (setting(dtype="I8"), "I8"),
        (lambda _, record: record["tables"].append(record["tables"][0]), "embedding.weight"),
    ],
    ids=["one part", "no parts", "rank", "integer table", "twice"],
)
def test_row_40_a_record_that_contradicts_itself(tmp_path, path, change, says):
    """A record with impossible parts, rank, type or tables is refused, with the reason."""
    small = tmp_path / "small.safetensors"
    damaged(path, small, change)
    assert_refused(tmp_path, "report", small, code=3, says=says)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("embedding.weight", 3, "[64, 16] under this name"), ("rest", 2, "holds rest already")],
)
def test_row_40_a_dense_tensor_beside_the_factors(tmp_path, path, name, code, says):
    """expand does not overwrite a tensor that has a name it would write."""
    small = tmp_path / "small.safetensors"

    def beside(tensors, record):
        tensors[name] = table(64, 16)
        record["tables"][0].update(ties=["rest"], copies=["rest"])

    damaged(path, small, beside)
    assert_refused(tmp_path, "expand", small, code=code, says=says)


def test_row_40_factors_that_claim_terabytes(tmp_path, path):
    """A small file whose factors multiply to more than the disk holds is refused before a byte is written."""
    left = np.ones((1 << 20, 1), np.float32)
    record = {
        "name": "embedding.weight",
        "shape": [1 << 20, 1 << 20],
        "dtype": "F32",
        "method": "svd",
        "rank": 1,
        "stored_dtype": "F32",
        "bits": 32,
        "ratio": 0.9,
        "relative_error": 0.5,
        "parts": ["0.weight", "1.weight"],
    }
    described = {"layout": 1, "version": "0", "source": {}, "tables": [record]}
    tensors = {"embedding.0.weight": left, "embedding.1.weight": left.copy()}
    save_file(tensors, path, {"embcompress": json.dumps(described)})
    assert_refused(tmp_path, "expand", path, code=1, says="needs 4,398,")


def test_row_40_factors_that_are_not_finite(tmp_path, path):
    """NaN in a stored factor does not become a dense table."""
    small = tmp_path / "small.safetensors"
    damaged(path, small, lambda tensors, _: tensors["embedding.0.weight"].__setitem__((3, 1), np.nan))
    says = "part 0.weight holds NaN or infinity in row 3"
    assert_refused(tmp_path, "expand", small, code=3, says=says)
