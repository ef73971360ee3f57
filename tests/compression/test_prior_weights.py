"""Weights from the vocabulary, alone and mixed with counts, against NumPy's weighted SVD; and the default.

The vocabulary is one of whole words, in order; tests/data/test_priors.py has the other kinds.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, loaded_by, succeed
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.errors import InputError, UsageError
from embcompress.methods import METHODS

KEY, V, D = "embeddings.word_embeddings.weight", 40, 8
WORDS = [f"w{(7 * i) % 31}x{i}" for i in range(V)]


def write(folder, *, tokenizer=True):
    """A directory whose table has other directions in its first rows, and a tokenizer of whole words."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((V, D)) * 0.5 ** np.arange(D)
    rows[:6] = rows[:6, ::-1]
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    save_file({KEY: rows.astype(np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        from tokenizers import Tokenizer, models, pre_tokenizers

        made = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token=WORDS[-1]))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "model")


def weighted_error(model, small, counts):
    """The weighted error of an output's table, with the weights (count + 1)^0.5."""
    embcompress.expand(small, output=small.with_name("dense"), force=True)
    one, other = (
        load_file(folder / "model.safetensors")[KEY].astype(float)
        for folder in (small.with_name("dense"), model)
    )
    weights = (counts + 1) ** 0.5
    return np.sqrt(
        weights @ ((one - other) ** 2).sum(axis=1) / (weights @ (other**2).sum(axis=1)),
    )


def shares():
    ranked = 1 / (np.arange(1, V + 1) + 2.7)
    return ranked / ranked.sum()


def test_the_prior_alone_weighs_by_zipf(model, tmp_path):
    """The error in the record is that under the prior's own counts, and smaller than without weights."""
    found = embcompress.factorize(model, rank=3, weights="auto", output=tmp_path / "small").tables[0]
    mine = weighted_error(model, tmp_path / "small", 1e6 * shares())
    assert found.weighted_error == pytest.approx(mine, rel=1e-4)
    assert found.weighting == "the order of its tokens, (count+1)^0.5"
    plain = embcompress.factorize(model, rank=3, output=tmp_path / "plain")
    assert plain.tables[0].weighting is None
    assert weighted_error(model, tmp_path / "plain", 1e6 * shares()) > 1.002 * mine


def mixed():
    """7 and 3 of texts with 1,003 of the prior, scaled to a million."""
    counts = 1003 * shares()
    counts[5] += 7
    counts[9] += 3
    return counts * 1e6 / 1013


@pytest.fixture
def counted(tmp_path):
    """The same counts as texts, and as a file."""
    (tmp_path / "t.txt").write_text(f"{' '.join([WORDS[5]] * 7)} {' '.join([WORDS[9]] * 3)}\n")
    (tmp_path / "c.csv").write_text(f"token,count\n{WORDS[5]},7\n{WORDS[9]},3\n")
    return tmp_path


def recorded_command(small):
    return json.loads((small / "config.json").read_text())["quantization_config"]["command"]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("--corpus t.txt", "--corpus t.txt"),
        ("--weights c.csv", "--weights c.csv"),
        ("--weights auto --corpus t.txt", "--corpus t.txt"),
        ("--weights auto+c.csv", "--weights c.csv"),
    ],
)
def test_counts_are_mixed_with_the_prior(model, counted, given, recorded, monkeypatch):
    """Also by the SVD. The record names both, and the command there leaves out what changes nothing."""
    monkeypatch.chdir(counted)
    words = given.split()
    shown = json.loads(succeed("factorize", model, "--rank", 3, *words, "-o", "small", "--json").stdout)
    (table,) = shown["tables"]
    mine = weighted_error(model, counted / "small", mixed())
    assert table["weighted_error"] == pytest.approx(mine, rel=1e-4)
    assert table["weighting"] == f"{words[-1][-5:]} and the order of its tokens, (count+1)^0.5"
    assert recorded_command(counted / "small").endswith(f"--rank 3 {recorded}")
    succeed("verify", "small", "--against", model, *words)
    succeed("verify", "small", "--against", model, *recorded.split())


def test_an_array_is_mixed_too(model, tmp_path):
    counts = np.zeros(V)
    counts[[5, 9]] = 7, 3
    found = embcompress.factorize(model, rank=3, weights=counts, output=tmp_path / "small").tables[0]
    assert found.weighted_error == pytest.approx(weighted_error(model, tmp_path / "small", mixed()), rel=1e-4)


