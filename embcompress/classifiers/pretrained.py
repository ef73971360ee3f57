"""Hugging Face directories of models for sequence classification, compressed or dense; needs transformers."""

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
from embcompress.pretrained.tokens import positions, tokenizer_in

_HEAD = "ForSequenceClassification"
"""How the names of architectures end whose scores are of whole texts."""

_LONGEST = 512
"""Tokens of a text that are read, where the model has room for more: the usual limit."""


class DirectoryTokenizer(Tokenizer):
    """The tokenizer of a directory with its special tokens, as transformers makes it.

    Args:
        made: what ``AutoTokenizer`` made.
        rows: of the model's table, V; the vocabulary is as long.
        padding: id that fills short texts up.
        path: the directory, for messages.
    """

    def __init__(self, made: Any, rows: int, padding: int, path: Path) -> None:
        ids: dict[str, int] = made.get_vocab()
        if ids and max(ids.values()) >= rows:
            raise InputError(
                f"{path}: token ids go up to {max(ids.values()):,}, the table has rows up to {rows - 1:,}",
                remedy="take the tokenizer that belongs to this model",
            )
        token = {number: text for text, number in ids.items()}
        self.vocabulary = tuple(token.get(number, f"<{number}>") for number in range(rows))
        self.padding = padding
        self._made, self._path = made, path

    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Encode as the model was taught, cut off to ``max_length`` with the last special tokens kept."""
        cut = {"truncation": max_length is not None, "max_length": max_length}
        with reading(self._path):
            found = self._made(list(texts), padding=False, **cut)["input_ids"]
        return Encoded.of(ids or [self.padding] for ids in found)


class SequenceClassifier(nn.Module):
    """A model of transformers as the classifiers here are called: ids and lengths in, scores out."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        super().__init__()
        self.model, self._path = model, path

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B×C) for ids (B×L) and lengths (B); see ``Classifier.forward``."""
        mask = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
        with running(self._path):
            scores: Tensor = self.model(input_ids=tokens, attention_mask=mask).logits
        return scores


@dataclass(frozen=True)
class DirectoryRecord(ClassifierRecord):
    """What a directory says of its classifier: nothing of the texts that it has learned from."""

    learned_here: bool = False

    @property
    def number_of(self) -> dict[str, int]:
        """Labels by name and, as in most data sets for such models, by number."""
        numbers = {str(i): i for i in range(len(self.labels))}
        return {**numbers, **super().number_of}


def is_directory(path: Path) -> bool:
    """Whether a path is a Hugging Face directory."""
    return (path / "config.json").exists()


def record_of(path: Path) -> ClassifierRecord:
    """The record of a directory; see :func:`open_directory`, whose errors it raises."""
    return _record(_labelling(path))


def open_directory(path: Path, factory: str | None) -> OpenedClassifier:
    """The classifier of a directory.

    Args:
        path: the directory.
        factory: a module of the user's own, of which a directory has none.

    Raises:
        UsageError: it labels no texts, or not with one label each, needs code of its own, or
            transformers is missing.
        InputError: it is corrupt.
    """
    if factory is not None:
        raise UsageError(f"--model {factory}: {path} is a Hugging Face directory", remedy="leave out --model")
    plan = _labelling(path)
    record = _record(plan)
    opened = loaded(plan)
    opened.model.config.use_cache = False  # nothing is generated

    def stored_state(state: State) -> State:
        return opened.stored_state({name.removeprefix("model."): value for name, value in state.items()})

    model = SequenceClassifier(opened.model, path)
    return OpenedClassifier(record, model, plan.description, plan.size, stored_state, opened.notes)


def _labelling(path: Path) -> Blueprint:
    """The plan of a model that gives each text one label.

    Raises:
        UsageError: the model labels no texts, or not with one label each.
    """
    plan = blueprint(path)
    name, config = plan.kind.__name__, plan.config
    if not name.endswith(_HEAD):
        raise UsageError(
            f"{path}: a {name} labels no texts",
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
            remedy="only models that give a text one of two or more labels are taken",
        )
    return plan


def _record(plan: Blueprint) -> ClassifierRecord:
    """What config.json and the tokenizer's files say of a model, whatever its weights.

    Raises:
        UsageError: there is no tokenizer, or no token that fills up.
        InputError: they contradict each other.
    """
    path, config, model = plan.path, plan.config, plan.outline
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len({*labels}) < len(labels):
        raise InputError(f"{path}: config.json gives two labels one name", remedy="name each otherwise")
    embedding = model.get_input_embeddings()
    made = tokenizer_in(path)
    padding = made.pad_token_id
    if padding is None or (config.pad_token_id is None and not _is_encoder(model)):
        raise UsageError(
            f"{path}: names no padding token, so texts cannot be read side by side",
            remedy="set pad_token in tokenizer_config.json and pad_token_id in config.json",
        )
    tokenizer = DirectoryTokenizer(made, embedding.num_embeddings, padding, path)
    longest = min(_LONGEST, int(min(made.model_max_length, 1 << 30)), positions(model, _LONGEST))
    architecture = Architecture(type(model).__name__, embedding.embedding_dim, (), 0.0)
    return DirectoryRecord(architecture, tokenizer, labels, longest)


def _is_encoder(model: Any) -> bool:
    """Whether the scores are of a place that needs no search for the last token that is no padding."""
    return not hasattr(model, "score")
