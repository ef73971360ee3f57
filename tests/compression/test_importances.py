"""Token importances by predictions: against a loop by hand, and what factorize makes of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, succeed
from helpers.classifying import D, V, record, saved
from safetensors.torch import save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers.opening import open_classifier
from embcompress.compression import importances as rooms
from embcompress.compression.importances import importances
from embcompress.data.counting import read_texts
from embcompress.data.tokenizing import TokenizerJson

UNKNOWN = 1


def texts_of(count, seed=0):
    """Texts of the tokens w0 … w27, some twice in a text, one text twice, one of unknown words, one empty."""
    rng = np.random.default_rng(seed)
    found = [" ".join(f"w{i}" for i in rng.integers(0, V - 5, rng.integers(1, 12))) for _ in range(count)]
    return [*found, found[0], "w3 w3 w3", "nobody knows", ""]


def write(folder, texts, name="labelled.csv"):
    path = folder / name
    path.write_text("label,text\n" + "".join(f",{text}\n" for text in texts))
    return path


def measured(path, texts, rows=V, progress=lambda *_: None):
    with open_checkpoint(path) as source:
        return importances(source, read_texts(texts), texts, rows, progress)


def distance(model, ids, others):
    """L1 between what the classifier makes of two texts, each by itself."""

    def shares(tokens):
        scores = model.eval()(torch.tensor([tokens]), torch.tensor([len(tokens)]))
        return torch.softmax(scores.double(), dim=1)[0]

    with torch.no_grad():
        return float((shares(ids) - shares(others)).abs().sum())


def by_hand(model, kind, texts, without):
    """One text and one token at a time."""
    sums, total = np.zeros(len(kind.tokenizer.vocabulary)), 0
    for text in texts:
        ids = kind.tokenizer.encode([text], kind.max_length).tokens.tolist()
        total += len(ids)
        for token in {*ids}:
            sums[token] += distance(model, ids, without(ids, token))
    return sums * total / sums.sum()


def replaced(ids, token):
    return [UNKNOWN if i == token else i for i in ids]


@pytest.mark.parametrize("arch", ["dan", "lstm"])
@pytest.mark.parametrize("most", [1, 300, 1 << 18])
def test_they_are_those_of_a_loop_by_hand(tmp_path, arch, most, monkeypatch):
    """Each text and each of its distinct tokens alone, however many are scored together; progress ends."""
    monkeypatch.setattr(rooms, "_MOST", most)
    kind = record(arch)
    path, model = saved(tmp_path, kind)
    texts, told = texts_of(25), []
    found = measured(path, write(tmp_path, texts), progress=lambda *step: told.append(step))
    np.testing.assert_allclose(found, by_hand(model, kind, texts, replaced), rtol=1e-4, atol=1e-6)
    encoded = kind.tokenizer.encode(texts, kind.max_length)
    assert found.sum() == pytest.approx(len(encoded.tokens))
    assert found[[0, UNKNOWN, V - 1]].tolist() == [0, 0, 0], "no text has them, or they are what stands in"
    assert {stage for stage, *_ in told} == {"importance"}
    assert told[-1][1] == told[-1][2] > len(texts)


def test_a_trained_classifier_knows_what_matters(tmp_path):
    """Words that tell labels apart weigh most; a word that it ignores weighs next to nothing."""
    rng = np.random.default_rng(0)
    lines = ["text,label"]
    for number in range(300):
        label = ("rain", "sun")[number % 2]
        common = rng.choice(["the", "a", "of", "it", "so"], 4)
        lines.append(f"{' '.join([*common, 'xy' if number % 3 else 'of', f'{label}y'])},{label}")
    train = tmp_path / "train.csv"
    train.write_text("\n".join(lines) + "\n")
    path = tmp_path / "model.pt"
    shape = ("--arch", "dan", "--hidden", 8, "--dimension", 6, "--dropout", 0, "--epochs", 2)
    shape += ("--batch-size", 10, "--learning-rate", 0.05)
    succeed("train", train, *shape, "-o", path, "--device", "cpu", "-q")
    opened = open_classifier(path)
    words = opened.record.tokenizer.vocabulary
    state = torch.load(path, weights_only=True)
    ignored = words.index("xy")
    state["state_dict"]["embedding.weight"][ignored] = 1e-6
    torch.save(state, path)
    found = measured(path, train, len(words))
    telling = [words.index("rainy"), words.index("suny")]
    others = np.delete(found, telling)
    assert found[telling].min() > 3 * others.max()
    assert found[ignored] < 1e-3
    with_counts = embcompress.factorize(path, rank=2, corpus=train, dry_run=True).tables[0]
    with_importances = embcompress.factorize(path, rank=2, importance=train, dry_run=True).tables[0]
    assert with_counts.predicted_error != with_importances.predicted_error


def test_factorize_takes_them_as_counts(tmp_path):
    """The command writes what the same numbers do as counts, and its record says where they are from."""
    path, _ = saved(tmp_path, record("dan"), ".safetensors")
    texts = write(tmp_path, texts_of(20))
    command = ("factorize", path, "--method", "screen", "--ratio", 0.5, "--smoothing", 1)
    done = succeed(*command, "--importance", texts, "-o", tmp_path / "small.safetensors", "--json", "-q")
    (table,) = json.loads(done.stdout)["tables"]
    assert table["weighting"] == "labelled.csv, importance, (importance+1)^1"
    found = measured(path, texts)
    same = {"method": "screen", "ratio": 0.5, "smoothing": 1}
    other = embcompress.factorize(path, weights=found, **same, output=tmp_path / "other.safetensors")
    assert other.tables[0].weighted_error == pytest.approx(table["weighted_error"], rel=1e-9)
    embcompress.expand(tmp_path / "small.safetensors", output=tmp_path / "dense.safetensors")
    dense = open_classifier(path).model.embedding.weight.detach()
    back = open_classifier(tmp_path / "dense.safetensors").model.embedding.weight.detach()
    exact = (back == dense).all(dim=1).numpy()
    exact[0] = True  # padding, which is zeros
    assert 5 < exact.sum() < V - 5
    assert found[exact][1:].min() >= found[~exact].max()
    python = embcompress.factorize(path, importance=str(texts), **same, output=tmp_path / "py.safetensors")
    assert python.output.read_bytes() == (tmp_path / "small.safetensors").read_bytes()


def test_a_tokenizer_without_an_unknown_token_leaves_tokens_out(tmp_path):
    """The text is then shorter, and one of a single token is padding alone."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[PAD]": 0, **{f"w{i}": i + 1 for i in range(V - 1)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    for arch in ("dan", "lstm"):
        kind = replace(record(arch), tokenizer=TokenizerJson(made.to_str()))
        path, model = saved(tmp_path, kind, name=arch)
        texts = [*texts_of(12)[:-2], "w4"]

        def left_out(ids, token):
            return [i for i in ids if i != token] or [0]

        found = measured(path, write(tmp_path, texts))
        np.testing.assert_allclose(found, by_hand(model, kind, texts, left_out), rtol=1e-4, atol=1e-6)


def test_texts_alone_do(tmp_path):
    """No column of labels, another name of the texts' column, or lines of text."""
    path, _ = saved(tmp_path, record("dan"))
    texts = texts_of(10)
    csv, lines = tmp_path / "only.csv", tmp_path / "lines.txt"
    csv.write_text("said\n" + "".join(f'"{text}"\n' for text in texts))
    lines.write_text("\n".join(texts) + "\n")
    wanted = measured(path, write(tmp_path, texts))
    np.testing.assert_array_equal(measured(path, lines), wanted)
    result = embcompress.factorize(path, rank=2, importance=csv, text_column="said", dry_run=True)
    assert result.tables[0].weighting == "only.csv, importance, (importance+1)^0.5"
    command = ("factorize", path, "--rank", 2, "--importance", csv)
    assert_refused(tmp_path, *command, code=2, says="--text-column")


def test_what_is_no_classifier_is_refused(tmp_path):
    """Exit code 2, one line with the remedy, nothing written."""
    texts = write(tmp_path, texts_of(5))
    plain = tmp_path / "plain.safetensors"
    save_file({"embedding.weight": torch.randn(V, D)}, plain)
    command = ("factorize", plain, "--rank", 2, "--importance", texts)
    assert_refused(tmp_path, *command, code=2, says="give a classifier made by 'embcompress train'")


def test_requests_without_meaning_are_refused(tmp_path):
    """Two kinds of weights, no file, no text, and a classifier whose predictions nothing moves."""
    path, _ = saved(tmp_path, record("dan"))
    texts = write(tmp_path, texts_of(5))
    command = ("factorize", path, "--rank", 2)
    for option in ("--weights", "--corpus"):
        says = f"both {option} and --importance are given; give one"
        assert_refused(tmp_path, *command, "--importance", texts, option, texts, code=2, says=says)
    nothing = tmp_path / "nothing.csv"
    assert_refused(tmp_path, *command, "--importance", nothing, code=2, says="nothing.csv: does not exist")
    nothing.write_text("text,label\n")
    assert_refused(tmp_path, *command, "--importance", nothing, code=3, says="holds no text")
    assert_refused(
        tmp_path, *command, "--importance", texts, "-o", texts, "--force", code=2, says="labelled.csv"
    )
    state = torch.load(path, weights_only=True)
    state["state_dict"]["output.weight"][:] = 0
    torch.save(state, path)
    assert_refused(tmp_path, *command, "--importance", texts, code=2, says="no token changes a prediction")


def test_a_module_of_the_users_own_is_not_run(tmp_path):
    """Its code is imported by the user's word alone, and factorize takes none."""
    kind = record("dan")
    own = replace(kind.architecture, name="module", hidden=(), factory="somewhere:model")
    path, _ = saved(tmp_path, kind)
    found = torch.load(path, weights_only=True)
    found["classifier"] = replace(kind, architecture=own).to_dict()
    torch.save(found, path)
    texts = write(tmp_path, texts_of(5))
    command = ("factorize", path, "--rank", 2, "--importance", texts)
    assert_refused(tmp_path, *command, code=2, says="a module of your own")
