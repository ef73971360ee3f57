"""Labelled texts of a run: read, split without leaks, and encoded for a classifier."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embcompress.choices import DEV_SHARE
from embcompress.classifiers.record import ClassifierRecord, Columns, HeldOut
from embcompress.data.labelled import LabelledTexts, read_labelled, split_off
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.errors import UsageError
from embcompress.paths import make_paths
from embcompress.training.scoring import Dataset


@dataclass(frozen=True)
class Texts:
    """Where labelled texts are, and how to read them.

    Attributes:
        train: file to learn from: CSV, JSON Lines or lines of fastText, plain or gzip.
        dev: file that chooses the epoch; None sets a part of ``train`` aside.
        dev_share: how large that part is for a new classifier, or for one from elsewhere; None for a tenth.
            Later training of the same classifier sets the same part aside again.
        text_column: header of the texts; None for the classifier's own, or ``text``. In a CSV without a
            header, the number of the column.
        label_column: the same for the labels; None for the classifier's own, or ``label``.
        text_format: how all files are written.

    Raises:
        UsageError: both ``dev`` and ``dev_share`` are given.
    """

    train: Path
    dev: Path | None = None
    dev_share: float | None = None
    text_column: str | None = None
    label_column: str | None = None
    text_format: TextFormat = USUAL_FORMAT

    def __post_init__(self) -> None:
        make_paths(self, "train", "dev")
        if self.dev is not None and self.dev_share is not None:
            raise UsageError("both --dev and --dev-share are given", remedy="give one of them")

    @classmethod
    def of(cls, texts: str | Path | Texts) -> Texts:
        """Texts that are given as a file alone, or with how to read them."""
        return texts if isinstance(texts, Texts) else cls(Path(texts))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (self.train,) if self.dev is None else (self.train, self.dev)

    def split(self, seed: int, record: ClassifierRecord | None = None) -> Split:
        """The training and the dev texts.

        Args:
            seed: of the split, where there is no dev file and the classifier's record has no split.
            record: of a classifier that is trained further; None for a new one.

        Raises:
            UsageError: the classifier would be measured on texts that it has learned from.
        """
        train = self.read_file(self.train, record)
        if self.dev is not None:
            return Split(train, self.read_file(self.dev, record, {*train.labels}), None)
        if record is None or not record.learned_here:
            share = DEV_SHARE if self.dev_share is None else self.dev_share
            return Split(*split_off(train, share, seed), HeldOut(float(share), seed))
        held_out = record.held_out
        if held_out is None:
            raise UsageError(
                "the classifier was trained with a dev file of its own, and no --dev is given",
                remedy="give that file again: a part of these texts would be texts it has learned from",
            )
        if self.dev_share not in (None, held_out.share):
            raise UsageError(
                f"dev share {self.dev_share}: the classifier was trained with {held_out.share}",
                remedy="leave it out: another part would hold texts it has learned from",
            )
        return Split(*split_off(train, held_out.share, held_out.seed), held_out)

    def read_file(
        self, path: Path, record: ClassifierRecord | None, labels: Collection[str] | None = None
    ) -> LabelledTexts:
        """Read one file.

        Args:
            path: the file.
            record: of the classifier, which says the columns and the labels; None for a new one.
            labels: those that may occur, where there is no record; None for any.

        Raises:
            UsageError: there is no such file or column.
            InputError: it is corrupt, or has another label.
        """
        columns = self.columns(record)
        return read_labelled(
            path,
            text_column=columns.text,
            label_column=columns.label,
            text_format=replace(self.text_format, header=columns.header),
            known_labels=record.number_of if record else labels,
        )

    def columns(self, record: ClassifierRecord | None = None) -> Columns:
        """The columns to read: those given, then those that the classifier was trained on."""
        usual = Columns() if record is None else record.columns
        header = self.text_format.header
        if header is None:  # columns of the user's own have the usual names, unless he says otherwise
            header = usual.header or self.text_column is not None or self.label_column is not None
        return Columns(self.text_column or usual.text, self.label_column or usual.label, header)


@dataclass(frozen=True)
class Split:
    """Texts to learn from, and texts that choose the epoch.

    Attributes:
        train: texts to learn from.
        dev: texts that choose the epoch.
        held_out: how they were split; None where they are two files.
    """

    train: LabelledTexts
    dev: LabelledTexts
    held_out: HeldOut | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: a dev text that is also learned from is no test."""
        learned = {*self.train.texts}
        shared = sum(text in learned for text in self.dev.texts)
        if not shared:
            return self.train.notes
        return (*self.train.notes, f"{shared:,} of {len(self.dev):,} dev texts are also training texts")


def dataset(record: ClassifierRecord, data: LabelledTexts) -> Dataset:
    """Texts as a classifier reads them: token ids, and the numbers of their labels."""
    number = record.number_of
    labels = np.fromiter((number[label] for label in data.labels), np.int64, len(data.labels))
    encoded = record.tokenizer.encode(data.texts, record.max_length)
    return Dataset(encoded, labels, record.tokenizer.padding)
