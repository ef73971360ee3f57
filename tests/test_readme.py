"""What the README shows is run here, and what it says was printed is compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from helpers import distilling, onnx_models
from helpers.distilling import tokenizer
from helpers.sequence_models import bert as bert_of
from safetensors.torch import save_model
from torch import nn

import embcompress
from embcompress.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = ROOT / "examples"


def fenced(language):
    """The fenced blocks of that language; opening and closing fences alternate."""
    parts = re.split(r"^```(\w*)\n", README, flags=re.MULTILINE)[1:]
    opened = zip(parts[::4], parts[1::4], strict=True)
    return [text for kind, text in opened if kind == language]


def block(language, holds):
    """The one fenced block of that language with a line that begins so."""
    (found,) = (text for text in fenced(language) if re.search(f"^{re.escape(holds)}", text, re.MULTILINE))
    return found


def run(line):
    done = CliRunner().invoke(cli, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def test_commands_on_checkpoints_run_as_shown(minilm, tmp_path, monkeypatch):
    """The four commands work one after another on the real MiniLM, and report prints what is shown."""
    (tmp_path / "model").symlink_to(minilm)
    monkeypatch.chdir(tmp_path)
    outputs = [run(line) for line in block("sh", "embcompress report model/").splitlines()]
    assert len(outputs) == 4
    (shown,) = (text for text in fenced("") if text.startswith("model  directory"))
    assert [line.rstrip() for line in outputs[0].splitlines()] == shown.splitlines()


def test_coding_with_token_counts_runs_as_shown(minilm, tmp_path, monkeypatch):
    """The one command makes the real MiniLM's table ten times smaller, weighted by the texts."""
    (tmp_path / "model").symlink_to(minilm)
    (tmp_path / "texts.csv").symlink_to(EXAMPLES / "data" / "intents_train.csv")
    monkeypatch.chdir(tmp_path)
    (line,) = block("sh", "embcompress factorize model/ --method pq").splitlines()
    assert "weighted error" in run(line)
    assert embcompress.report("small").compressed[0].weighted_error < 0.12


def test_verifying_runs_as_shown(minilm, tmp_path, monkeypatch):
    """The copy of the real MiniLM is as it was written, and what is printed is what is shown."""
    (tmp_path / "model").symlink_to(minilm)
    monkeypatch.chdir(tmp_path)
    outputs = [run(line) for line in block("sh", "embcompress verify").splitlines()]
    (shown,) = (text for text in fenced("") if "by their SHA-256" in text)
    assert outputs[1] == shown


def test_commands_on_word_vectors_run_as_shown(tmp_path, monkeypatch):
    """The five commands work one after another on small vectors, and NumPy alone reads the factors."""
    monkeypatch.chdir(tmp_path)
    lines = (EXAMPLES / "data" / "intents_train.csv").read_text().splitlines()
    Path("reviews.csv").write_text("\n".join(lines[:200]) + "\n")
    words = ["play", "the", "weather", *(f"token{i}" for i in range(2000))]
    rows = torch.randn(len(words), 16, generator=torch.Generator().manual_seed(0)).tolist()
    texts = (f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in zip(words, rows, strict=True))
    Path("vectors.txt").write_text("".join(texts))
    outputs = [run(line) for line in block("sh", "embcompress factorize vectors.txt").splitlines()]
    assert len(outputs) == 5
    assert "pretrained vectors filled 3 rows" in outputs[3]
    assert [line.split()[0] for line in Path("again.txt").read_text().splitlines()] == words
    embcompress.factorize("vectors.txt", rank=4, output="small.safetensors", force=True)
    names = {}
    exec(block("python", "from safetensors.numpy"), names)
    assert names["tokens"] == words
    assert names["vectors"].shape == (len(words), 16)


def test_commands_on_classifiers_run_as_shown(tmp_path, monkeypatch):
    """The five commands work one after another on a part of the intents with a few vectors."""
    monkeypatch.chdir(tmp_path)
    for name, split, rows in (("reviews", "train", 400), ("dev", "dev", 40), ("test", "test", 700)):
        lines = (EXAMPLES / "data" / f"intents_{split}.csv").read_text().splitlines()
        Path(f"{name}.csv").write_text("\n".join(lines[: rows + 1]) + "\n")
    Path("glove.txt").write_text("".join(f"{word} {'0.1 -0.2 ' * 16}\n" for word in ("play", "the")))
    outputs = [run(line) for line in block("sh", "embcompress train reviews.csv --arch lstm").splitlines()]
    assert len(outputs) == 5
    assert "pretrained vectors filled 2 rows" in outputs[0]
    before, after = (re.search(r"accuracy ([\d.]+)%", text)[1] for text in (outputs[2], outputs[3]))
    assert float(before) > 0
    assert float(after) > 0


