"""``--weights auto``: weights from the vocabulary, mixed with counts, against NumPy's weighted SVD.

The vocabulary is one of whole words, in order; tests/data/test_priors.py has the other kinds.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, succeed
from safetensors.numpy import load_file, save_file

import embcompress

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


@pytest.mark.parametrize("how", ["corpus", "file"])
def test_counts_are_mixed_with_the_prior(model, tmp_path, how):
    """10 tokens of texts and 1,003 of the prior; the record and the command line name both."""
    (tmp_path / "t.txt").write_text(f"{' '.join([WORDS[5]] * 7)} {' '.join([WORDS[9]] * 3)}\n")
    (tmp_path / "c.csv").write_text(f"token,count\n{WORDS[5]},7\n{WORDS[9]},3\n")
    words = {
        "corpus": ("--weights", "auto", "--corpus", tmp_path / "t.txt"),
        "file": ("--weights", f"auto+{tmp_path / 'c.csv'}"),
    }[how]
    shown = json.loads(
        succeed("factorize", model, "--rank", 3, *words, "-o", tmp_path / "small", "--json").stdout
    )
    counts = 1003 * shares()
    counts[5] += 7
    counts[9] += 3
    counts *= 1e6 / 1013
    (table,) = shown["tables"]
    mine = weighted_error(model, tmp_path / "small", counts)
    assert table["weighted_error"] == pytest.approx(mine, rel=1e-4)
    name = "t.txt" if how == "corpus" else "c.csv"
    assert table["weighting"] == f"{name} and the order of its tokens, (count+1)^0.5"
    command = json.loads((tmp_path / "small/config.json").read_text())["quantization_config"]["command"]
    expected = "--weights auto --corpus t.txt" if how == "corpus" else "--weights auto+c.csv"
    assert command.endswith(expected)
    succeed("verify", tmp_path / "small", "--against", model, *words)


def test_other_weights_than_the_recorded_are_refused(model, tmp_path):
    embcompress.factorize(model, rank=3, weights="auto", output=tmp_path / "small")
    (tmp_path / "c.csv").write_text(f"token,count\n{WORDS[5]},7\n")
    pair = ("verify", tmp_path / "small", "--against", model)
    succeed(*pair, "--weights", "auto")
    other = ("--weights", f"auto+{tmp_path / 'c.csv'}")
    assert_refused(tmp_path, *pair, *other, code=2, says="its rows were weighted by the order")


def test_none_is_no_weights(model, tmp_path):
    for name, weights in (("a", None), ("b", "none")):
        embcompress.factorize(model, rank=3, weights=weights, output=tmp_path / name)
    one, other = (tmp_path / name / "model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    (tmp_path / "t.txt").write_text(f"{WORDS[5]} {WORDS[9]}\n")
    corpus = {"corpus": tmp_path / "t.txt", "dry_run": True}
    found = embcompress.factorize(model, rank=3, weights="none", **corpus)
    assert found.tables == embcompress.factorize(model, rank=3, **corpus).tables


def test_rows_without_tokens_are_even_and_a_note_says_so(tmp_path):
    """The output is the plain one's to the bit, apart from its record."""
    bare = write(tmp_path / "model", tokenizer=False)
    result = succeed("factorize", bare, "--rank", 3, "--weights", "auto", "-o", tmp_path / "a")
    assert "nothing says which of its tokens are frequent, so weights are even" in result.stderr
    succeed("factorize", bare, "--rank", 3, "-o", tmp_path / "b")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    noted = succeed("report", bare, "--weights", "auto")
    assert "so weights are even" in noted.stderr


def test_counts_stand_alone_where_there_is_no_prior(tmp_path):
    bare = write(tmp_path / "model", tokenizer=False)
    (tmp_path / "c.csv").write_text("id,count\n5,7\n")
    result = embcompress.factorize(
        bare, rank=3, weights=f"auto+{tmp_path / 'c.csv'}", output=tmp_path / "small"
    )
    assert any("weights are those of c.csv alone" in note for note in result.notes)
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
    tokens = ["<|endoftext|>", "i", "n", "g", "in", "ing"]
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ni n\nin g\n")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    found = embcompress.factorize(folder, rank=3, weights="auto", dry_run=True)
    assert found.tables[0].weighting == "the order of its merges, (count+1)^0.5"
