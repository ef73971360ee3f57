"""Texts about the weather, small classifiers of them, and what those compute, found without this package."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from fractions import Fraction

import torch
from helpers.checkpoints import succeed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

SIGNS = {"cold": ("snow", "ice"), "hot": ("sun", "heat"), "wet": ("rain", "flood")}
FILLERS = [f"word{i}" for i in range(20)]
TABLE, LEFT, RIGHT = "embedding.weight", "embedding.0.weight", "embedding.1.weight"
SUFFIXES = (".pt", ".safetensors")
ARCHS = {"dan": ("--hidden", "24,16"), "lstm": ("--hidden", "8")}
QUICK = ("--epochs", "3", "--learning-rate", "0.03", "--batch-size", "5", "--schedule", "constant")
STILL = ("--epochs", "1", "--optimizer", "sgd", "--learning-rate", "1e-30")
"""Training whose steps are too small to change a number."""


def weather(path, count=60, seed=0, signs=SIGNS):
    """A CSV of texts about the weather; a word of each text tells its label, unless all labels share it."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(count):
            label = list(signs)[i % len(signs)]
            words = [
                *rng.sample(FILLERS, rng.randint(1, 3)),
                *(rng.choice(signs[label]).upper() for _ in range(2)),
            ]
            rng.shuffle(words)
            rows.writerow([", ".join(words) + "!", label])
    return path


def train(place, texts, *more, arch="dan"):
    """Train a small classifier; returns its place."""
    sizes = ("--arch", arch, *ARCHS[arch], "--dimension", "8", "--dropout", "0.1")
    succeed("train", texts, "-o", place, *sizes, *QUICK, "-q", *more)
    return place


def result(*args):
    """What a command that must succeed prints with --json."""
    return json.loads(succeed(*args, "--json").stdout)


def tensors(path):
    """The stored tensors, read with torch and safetensors alone, data only."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return dict(torch.load(path, weights_only=True)["state_dict"])


def record(path):
    """What a classifier says about itself, read without this package."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)["classifier"]
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["classifier"])


def description(path):
    """What compression says about a file, read without this package."""
    if path.suffix == ".pt":
        return json.loads(torch.load(path, weights_only=True)["state_dict"]._metadata["embcompress"])
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["embcompress"])


def same(one, other):
    """Whether two files hold the same tensors to the bit."""
    one, other = tensors(one), tensors(other)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def ids_of(path, text):
    """Ids of the tokens of a text by the vocabulary in the record; 1 is unknown."""
    vocabulary = {token: i for i, token in enumerate(record(path)["tokenizer"]["vocabulary"])}
    words = text.lower().replace(",", " ,").replace("!", " !").split()
    return torch.tensor([vocabulary.get(word, 1) for word in words])


def predictions(path, texts):
    """Labels predicted one text at a time."""
    stored, about = {n: t.float() for n, t in tensors(path).items()}, record(path)
    table = stored[TABLE] if TABLE in stored else stored[LEFT] @ stored[RIGHT].T
    lstm = None
    if about["architecture"]["name"] == "lstm":
        lstm = nn.LSTM(table.shape[1], about["architecture"]["hidden"][0], batch_first=True)
        lstm.load_state_dict({n.removeprefix("lstm."): t for n, t in stored.items() if n.startswith("lstm")})
    found = []
    for text in texts:
        rows = table[ids_of(path, text)]
        if lstm is None:
            value = rows.mean(dim=0)
            for name in sorted(n for n in stored if n.startswith("layers") and n.endswith("weight")):
                value = F.relu(stored[name] @ value + stored[name.replace("weight", "bias")])
        else:
            value = lstm(rows[None])[0][0].mean(dim=0)
        scores = stored["output.weight"] @ value + stored["output.bias"]
        found.append(about["labels"][int(scores.argmax())])
    return found


def measured(true, predicted, labels):
    """Accuracy, macro-F1 over labels that occur, and each label's scores, from their definitions."""
    pairs = Counter(zip(true, predicted, strict=True))

    def share(part, whole):
        return Fraction(part, whole) if whole else Fraction(0)

    scores = []
    for label in labels:
        hit, said, is_so = pairs[label, label], predicted.count(label), true.count(label)
        precision, recall = share(hit, said), share(hit, is_so)
        f1 = share(2 * precision * recall, 1) / (precision + recall) if hit else Fraction(0)
        scores.append((label, precision, recall, f1, is_so))
    occurring = [score[3] for score in scores if score[0] in {*true, *predicted}]
    accuracy = share(sum(t == p for t, p in zip(true, predicted, strict=True)), len(true))
    return accuracy, sum(occurring) / len(occurring), scores


def rows_of(path):
    """Texts and labels of a CSV file."""
    with path.open(newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]