@pytest.mark.parametrize("given", ["--weights none --corpus t.txt", "--weights none+c.csv"])
def test_counts_alone(model, counted, given, monkeypatch):
    """Their record is that of files from before there were priors: it names the counts alone."""
    monkeypatch.chdir(counted)
    words = given.split()
    succeed("factorize", model, "--rank", 3, *words, "-o", "small")
    counts = np.zeros(V)
    counts[[5, 9]] = 7, 3
    (table,) = json.loads((counted / "small/config.json").read_text())["quantization_config"]["tables"]
    assert table["weighting"] == f"{words[-1][-5:]}, (count+1)^0.5"
    assert table["weighted_error"] == pytest.approx(
        weighted_error(model, counted / "small", counts), rel=1e-4
    )
    assert recorded_command(counted / "small").endswith(given)
    succeed("verify", "small", "--against", model, *words)
    plain = ("--corpus", "t.txt") if "--corpus" in words else ("--weights", "c.csv")
    for again in (words, plain):
        shown = succeed("verify", "small", "--against", model, *again, "--json").stdout
        assert json.loads(shown)["tables"][0]["measured_weighted_error"] == pytest.approx(
            table["weighted_error"], rel=1e-4
        )
    assert_refused(
        counted,
        *("verify", "small", "--against", model, "--weights", "auto+c.csv"),
        code=2,
        says="its rows were weighted by",
    )


# ---- the default


@pytest.mark.parametrize("method", [*METHODS, "screen+svd", "screen+int8", "auto"])
def test_every_method_weighs_by_the_prior_where_it_can_use_it(model, tmp_path, method):
    """Not the SVD, which is the best of all rows alike, nor integers, whose codes would be the same."""
    weighs = method not in {"svd", "int8", "int4", "int3"}
    asked = {"method": method, "ratio": 0.4 if method != "int8" else 0.1}
    found = embcompress.factorize(model, **asked, output=tmp_path / "usual")
    expected = "the order of its tokens, (count+1)^0.5" if weighs else None
    assert found.tables[0].weighting == expected
    explicit = "auto" if weighs else "none"
    again = embcompress.factorize(model, **asked, weights=explicit, output=tmp_path / "asked")
    one, other = (tmp_path / name / "model.safetensors" for name in ("usual", "asked"))
    assert one.read_bytes() == other.read_bytes()
    assert again.notes == found.notes
    assert "--weights" not in (recorded_command(tmp_path / "asked"))
    changed = embcompress.factorize(
        model, **asked, weights="none" if weighs else "auto", output=tmp_path / "changed"
    )
    assert (changed.tables[0].weighting is None) == weighs
    word = "none" if weighs else "auto"
    assert recorded_command(tmp_path / "changed").endswith(f"--weights {word}")


def test_integers_are_the_same_with_weights(model, tmp_path):
    for weights in ("auto", "none"):
        embcompress.factorize(model, ratio=0.1, method="int8", weights=weights, output=tmp_path / weights)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "none"))
    assert all(np.array_equal(one[name], other[name]) for name in other)


