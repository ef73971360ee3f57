"""compress chooses by the dev texts how tokens weigh; predict says what evaluate counts."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from helpers.checkpoints import assert_one_line, run, succeed
from helpers.classifying import Strike
from helpers.quick import quick
from helpers.weather import QUICK, SIGNS, SUFFIXES, TABLE, result, rows_of, tensors, train, weather
from torch import nn

import embcompress
from embcompress.choices import SMOOTHINGS
from embcompress.errors import Interrupted
from embcompress.runs.sessions import Session
from embcompress.runs.texts import Texts
from embcompress.training.records import Recipe


@pytest.fixture(scope="module", params=SUFFIXES)
def classifier(request, tmp_path_factory):
    """A dense classifier and its texts; not to be written to."""
    folder = tmp_path_factory.mktemp("classifier")
    for name, count, seed in (("train", 60, 0), ("dev", 60, 1), ("test", 30, 2)):
        weather(folder / f"{name}.csv", count, seed)
    return train(folder / f"dan{request.param}", folder / "train.csv", "--dev", folder / "dev.csv")


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A classifier with many rare words that say nothing, loudly: unweighted, they take the component."""
    folder = tmp_path_factory.mktemp("loud")
    for name, count, seed in (("train", 60, 0), ("dev", 60, 1), ("test", 30, 2)):
        weather(folder / f"{name}.csv", count, seed)
    path = train(folder / "dan.pt", folder / "train.csv", "--dev", folder / "dev.csv")
    saved = torch.load(path, weights_only=True)
    vocabulary, table = saved["classifier"]["tokenizer"]["vocabulary"], saved["state_dict"][TABLE]
    telling = [vocabulary.index(word) for words in SIGNS.values() for word in words]
    fillers = [i for i, token in enumerate(vocabulary) if token.startswith("word")]
    across = torch.linalg.svd(table[telling])[2][-1]  # orthogonal to all that tells a label
    table[fillers] = 0.7 * table[telling].norm(dim=1).mean() * across
    torch.save(saved, path)
    return path


def compressed(path, output, *more):
    """What compress prints; rank 1 keeps so little that weights decide what is told apart."""
    texts = (path.with_name("train.csv"), "--dev", path.with_name("dev.csv"))
    return result("compress", path, *texts, "--rank", "1", *QUICK, "-o", output, *more)


def test_the_weights_are_those_that_are_best_on_dev(loud, tmp_path):
    """Of the three exponents, before retraining; what it writes is what that exponent alone gives."""
    names = {s: tmp_path / f"{s:g}.pt" for s in SMOOTHINGS}
    alone = {s: compressed(loud, path, "--no-metric", "--smoothing", s) for s, path in names.items()}
    accuracies = {s: found["without_training"]["accuracy"] for s, found in alone.items()}
    assert len({*accuracies.values()}) > 1, "the choice would make no difference"
    best = max(SMOOTHINGS, key=accuracies.__getitem__)

    output = tmp_path / "chosen.pt"
    chosen = compressed(loud, output, "--no-metric")
    assert chosen["without_training"]["accuracy"] == accuracies[best]
    assert chosen["factorized"]["tables"] == alone[best]["factorized"]["tables"]
    both = (tensors(output), tensors(names[best]))
    assert both[0].keys() == both[1].keys()
    assert all(value.equal(both[1][name]) for name, value in both[0].items())


def test_the_test_texts_choose_nothing(classifier, tmp_path):
    """Other texts to measure on give other numbers, and the same weights to the bit."""
    outputs = [tmp_path / f"{name}{classifier.suffix}" for name in ("dev", "test")]
    first = compressed(classifier, outputs[0])
    second = compressed(classifier, outputs[1], "--test", classifier.with_name("test.csv"))
    assert (first["after"]["count"], second["after"]["count"]) == (60, 30)
    one, other = map(tensors, outputs)
    assert all(value.equal(other[name]) for name, value in one.items())


def test_predict_labels_what_evaluate_counts(classifier):
    """Text by text, in the order given, whatever the lengths."""
    rows = rows_of(classifier.with_name("test.csv"))
    texts = [text * (1 + i % 3) for i, (text, _) in enumerate(rows)]
    one_by_one = tuple(embcompress.predict(classifier, [text])[0] for text in texts)
    assert embcompress.predict(classifier, texts) == one_by_one

    predicted = embcompress.predict(classifier, [text for text, _ in rows])
    found = result("evaluate", classifier, classifier.with_name("test.csv"))
    pairs = Counter(zip((label for _, label in rows), predicted, strict=True))
    labels = [entry["label"] for entry in found["labels"]]
    assert found["confusion"] == [[pairs[t, p] for p in labels] for t in labels]


