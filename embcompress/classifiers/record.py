"""The record in a classifier's checkpoint, thanks to which later commands need no options for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.choices import LABEL_COLUMN, TEXT_COLUMN
from embcompress.classifiers import CLASSIFIERS
from embcompress.classifiers.base import MODULE, Architecture
from embcompress.data.labelled import LABEL_LIMIT
from embcompress.data.tokenizing import RECORD_KEY, RecordedTokenizer, Tokenizer, tokenizer_from_dict
from embcompress.errors import InputError, UsageError

_LAYOUT = 1


@dataclass(frozen=True)
class HeldOut:
    """The part of the training texts that was set aside to choose the epoch.

    Attributes:
        share: fraction of the texts, between 0 and 1.
        seed: random seed of the draw.
    """

    share: float
    seed: int


@dataclass(frozen=True)
class Columns:
    """Where the training texts and their labels stood in their file.

    Attributes:
        text: header of the column of texts, or its number.
        label: the same for the column of labels.
        header: whether the file had a header; if not, columns are numbers from 1.
    """

    text: str = TEXT_COLUMN
    label: str = LABEL_COLUMN
    header: bool = True


@dataclass(frozen=True)
class ClassifierRecord:
    """Everything but the weights that turns texts into scores of labels.

    Attributes:
        architecture: the network.
        tokenizer: turns texts into ids.
        labels: name of each score, at least two.
        max_length: number of tokens of a text that are read.
        held_out: how dev texts were set aside, so that later training can set aside the same ones and
            never choose by texts it has learned from; None if they were in a file of their own.
        columns: of the training texts, which other texts are expected to have too.
        learned_here: whether embcompress trained it, and so knows what it has learned from.
    """

    architecture: Architecture
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_length: int
    held_out: HeldOut | None = None
    columns: Columns = Columns()
    learned_here: bool = True

    @property
    def number_of(self) -> dict[str, int]:
        """Label -> number of its score."""
        return {label: i for i, label in enumerate(self.labels)}

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, ready for JSON."""
        assert isinstance(self.tokenizer, RecordedTokenizer), "other tokenizers are kept in their own files"
        return {
            "layout": _LAYOUT,
            "architecture": {**asdict(self.architecture), "hidden": list(self.architecture.hidden)},
            "tokenizer": self.tokenizer.to_dict(),
            "labels": list(self.labels),
            "max_length": self.max_length,
            "held_out": None if self.held_out is None else asdict(self.held_out),
            "text_column": self.columns.text,
            "label_column": self.columns.label,
            **({} if self.columns.header else {"header": False}),
        }

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)


def read_record(checkpoint: Checkpoint) -> ClassifierRecord:
    """Read the record in a checkpoint and check every field, since files come from anywhere.

    Raises:
        UsageError: it holds none, so it is not a classifier made by embcompress.
        InputError: the record is broken or has a newer layout.
    """
    raw = checkpoint.sidecar(RECORD_KEY)
    if raw is None:
        raise UsageError(
            f"{checkpoint.path}: holds no vocabulary, labels and architecture",
            remedy="give a classifier made by 'embcompress train', or train one with --model",
        )
    try:
        return _parse(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint.path}: the classifier record cannot be read ({type(error).__name__}: {error})",
            remedy="train the classifier again",
        ) from None


def _parse(raw: object) -> ClassifierRecord:
    if not isinstance(raw, dict):
        raise TypeError(f"{type(raw).__name__} instead of an object")
    if raw["layout"] != _LAYOUT:
        raise ValueError(f"layout {raw['layout']}, this version reads {_LAYOUT}")
    labels, max_length = raw["labels"], raw["max_length"]
    if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(x, str) for x in labels):
        raise TypeError("labels are not a list of two or more texts")
    if len(labels) > LABEL_LIMIT:
        raise ValueError(f"{len(labels):,} labels, limit {LABEL_LIMIT:,}")
    if len({*labels}) < len(labels):
        raise ValueError("a label appears twice")
    if type(max_length) is not int or max_length < 1:
        raise ValueError(f"max_length {max_length!r}")
    columns = Columns(raw["text_column"], raw["label_column"], raw.get("header", True))
    if not isinstance(columns.text, str) or not isinstance(columns.label, str):
        raise TypeError("a column is not text")
    if not isinstance(columns.header, bool):
        raise TypeError("header is not true or false")
    return ClassifierRecord(
        _architecture(raw["architecture"]),
        tokenizer_from_dict(raw["tokenizer"]),
        tuple(labels),
        max_length,
        _held_out(raw["held_out"]),
        columns,
    )


def _held_out(raw: Mapping[str, Any] | None) -> HeldOut | None:
    if raw is None:
        return None
    share, seed = raw["share"], raw["seed"]
    if type(share) is not float or not 0 < share < 1 or type(seed) is not int or seed < 0:
        raise ValueError(f"share {share!r} and seed {seed!r}")
    return HeldOut(share, seed)


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    hidden, dimension, dropout = raw["hidden"], raw["dimension"], raw["dropout"]
    if not isinstance(hidden, list):
        raise TypeError("hidden is not a list")
    sizes = (*hidden, dimension)
    if not all(type(size) is int and 0 < size < 1 << 24 for size in sizes):
        raise ValueError("hidden and dimension must be positive integers below 2^24")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r}")
    name, factory, bidirectional = raw["name"], raw["factory"], raw["bidirectional"]
    if not isinstance(name, str) or not isinstance(factory, str):
        raise TypeError("name and factory are not text")
    if name not in (*CLASSIFIERS, MODULE) or (name == MODULE) != bool(factory):
        raise ValueError(f"architecture {name!r} with factory {factory!r}")
    if type(bidirectional) is not bool:
        raise TypeError("bidirectional is not true or false")
    return Architecture(name, dimension, tuple(hidden), float(dropout), bidirectional, factory)
