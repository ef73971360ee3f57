"""Labelled texts of a run: read, parted without leaks, and encoded for a classifier."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embcompress.classifiers.record import ClassifierRecord, HeldOut
from embcompress.data.labelled import LabelledTexts, read_csv, split_off
from embcompress.errors import UsageError
from embcompress.training.scoring import Dataset

_DEV_SHARE = 0.1


@dataclass(frozen=True)
class Texts:
    """Where labelled texts are, and how to read them.

    Attributes:
        train: CSV file to learn from.
        dev: CSV file that chooses the epoch; None sets a part of ``train`` aside.
        dev_share: that part of the texts of a new classifier, or of one that comes from elsewhere, a tenth
            when None. Later training of a classifier sets the same part aside again.
        text_column: header of the texts; the classifier's, or ``text``, when None.
        label_column: header of the labels; the classifier's, or ``label``, when None.
        delimiter: between fields; None is a tab in .tsv files and a comma in all others.
    """

    train: Path
    dev: Path | None = None
    dev_share: float | None = None
    text_column: str | None = None
    label_column: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        for name in ("train", "dev"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        if self.dev is not None and self.dev_share is not None:
            raise UsageError("both --dev and --dev-share are given", remedy="give one of them")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (self.train,) if self.dev is None else (self.train, self.dev)

    def split(self, seed: int, record: ClassifierRecord | None = None) -> Split:
        """The training and the dev texts.

        Args:
            seed: of the split where there is no dev file and the classifier remembers none.
            record: of a classifier that is trained on; None for a new one.

        Raises:
            UsageError: dev texts would be texts that the classifier has learned from.
        """
        train = self.read_file(self.train, record)
        if self.dev is not None:
            return Split(train, self.read_file(self.dev, record, {*train.labels}), None)
        if record is None or not record.learned_here:
            share = _DEV_SHARE if self.dev_share is None else self.dev_share
            return Split(*split_off(train, share, seed), HeldOut(float(share), seed))
        held_out = record.held_out
        if held_out is None:
            raise UsageError(
                "the classifier was trained with a dev file of its own, and no --dev is given",
                remedy="give it again: a part of the texts would be texts that it has learned from",
            )
        if self.dev_share not in (None, held_out.share):
            raise UsageError(
                f"dev share {self.dev_share}: the classifier was trained with {held_out.share}",
                remedy="leave it out: another part would hold texts that it has learned from",
            )
        return Split(*split_off(train, held_out.share, held_out.seed), held_out)

    def read_file(
        self, path: Path, record: ClassifierRecord | None, labels: Collection[str] | None = None
    ) -> LabelledTexts:
        """One file with these columns; its labels are those of ``record``, else ``labels`` unless None."""
        return read_csv(
            path,
            text_column=self.text_column or (record.text_column if record else "text"),
            label_column=self.label_column or (record.label_column if record else "label"),
            delimiter=self.delimiter,
            known_labels=record.number_of if record else labels,
        )


@dataclass(frozen=True)
class Split:
    """Texts to learn from, and texts that choose the epoch.

    Attributes:
        train: the former.
        dev: the latter.
        held_out: how they were parted; None where they are two files.
    """

    train: LabelledTexts
    dev: LabelledTexts
    held_out: HeldOut | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: dev texts that are learned from choose badly."""
        learned = {*self.train.texts}
        shared = sum(text in learned for text in self.dev.texts)
        if not shared:
            return ()
        return (f"{shared:,} of {len(self.dev):,} dev texts stand among the training texts too",)


def dataset(record: ClassifierRecord, data: LabelledTexts) -> Dataset:
    """Texts as a classifier reads them."""
    number = record.number_of
    labels = np.fromiter((number[label] for label in data.labels), np.int64, len(data.labels))
    encoded = record.tokenizer.encode(data.texts, record.max_length)
    return Dataset(encoded, labels, record.tokenizer.padding)