def test_commands_on_pretrained_classifiers_run_as_shown(tmp_path, monkeypatch):
    """The four commands work one after another on a small BERT that labels the intents."""
    monkeypatch.chdir(tmp_path)
    for name, split, rows in (("reviews", "train", 100), ("dev", "dev", 40), ("test", "test", 40)):
        lines = (EXAMPLES / "data" / f"intents_{split}.csv").read_text().splitlines()
        Path(f"{name}.csv").write_text("\n".join(lines[: rows + 1]) + "\n")
    labels = {
        line.rpartition(",")[2]
        for line in (EXAMPLES / "data" / "intents_train.csv").read_text().split("\n")[1:-1]
    }
    Path("classifier").mkdir()
    size = tokenizer("classifier")
    bert_of(size, sorted(labels)).save_pretrained("classifier")
    outputs = [run(line) for line in block("sh", "embcompress finetune small/").splitlines()]
    assert len(outputs) == 4
    assert "accuracy" in outputs[2]


def test_python_runs_as_shown(tmp_path, monkeypatch):
    """The first Python example factorizes and loads; the second trains with CALR."""
    monkeypatch.chdir(tmp_path)

    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"embedding": nn.Embedding(500, 32), "out": nn.Linear(32, 2)})

    save_model(model(), "model.safetensors")
    factorizing, training = block("python", "result = "), block("python", "schedule = CALR")
    names = {"model": model()}
    exec(factorizing, names)
    assert isinstance(names["model"]["embedding"], embcompress.FactorizedEmbedding)
    assert names["result"].tables[0].rank == 3

    bag = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 2))
    batches = [(torch.randint(50, (4, 5)), torch.randint(2, (4,))) for _ in range(6)]
    names = {"torch": torch, "model": bag, "loader": batches}
    exec(training, names)
    assert names["schedule"].last_epoch == len(batches)


@pytest.mark.usefixtures("registered")
def test_loading_with_transformers_runs_as_shown(minilm, tmp_path, monkeypatch):
    """The third Python example loads a compressed directory, uses it and saves it again."""
    monkeypatch.chdir(tmp_path)
    embcompress.factorize(minilm, ratio=0.9, output="small")
    names = {}
    exec(block("python", "import embcompress.integrations"), names)
    assert names["vectors"].shape == (1, 5, 384)
    assert embcompress.expand("copy", output="dense")


@pytest.mark.usefixtures("registered")
def test_sentence_transformers_run_as_shown(minilm, tmp_path, monkeypatch):
    """The real MiniLM, compressed and loaded by sentence-transformers."""
    monkeypatch.chdir(tmp_path)
    Path("minilm").symlink_to(minilm)
    Path("texts.csv").symlink_to(EXAMPLES / "data" / "intents_test.csv")
    names = {}
    exec(block("python", "from sentence_transformers"), names)
    assert names["vectors"].shape == (1, 384)


def test_native_forms_run_as_shown(tmp_path, monkeypatch):
    """Stock transformers loads what the example writes, with factors."""
    monkeypatch.chdir(tmp_path)
    config = transformers.DebertaV2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        relative_attention=True, position_biased_input=False, type_vocab_size=0, pos_att_type=["p2c"],
    )  # fmt: skip
    transformers.DebertaV2Model(config).save_pretrained("deberta")
    names = {}
    exec(block("python", 'embcompress.factorize("deberta/"'), names)
    assert 0 < names["model"].config.embedding_size < 32


def test_onnx_runs_as_shown(tmp_path, monkeypatch):
    """The three commands work one after another, and onnxruntime runs the results."""
    monkeypatch.chdir(tmp_path)
    onnx_models.saved(Path("model.onnx"), onnx_models.model())
    for line in block("sh", "embcompress factorize model.onnx").splitlines():
        run(line)
    ids = np.arange(6).reshape(1, 6)
    before, after = (onnx_models.outputs(Path(name), ids=ids) for name in ("model.onnx", "dense.onnx"))
    np.testing.assert_allclose(after[0], before[0], atol=0.1)


def test_recovery_runs_as_shown(tmp_path, monkeypatch):
    """The four commands work one after another on a small BERT."""
    monkeypatch.chdir(tmp_path)
    Path("original").mkdir()
    size = tokenizer("original")
    distilling.bert(size).save_pretrained("original")
    Path("texts.txt").write_text("\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(80)))
    outputs = [run(line) for line in block("sh", "embcompress distil small/").splitlines()]
    assert "cosine" in outputs[1]
    assert json.loads(outputs[3])["cosine"] > 0.5


def test_every_option_and_exit_code_is_documented():
    """An option that joins a command, or a new exit code, must be explained in the README."""
    for command in cli.commands.values():
        for option in (o for o in command.params if isinstance(o, click.Option)):
            assert any(flag in README for flag in option.opts), f"{command.name} {option.opts}"
    codes = {error.exit_code for error in vars(embcompress.errors).values() if hasattr(error, "exit_code")}
    assert codes == {1, 2, 3, 4, 130}
    for code in (0, *codes):
        assert re.search(rf"Exit codes.*\b{code} \w+", README)


def test_nothing_is_left_to_fill_in():
    """No figure of the README is a placeholder."""
    assert "@@" not in README


@pytest.mark.parametrize("name", ["demo", "test", "test-slow", "lint", "bench"])
def test_make_targets_exist(name):
    """Each make target that the README names is in the Makefile."""
    assert f"make {name}" in README
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