# ---- what is taken without a word


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A classifier whose table is wide enough for every method."""
    folder = tmp_path_factory.mktemp("wide")
    for name, count, seed in (("train", 60, 0), ("dev", 60, 1)):
        weather(folder / f"{name}.csv", count, seed)
    sizes = ("--arch", "dan", "--hidden", "12", "--dimension", "48")
    succeed("train", folder / "train.csv", "-o", folder / "dan.pt", *sizes, *QUICK, "-q")
    return folder / "dan.pt"


def test_it_takes_the_method_of_the_least_predicted_error(wide, tmp_path):
    """Without --method; with a rank, of which only factors know, the SVD."""
    texts = (wide.with_name("train.csv"), "--dev", wide.with_name("dev.csv"))
    more = ("--smoothing", "1", *QUICK)
    for ratio in ("0.7", "0.9"):
        found = result("compress", wide, *texts, "--ratio", ratio, *more, "-o", tmp_path / f"{ratio}.pt")
        (table,) = found["factorized"]["tables"]
        rivals = table["rivals"]
        assert {"svd", "pq", "screen"} <= {*rivals}
        assert rivals[table["method"]] <= 1.016 * min(rivals.values())
        assert table["metric"] == "train.csv, 60 texts"
    found = result("compress", wide, *texts, "--rank", "2", *more, "-o", tmp_path / "rank.pt")
    assert found["factorized"]["tables"][0]["method"] == "svd"


def test_what_moves_no_score_costs_nothing(loud, tmp_path):
    """The loud words say nothing, but take all there is unless errors count by what they do to the scores."""
    found = {
        more: compressed(loud, tmp_path / f"{len(more)}.pt", "--smoothing", "0", *more)
        for more in ((), ("--no-metric",))
    }
    accuracies = [each["without_training"]["accuracy"] for each in found.values()]
    assert accuracies[0] > accuracies[1] + 0.2
    with_metric, without = (each["factorized"]["tables"][0] for each in found.values())
    assert with_metric["relative_error"] > without["relative_error"]
    assert with_metric["metric_error"] < 0.7
    assert without["metric"] is without["metric_error"] is None


@pytest.mark.parametrize("method", quick(("pq", "screen+pq"), "pq"))
def test_codes_are_retrained_resumed_and_read(wide, tmp_path, method):
    """Stopped and resumed it writes the same bytes; what it wrote is verified, tuned, measured and loaded."""
    texts = Texts(wide.with_name("train.csv"), wide.with_name("dev.csv"))
    recipe = Recipe(epochs=3, batch_size=20, learning_rate=0.03)

    def compress(output, **session):
        options = {"ratio": 0.7, "method": method, "smoothing": 0.5, "recipe": recipe, "output": output}
        return embcompress.compress(wide, texts, **options, session=Session(device="cpu", **session))

    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    done = compress(whole)
    assert done.factorized.tables[0].method == method
    with pytest.raises(Interrupted):
        compress(parts, watcher=Strike(4))
    compress(parts, resume=True)
    assert whole.read_bytes() == parts.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pt", "parts.pt"}

    succeed("verify", whole, "--against", wide)
    tuned = result("finetune", whole, texts.train, "--dev", texts.dev, *QUICK, "-o", tmp_path / "tuned.pt")
    assert tuned["epochs"][0]["dev_accuracy"] == done.tuned.dev_accuracy
    succeed("expand", whole, "-o", tmp_path / "dense.pt")
    expanded = torch.load(tmp_path / "dense.pt", weights_only=True)["state_dict"]
    module = nn.Module()
    module.embedding = nn.EmbeddingBag(*expanded[TABLE].shape, mode="mean", padding_idx=0)
    module.layers = nn.Sequential(nn.Dropout(), nn.Linear(48, 12), nn.ReLU(), nn.Dropout())
    module.output = nn.Linear(12, 3)
    loaded = embcompress.load(module, whole)
    ids = torch.arange(1, 6)[None]
    assert torch.allclose(loaded.embedding(ids), expanded[TABLE][1:6].mean(0), atol=1e-5)


def test_a_table_in_which_nothing_can_be_measured_is_compressed_all_the_same(wide, tmp_path):
    """Where no score hangs on it, a note says that columns count alike; int4 knows no metric."""
    saved = torch.load(wide, weights_only=True)
    saved["state_dict"]["output.weight"].zero_()
    path = tmp_path / "deaf.pt"
    torch.save(saved, path)
    texts = (wide.with_name("train.csv"), "--dev", wide.with_name("dev.csv"))
    more = ("--ratio", "0.8", "--smoothing", "0", *QUICK)
    found = result("compress", path, *texts, "--method", "svd", *more, "-o", tmp_path / "small.pt")
    assert found["factorized"]["tables"][0]["metric"] is None
    assert [note for note in found["notes"] if note.startswith("all columns count alike: ")]
    found = result("compress", wide, *texts, "--method", "int4", *more, "-o", tmp_path / "int4.pt")
    assert found["factorized"]["tables"][0]["metric"] is None
    assert not [note for note in found["notes"] if "columns" in note]


# ---- a network of the user's own

OWN = """
from torch import nn

class Bag(nn.Module):
    def __init__(self, tokens, labels, padding):
        super().__init__()
        self.embedding = nn.EmbeddingBag(tokens, 16, padding_idx=padding)
        self.output = nn.Linear(16, labels)

    def forward(self, tokens, lengths):
        return self.output(self.embedding(tokens))
"""


def test_row_136_no_code_is_run_for_a_metric(tmp_path, monkeypatch):
    """factorize refuses it in one line; compress, which is told the code, takes it."""
    (tmp_path / "own_bag.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    texts, path = weather(tmp_path / "train.csv"), tmp_path / "own.pt"
    own = ("--model", "own_bag:Bag")
    succeed("train", texts, "-o", path, *own, *QUICK, "-q")
    monkeypatch.delitem(sys.modules, "own_bag")
    done = run("factorize", path, "--rank", "2", "--metric", texts, "-o", tmp_path / "small.pt")
    assert done.exit_code == 2
    assert_one_line(done.stderr, "own.pt: holds a module of your own, and its code is not run")
    assert "own_bag" not in sys.modules
    assert not (tmp_path / "small.pt").exists()
    more = ("--rank", "2", "--smoothing", "0", *own, *QUICK)
    found = result("compress", path, texts, *more, "-o", tmp_path / "small.pt")
    assert found["factorized"]["tables"][0]["metric"] == "train.csv, 54 texts"
