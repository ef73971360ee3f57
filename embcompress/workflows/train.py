"""read texts → vocabulary → build classifier → loop → stage → check → publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embcompress.choices import (
    DEFAULT_ARCHITECTURE,
    DEFAULT_TOKENIZER,
    DIMENSION,
    MAX_LENGTH,
)
from embcompress.classifiers import classifier_for
from embcompress.classifiers.base import Architecture
from embcompress.classifiers.building import build, own_architecture, own_module, start_table
from embcompress.classifiers.record import ClassifierRecord
from embcompress.classifiers.storage import new_format, save_new
from embcompress.data.labelled import label_set
from embcompress.data.tokenizing import SPLITTING, Tokenizer, TokenizerJson
from embcompress.data.vectors import WordVectors, read_vectors
from embcompress.errors import UsageError
from embcompress.paths import make_paths
from embcompress.progress import Progress, silent
from embcompress.reports.learning import TrainingResult
from embcompress.runs.learning import Learned, Task, check_written, finish, learn
from embcompress.runs.sessions import USUAL_SESSION, Session
from embcompress.runs.texts import Split, Texts, dataset
from embcompress.storage.staging import staged
from embcompress.training.records import TRAIN_RECIPE, Recipe


@dataclass(frozen=True)
class NewClassifier:
    """What a new classifier is made of.

    Attributes:
        arch: registry name of the network; ignored with ``factory``.
        factory: ``package.module:function`` of a module of the user's own.
        vectors: pretrained word vectors for its table, a file or a checkpoint.
        tokenizer: rule that splits texts, or a tokenizer.json file.
        dimension: width of the embedding; None for that of the vectors, or 300.
        hidden: units of each hidden layer; None for the network's own.
        dropout: share of units dropped in training; None for the network's own.
        bidirectional: also read texts backwards (LSTM).
        min_count: how often a token must occur in the training texts to get a row.
        max_tokens: most rows besides padding and unknown; the most frequent tokens get them.
        max_length: tokens of a text that are read.
    """

    arch: str = DEFAULT_ARCHITECTURE
    factory: str | None = None
    vectors: Path | None = None
    tokenizer: str = DEFAULT_TOKENIZER
    dimension: int | None = None
    hidden: tuple[int, ...] | None = None
    dropout: float | None = None
    bidirectional: bool = False
    min_count: int = 1
    max_tokens: int | None = None
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        make_paths(self, "vectors")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        named = () if self.tokenizer in SPLITTING else (Path(self.tokenizer),)
        return named if self.vectors is None else (*named, self.vectors)

    def check(self) -> None:
        """Refuse sizes out of range, and options that would have no effect.

        Raises:
            UsageError: with the option.
        """
        for name in ("dimension", "min_count", "max_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (value < 1 or value % 1):
                raise UsageError(f"{name} {value}", remedy="give a whole number from 1 on")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError(f"dropout {self.dropout}", remedy="give a share from 0 to below 1")
        ignored = []
        if self.factory is not None:
            own = {"dimension": None, "hidden": None, "dropout": None, "bidirectional": False}
            ignored = [name for name, usual in own.items() if getattr(self, name) != usual]
            why = "a module of your own decides it"
        elif self.bidirectional and self.arch != "lstm":
            ignored, why = ["bidirectional"], f"a {self.arch} ignores the order of tokens"
        elif self.tokenizer not in SPLITTING and (self.min_count > 1 or self.max_tokens is not None):
            ignored, why = ["min_count, max_tokens"], "a tokenizer.json brings its own vocabulary"
        if ignored:
            raise UsageError(f"{', '.join(ignored)}: {why}", remedy="leave it out")


def train(
    texts: str | Path | Texts,
    *,
    output: str | Path,
    new: NewClassifier = NewClassifier(),
    recipe: Recipe = TRAIN_RECIPE,
    session: Session = USUAL_SESSION,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a text classifier and write a checkpoint that describes itself.

    Args:
        texts: a file of labelled texts, or where they are and how to read them.
        output: the checkpoint to write; its suffix chooses the format.
        new: what the classifier is made of.
        recipe: how it is trained.
        session: where it runs, and what it records.
        progress: called as ``progress(stage, done, total)`` while vectors are read.

    Returns:
        How each epoch went, and the dev accuracy of what was written.

    Raises:
        UsageError: an option is out of its range, or the texts or the output place do not do.
        InputError: texts or vectors are corrupt.
        Interrupted: by Ctrl-C; see ``runs.learning.learn``.
        OSError: the output cannot be written.
    """
    wanted = Texts.of(texts)
    place = Path(output)
    new_format(place)
    new.check()
    session.check(place, (*wanted.files, *new.files), recipe)
    split = wanted.split(recipe.seed)
    tokenizer = _tokenizer(new, split.train.texts)
    vectors = None
    if new.vectors is not None:
        vectors = read_vectors(new.vectors, {*tokenizer.vocabulary}, progress=progress)
    with torch.random.fork_rng([]):  # leaves the caller's random numbers alone
        torch.default_generator.manual_seed(recipe.seed)
        record, model = _new(new, tokenizer, split, wanted, vectors)
        pretrained = start_table(model, record, vectors)
    task = Task(model, dataset(record, split.train), dataset(record, split.dev), recipe, place)

    def write(stage: Path, learned: Learned) -> None:
        save_new(stage, learned.state, record)

    with staged(place, force=session.force) as stage:
        learned = learn(task, session, write)
        write(stage, learned)
        written = check_written(stage, learned.state, task.dev, session, new.factory)
    finish(session, place, learned.epochs)
    return TrainingResult(
        source=None,
        output=place,
        classifier=new.factory or new.arch,
        labels=record.labels,
        tokens=len(tokenizer.vocabulary),
        pretrained=pretrained,
        train_texts=len(task.train),
        dev_texts=len(task.dev),
        epochs=learned.epochs,
        best=learned.best.epoch,
        dev_accuracy=written.dev_accuracy,
        size=written.size,
        notes=split.notes,
    )


