"""Classifiers in Hugging Face directories, compressed or dense; needs transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.classifiers.base import Architecture
from embcompress.classifiers.opened import OpenedClassifier
from embcompress.classifiers.record import ClassifierRecord
from embcompress.data.encoded import Encoded
from embcompress.data.labelled import LABEL_LIMIT
from embcompress.data.tokenizing import Tokenizer
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.blueprint import Blueprint, blueprint
from embcompress.pretrained.library import reading, running
from embcompress.pretrained.models import State, loaded
from embcompress.pretrained.tokenizer import tokenizer_in
from embcompress.pretrained.tokens import positions

_HEAD = "ForSequenceClassification"
"""Name ending of the architectures that score whole texts."""

_LONGEST = 512
"""Most tokens read of a text, even if the model has room for more: the usual limit."""


class DirectoryTokenizer(Tokenizer):
    """The transformers tokenizer of a directory, with its special tokens.

    Args:
        made: a tokenizer made by ``AutoTokenizer``.
        rows: rows of the model's table, V; the vocabulary gets as many entries.
        padding: the id that pads shorter texts.
        path: the directory, for messages.

    Raises:
        InputError: a token id has no row in the table.
    """

    def __init__(self, made: Any, rows: int, padding: int, path: Path) -> None:
        ids: dict[str, int] = made.get_vocab()
        if ids and max(ids.values()) >= rows:
            raise InputError(
                f"{path}: token ids go up to {max(ids.values()):,}, the table has rows up to {rows - 1:,}",
                remedy="use the tokenizer that belongs to this model",
            )
        token = {number: text for text, number in ids.items()}
        self.vocabulary = tuple(token.get(number, f"<{number}>") for number in range(rows))
        self.padding = padding
        self._made, self._path = made, path

    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Encode texts, cut off at ``max_length`` with the special tokens at the end kept."""
        cut = {"truncation": max_length is not None, "max_length": max_length}
        with reading(self._path):
            found = self._made(list(texts), padding=False, **cut)["input_ids"]
        return Encoded.of(ids or [self.padding] for ids in found)


class SequenceClassifier(nn.Module):
    """A transformers model with the interface of our classifiers: ids and lengths in, scores out."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        super().__init__()
        self.model, self._path = model, path

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return scores (B×C) for ids (B×L) and lengths (B); see ``Classifier.forward``."""
        mask = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
        with running(self._path):
            scores: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return scores


@dataclass(frozen=True)
class DirectoryRecord(ClassifierRecord):
    """The record of a classifier in a directory, which does not describe its training texts."""

    learned_here: bool = False

    @property
    def number_of(self) -> dict[str, int]:
        """Numbers of the labels, by name and, as most data sets for such models give them, by number."""
        numbers = {str(i): i for i in range(len(self.labels))}
        return {**numbers, **super().number_of}


def is_directory(path: Path) -> bool:
    """Whether a path is a Hugging Face directory."""
    return (path / "config.json").exists()


def record_of(path: Path) -> ClassifierRecord:
    """Read the record of a directory without its weights; raises the errors of :func:`open_directory`."""
    return _record(_labelling(path))


def open_directory(path: Path, factory: str | None) -> OpenedClassifier:
    """Open the classifier of a directory.

    Args:
        path: the directory.
        factory: must be None, as a directory is not built by a factory of the user's.

    Raises:
        UsageError: the model does not give each text one label or needs code of its own, a factory was given,
            or transformers is missing.
        InputError: the directory is corrupt.
    """
    if factory is not None:
        raise UsageError(f"--model {factory}: {path} is a Hugging Face directory", remedy="leave out --model")
    plan = _labelling(path)
    record = _record(plan)
    opened = loaded(plan)
    opened.model.config.use_cache = False  # it is for generation only

    def stored_state(state: State) -> State:
        return opened.stored_state({name.removeprefix("model."): value for name, value in state.items()})

    model = SequenceClassifier(opened.model, path)
    return OpenedClassifier(record, model, plan.description, plan.size, stored_state, opened.notes)


def _labelling(path: Path) -> Blueprint:
    """Read the blueprint of a model, and check that the model gives each text one label.

    Raises:
        UsageError: the model does not label texts, or not with one label each.
    """
    plan = blueprint(path)
    name, config = plan.kind.__name__, plan.config
    if not name.endswith(_HEAD):
        raise UsageError(
            f"{path}: a {name} does not label texts",
            remedy="give the directory of an AutoModelForSequenceClassification; "
            "'embcompress distil' needs no labels",
        )
    if config.num_labels > LABEL_LIMIT:
        raise InputError(
            f"{path}: config.json gives {config.num_labels:,} labels, limit {LABEL_LIMIT:,}",
            remedy="give a model with fewer",
        )
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        what = config.problem_type or "regression"
        raise UsageError(
            f"{path}: is a model for {what} with {config.num_labels} scores",
            remedy="give a model that chooses one of two or more labels for a text",
        )
    return plan


def _record(plan: Blueprint) -> ClassifierRecord:
    """Make the record of a model from config.json and the tokenizer's files.

    Raises:
        UsageError: there is no tokenizer, or no padding token.
        InputError: config.json and the tokenizer contradict each other, or two labels have one name.
    """
    path, config, model = plan.path, plan.config, plan.outline
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len({*labels}) < len(labels):
        raise InputError(
            f"{path}: config.json gives two labels the same name", remedy="give each a name of its own"
        )
    embedding = model.get_input_embeddings()
    made = tokenizer_in(path)
    padding = made.pad_token_id
    if padding is None or (config.pad_token_id is None and not _is_encoder(model)):
        raise UsageError(
            f"{path}: has no padding token, so texts cannot be batched",
            remedy="set pad_token in tokenizer_config.json and pad_token_id in config.json",
        )
    tokenizer = DirectoryTokenizer(made, embedding.num_embeddings, padding, path)
    longest = min(_LONGEST, int(min(made.model_max_length, 1 << 30)), positions(model, _LONGEST))
    architecture = Architecture(type(model).__name__, embedding.embedding_dim, (), 0.0)
    return DirectoryRecord(architecture, tokenizer, labels, longest)


def _is_encoder(model: Any) -> bool:
    """Whether the model scores texts without looking for their last token before the padding."""
    return not hasattr(model, "score")
