"""compress chooses by the dev texts how tokens weigh; predict says what evaluate counts."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers.weather import QUICK, SIGNS, SUFFIXES, TABLE, result, rows_of, tensors, train, weather

import embcompress
from embcompress.choices import SMOOTHINGS


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
