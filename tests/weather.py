"""Texts about the weather, small classifiers of them, and their files read without this package."""

from __future__ import annotations

import csv
import json
import random

import torch
from checkpoints import succeed
from safetensors import safe_open
from safetensors.torch import load_file

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
            words = [*rng.sample(FILLERS, 2), *(rng.choice(signs[label]).upper() for _ in range(2))]
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
