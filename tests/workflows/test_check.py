"""``factorize --check`` shows what ``evaluate --teacher`` shows, and is refused before the work."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, succeed, table
from safetensors.numpy import save_file

import embcompress

OUT_OF_REACH = ("--ratio", 0.999)
"""A target that the plan refuses with exit code 4: what comes before it is not 4."""


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_figures_are_those_of_evaluate(shelf, tmp_path, name):
    """In JSON all figures, and the same cells for a person, with the perplexity before and after."""
    texts, small = shelf / "test.txt", tmp_path / "small"
    options = (shelf / name, "--method", "pq", "--ratio", 0.93, "--check", texts, "-o", small)
    found = json.loads(succeed("factorize", *options, "--json").stdout)["check"]
    args = ("evaluate", small, "--teacher", shelf / name, "--texts", texts)
    evaluated = json.loads(succeed(*args, "--json").stdout)
    assert found == {key: evaluated[key] for key in found}
    assert found["texts"] == 80
    assert 0.01 < found["error"] < 2
    assert (found["perplexity"] is not None) == (name == "gpt2")
    shown = succeed("factorize", *options, "--force").stdout
    (cells,) = (line.split()[1:] for line in succeed(*args).stdout.splitlines() if line.startswith("comp"))
    (line,) = (line for line in shown.splitlines() if line.startswith("80 texts"))
    assert line.split()[2:] == cells
    if name == "gpt2":
        assert f"perplexity of the original: {evaluated['teacher_perplexity']:.2f}" in shown


def test_without_it_nothing_is_compared(shelf, tmp_path):
    """The result and its JSON say so."""
    result = embcompress.factorize(shelf / "bert", rank=6, output=tmp_path / "small")
    assert result.check is None
    assert result.to_dict()["check"] is None


def test_the_options_of_texts_apply(shelf, tmp_path):
    """A column of a CSV with another delimiter; each distinct text counts once."""
    file = tmp_path / "texts.csv"
    file.write_text("id;note\n" + "".join(f"{i};w1 w{i % 12} w3\n" for i in range(24)))
    options = ("--check", file, "--text-column", "note", "--delimiter", ";", "--json")
    done = succeed("factorize", shelf / "bert", "--rank", 6, *options, "-o", tmp_path / "small")
    assert json.loads(done.stdout)["check"]["texts"] == 12


def test_of_many_texts_a_sample_is_read(shelf, tmp_path, monkeypatch):
    """A note says how many of how many; the sample is always the same."""
    monkeypatch.setattr("embcompress.workflows.compare.CHECK_TEXTS", 40)
    lines = [f"w{i % 90} w{i // 90} w7" for i in range(180)]
    (tmp_path / "many.txt").write_text("\n".join(lines))
    first, again = (
        embcompress.factorize(shelf / "bert", rank=6, check=tmp_path / "many.txt", output=tmp_path / name)
        for name in ("a", "b")
    )
    assert first.check == again.check
    assert first.check.texts == 40
    assert any("40 of its 180" in note for note in first.notes)


def test_a_dry_run_reads_model_and_texts_and_says_that_nothing_is_compared(shelf, tmp_path):
    """What a real run would refuse, a dry run refuses as well."""
    words = ("factorize", shelf / "bert", "--rank", 6, "--dry-run", "-o", tmp_path / "x", "--check")
    done = succeed(*words, shelf / "test.txt", "--json")
    assert json.loads(done.stdout)["check"] is None
    assert "--check" in done.stderr
    assert_refused(tmp_path, *words, tmp_path / "absent.txt", code=2, says="does not exist")


def test_the_output_is_not_the_texts(shelf, tmp_path):
    """Not even with --force."""
    texts = tmp_path / "texts.txt"
    shutil.copy(shelf / "test.txt", texts)
    words = ("factorize", shelf / "bert", "--rank", 6, "--check", texts, "-o", texts, "--force")
    assert_refused(tmp_path, *words, code=2, says="input")


def test_row_133_models_that_cannot_be_run_are_refused_before_the_work(shelf, tmp_path, monkeypatch):
    """Each with what it is; the remedy, leaving out --check, works."""

    def refused(path, code, says):
        words = ("factorize", path, *OUT_OF_REACH, "-o", tmp_path / "out")
        assert_refused(tmp_path, *words, "--check", shelf / "test.txt", code=code, says=says)
        assert_refused(tmp_path, *words, code=4, says="ratio")  # it is the check that is refused

    file = tmp_path / "model.safetensors"
    save_file({"embedding.weight": table().astype(np.float32)}, file)
    refused(file, 2, "leave out --check")
    decoder, bare = tmp_path / "decoder", tmp_path / "bare"
    for folder in (decoder, bare):
        shutil.copytree(shelf / "bert", folder)
    config = json.loads((decoder / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    refused(decoder, 2, "encoder-decoder")
    for tokens in bare.glob("tokenizer*"):
        tokens.unlink()
    refused(bare, 2, "no tokenizer")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(shelf / "bert", 2, "pip install 'embcompress[transformers]', or leave out --check")


def test_row_134_texts_that_cannot_be_read_are_refused_before_the_work(shelf, tmp_path):
    """Absent, too few, without the column."""
    few, csv = tmp_path / "few.txt", tmp_path / "texts.csv"
    few.write_text("w1\nw2\n")
    csv.write_text("body\nw1 w2\n")
    for code, says, texts in (
        (2, "does not exist", tmp_path / "absent.txt"),
        (3, "2 distinct texts, expected at least 10", few),
        (2, "text", csv),
    ):
        words = ("factorize", shelf / "bert", *OUT_OF_REACH, "--check", texts, "-o", tmp_path / "out")
        assert_refused(tmp_path, *words, code=code, says=says)