def _tokenizer(new: NewClassifier, texts: Sequence[str]) -> Tokenizer:
    """The rule that splits texts, with its vocabulary.

    Raises:
        UsageError: it is neither a rule nor a file.
    """
    if new.tokenizer in SPLITTING:
        return SPLITTING[new.tokenizer].build(texts, min_count=new.min_count, max_tokens=new.max_tokens)
    path = Path(new.tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(
            f"--tokenizer {new.tokenizer}: is neither a rule nor a file",
            remedy=f"choose from {', '.join(SPLITTING)}, or give a tokenizer.json",
        )
    return TokenizerJson.read(path)


def _new(
    new: NewClassifier, tokenizer: Tokenizer, split: Split, texts: Texts, vectors: WordVectors | None
) -> tuple[ClassifierRecord, nn.Module]:
    """The record of a new classifier, and its module with fresh weights."""
    labels = label_set(split.train)

    def record_of(architecture: Architecture) -> ClassifierRecord:
        columns = texts.columns()
        return ClassifierRecord(architecture, tokenizer, labels, new.max_length, split.held_out, columns)

    tokens, padding = len(tokenizer.vocabulary), tokenizer.padding
    if new.factory is not None:
        module = own_module(new.factory, tokens=tokens, labels=len(labels), padding=padding)
        architecture = own_architecture(new.factory, module, tokens)
        return record_of(architecture), module
    kind = classifier_for(new.arch)
    width = new.dimension or (DIMENSION if vectors is None else vectors.matrix.shape[1])
    dropout = kind.dropout_rate if new.dropout is None else new.dropout
    architecture = Architecture(new.arch, width, new.hidden or kind.hidden, dropout, new.bidirectional)
    record = record_of(architecture)
    return record, build(record)