BROKEN = {
    "no JSON": ("{", "is not JSON"),
    "another file": ("[]", "holds no JSON object"),
    "nested too deep": ('{"model":' + "[" * 100_000, "nested too deep"),
    "no vocabulary": ('{"version": "1.0"}', "holds no map from tokens to ids"),
    "of a larger table": (
        json.dumps({"model": {"vocab": {f"t{i}": i for i in range(V + 1)}}}),
        "has number 40, the table has 40 rows",
    ),
    "ids like 1e12": ('{"model": {"vocab": {"a": 1000000000000}}}', "has number 1,000,000,000,000"),
    "endless ids": ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "is not JSON"),
    "negative ids": ('{"model": {"vocab": {"a": -1}}}', "has number -1"),
    "ids that are no numbers": ('{"model": {"vocab": {"a": "0"}}}', "holds no map from tokens to ids"),
    "tokens that are no texts": ('{"model": {"vocab": [[1, 0.5]]}}', "holds no map from tokens to ids"),
    "scores that are no numbers": (
        json.dumps({"model": {"vocab": [[f"t{i}", {"a": i}] for i in range(V)]}}),
        "scores that are no numbers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_row_121_a_broken_tokenizer_is_a_note_unless_it_is_asked_for(model, tmp_path, case):
    """The output is that without weights, to the bit; only --weights auto is refused."""
    content, says = BROKEN[case]
    (model / "tokenizer.json").write_text(content)
    pair = ("factorize", model, "--ratio", 0.4, "--method", "lplr")
    result = succeed(*pair, "-o", tmp_path / "usual")
    (note,) = (line for line in result.stderr.splitlines() if line.endswith("; so all rows count alike"))
    assert says in note
    succeed(*pair, "--weights", "none", "-o", tmp_path / "none")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("usual", "none"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    succeed("verify", tmp_path / "usual", "--against", model)
    assert_refused(tmp_path, *pair, "--weights", "auto", "-o", tmp_path / "asked", code=3, says=says)
    if case != "no JSON":
        return
    (tmp_path / "c.csv").write_text("id,count\n5,7\n")
    result = succeed(*pair, "--weights", tmp_path / "c.csv", "-o", tmp_path / "counted")
    assert "so rows are weighted by c.csv alone" in result.stderr
    assert_refused(
        tmp_path,
        *(*pair, "--weights", f"auto+{tmp_path / 'c.csv'}", "-o", tmp_path / "asked"),
        code=3,
        says="is not JSON",
    )


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_row_122_a_tokenizer_that_is_no_file_beside_a_file(tmp_path, kind):
    """A single file of weights stands in a folder whose other files are none of its business."""
    file = write(tmp_path / "model") / "model.safetensors"
    place = file.with_name("tokenizer.json")
    place.unlink()
    os.mkfifo(place) if kind == "pipe" else place.mkdir()
    result = embcompress.factorize(file, ratio=0.4, method="lplr", output=tmp_path / "small.safetensors")
    assert result.tables[0].weighting is None
    assert any("expected a regular file; so all rows count alike" in note for note in result.notes)


def test_a_tokenizer_of_something_else_is_not_taken(tmp_path):
    """It names fewer than half of the rows: no padding is as long."""
    model = write(tmp_path / "model")
    for named, weighs in ((V // 2, True), (V // 2 - 1, False)):
        parsed = {"model": {"vocab": {word: row for row, word in enumerate(WORDS[:named])}}}
        (model / "tokenizer.json").write_text(json.dumps(parsed))
        found = embcompress.factorize(model, ratio=0.4, method="lplr", dry_run=True)
        assert (found.tables[0].weighting is not None) == weighs
        assert any("nothing says which" in note for note in found.notes) != weighs


def test_tables_of_different_sizes_count_alike(model, tmp_path):
    """--all works as without weights, and counts for both at once are still refused."""
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "other.embed_tokens.weight": tensors[KEY][:30]}, model / "model.safetensors")
    pair = ("factorize", model, "--ratio", 0.3, "--method", "lplr", "--all")
    result = succeed(*pair, "-o", tmp_path / "small")
    assert "different numbers of rows; so all rows count alike" in result.stderr
    succeed("verify", tmp_path / "small", "--against", model)
    for word in ("auto", tmp_path / "c.npy"):
        assert_refused(
            tmp_path, *pair, "--weights", word, "-o", tmp_path / "b", code=2, says="different numbers of rows"
        )


def test_smoothing_0_reads_no_tokenizer(model):
    (model / "tokenizer.json").write_text("{")
    found = embcompress.factorize(model, ratio=0.4, method="lplr", smoothing=0, dry_run=True)
    assert found.tables[0].weighting is None
    assert not any("JSON" in note for note in found.notes)


def test_reading_a_tokenizer_imports_no_library(model, tmp_path):
    """Neither torch nor tokenizers nor transformers: with tokenizer.json, with vocab.txt, or with neither."""
    program = (
        "import embcompress\n"
        "for path in sys.argv[1:]: embcompress.factorize(path, ratio=0.4, method='lplr', dry_run=True)"
    )
    bare, listed = (write(tmp_path / name, tokenizer=False) for name in ("bare", "listed"))
    (listed / "vocab.txt").write_text("\n".join(WORDS))
    imported = loaded_by(program, bare, bare / "model.safetensors", listed, model)
    assert not imported & {"torch", "tokenizers", "transformers", "sentencepiece"}


# ---- verify, report, compress


def test_verify_measures_errors_that_the_prior_weighs(model, tmp_path):
    """Nothing need be given: the record names the prior. A vocabulary that is gone or broken is a note."""
    embcompress.factorize(model, ratio=0.4, method="lplr", output=tmp_path / "small")
    found = embcompress.verify(tmp_path / "small", against=model)
    (table,) = found.tables
    assert table.measured_weighted_error == pytest.approx(table.weighted_error, rel=1e-6)
    assert table.weighting is not None
    tensors = load_file(model / "model.safetensors")
    for name, content in (("gone", None), ("broken", "{"), ("other", '{"model": {"vocab": {"a": 0}}}')):
        other = write(tmp_path / name, tokenizer=False)
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        if content:
            (other / "tokenizer.json").write_text(content)
        found = embcompress.verify(tmp_path / "small", against=other)
        assert found.tables[0].measured_weighted_error is None
        assert any("is not measured again" in note for note in found.notes)


def test_verify_is_told_another_smoothing(model, tmp_path):
    embcompress.factorize(model, ratio=0.4, method="lplr", smoothing=1, output=tmp_path / "small")
    found = embcompress.verify(tmp_path / "small", against=model)
    assert any("--smoothing" in note for note in found.notes)
    (table,) = embcompress.verify(tmp_path / "small", against=model, smoothing=1).tables
    assert table.measured_weighted_error == pytest.approx(table.weighted_error, rel=1e-6)


def test_verify_finds_a_wrong_error_under_the_prior(model, tmp_path):
    embcompress.factorize(model, ratio=0.4, method="lplr", output=tmp_path / "small")
    file = tmp_path / "small/config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["tables"][0]["weighted_error"] = 0.01
    file.write_text(json.dumps(config))
    found = embcompress.verify(tmp_path / "small", against=model)
    assert any("weighted error" in difference.line for difference in found.differences)


def test_a_report_weighs_when_it_is_asked_to(model):
    assert embcompress.report(model).tables[0].weighting is None
    assert embcompress.report(model, weights="auto").tables[0].weighting is not None


def test_other_weights_than_the_recorded_are_refused(model, counted):
    embcompress.factorize(model, rank=3, weights="auto", output=counted / "small")
    pair = ("verify", counted / "small", "--against", model)
    succeed(*pair, "--weights", "auto")
    other = ("--weights", counted / "c.csv")
    assert_refused(counted, *pair, *other, code=2, says="its rows were weighted by the order")


def test_rows_without_tokens_are_even_and_a_note_says_so(tmp_path):
    """The output is the plain one's to the bit, by default and if asked."""
    bare = write(tmp_path / "model", tokenizer=False)
    pair = ("factorize", bare, "--ratio", 0.4, "--method", "lplr")
    for name, words in {"a": (), "b": ("--weights", "auto"), "c": ("--weights", "none")}.items():
        result = succeed(*pair, *words, "-o", tmp_path / name)
        noted = "nothing says which of its tokens are frequent; so all rows count alike" in result.stderr
        assert noted == (name != "c")
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    for other in others:
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert "so all rows count alike" in succeed("report", bare, "--weights", "auto").stderr


@pytest.mark.parametrize("prefix", ["", "auto+"])
def test_counts_stand_alone_where_there_is_no_prior(tmp_path, prefix):
    bare = write(tmp_path / "model", tokenizer=False)
    (tmp_path / "c.csv").write_text("id,count\n5,7\n")
    result = embcompress.factorize(
        bare, rank=3, weights=f"{prefix}{tmp_path / 'c.csv'}", output=tmp_path / "small"
    )
    assert any("so rows are weighted by c.csv alone" in note for note in result.notes) == bool(prefix)
    counts = np.zeros(V)
    counts[5] = 7
    assert result.tables[0].weighted_error == pytest.approx(
        weighted_error(bare, tmp_path / "small", counts), rel=1e-4
    )


def test_a_prior_does_not_go_with_importances(model, tmp_path):
    (tmp_path / "t.txt").write_text("a\n")
    words = ("--weights", "auto", "--importance", tmp_path / "t.txt", "-o", tmp_path / "small")
    assert_refused(
        tmp_path, "factorize", model, "--rank", 3, *words, code=2, says="both --weights auto and --importance"
    )


def test_files_of_a_slow_tokenizer_are_converted(tmp_path):
    """Without tokenizer.json, transformers makes one of vocab.json and merges.txt."""
    pytest.importorskip("transformers")
    folder = write(tmp_path / "model", tokenizer=False)
    tokens = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "in", "ing"]
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ni n\nin g\n")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    found = embcompress.factorize(folder, rank=3, weights="auto", dry_run=True)
    assert found.tables[0].weighting == "the order of its merges, (count+1)^0.5"


@pytest.mark.parametrize(
    ("name", "model_type", "content"),
    [
        ("spiece.model", "t5", b"\x0a\xff\xff\xff\xff\x0f"),
        ("sentencepiece.bpe.model", "xlm-roberta", b"\x0a"),
        ("tokenizer.model", "llama", bytes(range(256)) * 40),
        ("merges.txt", "gpt2", b"a b c d\n\xff\n"),
        ("merges.txt", "unheard-of", b"#version: 0.2\na b\n"),
    ],
)
def test_row_125_broken_files_of_slow_tokenizers(tmp_path, name, model_type, content):
    """They are a note, as a broken tokenizer.json is, and refused only where the vocabulary is asked for."""
    pytest.importorskip("transformers")
    folder = write(tmp_path / "model", tokenizer=False)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / name).write_bytes(content)
    asked = {"ratio": 0.4, "method": "lplr", "dry_run": True}
    found = embcompress.factorize(folder, **asked)
    assert found.tables[0].weighting is None
    assert any("so all rows count alike" in note for note in found.notes)
    with pytest.raises((InputError, UsageError)):
        embcompress.factorize(folder, **asked, weights="auto")
