"""Read labelled texts from a file, refusing anything ambiguous, and split them into two parts."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from embcompress.choices import LABEL_COLUMN, TEXT_COLUMN
from embcompress.data.columns import LABEL, TEXT, fields, folded, listed, nearest
from embcompress.data.csvlines import Lines, shown
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.data.textfile import open_texts
from embcompress.errors import InputError, UsageError

LABEL_LIMIT = 10_000
"""Most labels of a classifier: it has a score for each label and text, and counts every pair of labels."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels, in the order of their file.

    Attributes:
        texts: texts as in the file.
        labels: the label of each text; never blank.
        lines: the physical line in which each record begins, counted from 1.
        path: the file.
        notes: what the user should know of the labels, one sentence each.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    path: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Iterable[int]) -> LabelledTexts:
        """The rows with these indices, in the given order."""
        rows = tuple(rows)
        return LabelledTexts(
            tuple(self.texts[i] for i in rows),
            tuple(self.labels[i] for i in rows),
            tuple(self.lines[i] for i in rows),
            self.path,
            self.notes,
        )


def read_labelled(
    path: str | Path,
    *,
    text_column: str = TEXT_COLUMN,
    label_column: str = LABEL_COLUMN,
    text_format: TextFormat = USUAL_FORMAT,
    known_labels: Collection[str] | None = None,
) -> LabelledTexts:
    """Read a file of labelled texts: CSV, JSON Lines or lines of fastText, plain or gzip.

    Labels that differ only in blanks are one label, without blanks around it. With ``known_labels`` it is
    written as there.

    Args:
        path: the file.
        text_column: name of the column of texts, or its number in a CSV without a header.
        label_column: name or number of the column of labels.
        text_format: how the file is written.
        known_labels: the allowed labels; None allows any, but requires at least two.

    Raises:
        UsageError: there is no such file or column, or the file is of another kind.
        InputError: the file is corrupt, has a record or a number of labels beyond a limit, or a label that is
            not allowed.
    """
    path = Path(path)
    wanted = {TEXT: text_column, LABEL: label_column}
    if text_column == label_column:
        raise UsageError(
            f"{' and '.join(wanted)} are both {shown(text_column)}, expected two columns",
            remedy="name another column with one of them",
        )
    texts, labels, begins = [], [], []
    seen: dict[str, str] = {}  # label as in the file -> one string per label rather than one per row
    names: dict[str, str] = {_spaced(label): label for label in known_labels or ()}
    with open_texts(path, "give a file of labelled texts") as file:
        lines = Lines(file, path, text_format.encoding)
        for text, label in fields(lines, wanted, text_format, usual="csv"):
            if label not in seen:
                _check_label(label, known_labels, names, lines)
                exact = known_labels is not None and label in known_labels
                seen[label] = label if exact else names.setdefault(_spaced(label), label.strip())
                if len(names) > LABEL_LIMIT:
                    raise lines.error(
                        f"label {shown(label)} is one more than {LABEL_LIMIT:,}, the limit",
                        "name the column of labels with --label-column, or put rare labels under one name",
                    )
            texts.append(text)
            labels.append(seen[label])
            begins.append(lines.begin)
    if not texts:
        raise InputError(f"{path}: holds no row", remedy="add a row for each text")
    if known_labels is None and len(names) == 1:
        raise InputError(
            f"{path}: {shown(labels[0])} is the only label (rows: {len(labels):,}), expected at least 2",
            remedy="add rows of another label, or name another column with --label-column",
        )
    notes = () if known_labels is not None else _equal_numbers(labels)
    return LabelledTexts(tuple(texts), tuple(labels), tuple(begins), path, notes)


def split_off(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split into rows for training and rows held out, stratified by label.

    Of each label, that fraction of its rows is held out, rounded, but at least one if it has two or more,
    and never all. Rows with the same text stay together. Both parts keep the order of the file.

    Raises:
        UsageError: the fraction is not between 0 and 1, or no label has two texts.
    """
    if not 0 < fraction < 1:
        raise UsageError(
            f"{fraction} is not a fraction of rows to hold out, limits 0 and 1, both excluded",
            remedy="give one such as 0.1",
        )
    # Of all draws, Python promises only for random() that a seed gives the same sequence in every
    # version; shuffle and sample may change, and so may every method of NumPy's generators.
    generator = random.Random(seed)  # noqa: S311 - a split is not a secret
    draws = {text: generator.random() for text in dict.fromkeys(data.texts)}
    by_label: dict[str, dict[str, list[int]]] = {}  # label -> text -> its rows
    for row in sorted(range(len(data)), key=lambda row: draws[data.texts[row]]):
        by_label.setdefault(data.labels[row], {}).setdefault(data.texts[row], []).append(row)
    held = {row for texts in by_label.values() for row in _held([*texts.values()], fraction)}
    if not held:
        raise UsageError(
            f"{data.path}: no label has 2 texts (labels: {len(by_label):,}), so none can be held out",
            remedy="give rows to hold out as a file of their own",
        )
    return data.take(row for row in range(len(data)) if row not in held), data.take(sorted(held))


def label_set(data: LabelledTexts) -> tuple[str, ...]:
    """The distinct labels, sorted; as numbers if all are integers."""
    return _sorted(data.labels)


def _held(texts: list[list[int]], fraction: float) -> list[int]:
    """The rows of the first texts of one label, up to its share; the last text is never held out."""
    rows = sum(map(len, texts))
    share = max(math.floor(rows * fraction + 0.5), 1)
    held: list[int] = []
    for text in texts[:-1]:
        if len(held) >= share:
            break
        held += text
    return held


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    distinct = sorted(set(labels))  # as text first, so that the order of "1" and "01" is fixed, too
    if all(_INTEGER.fullmatch(label) for label in distinct):
        distinct.sort(key=int)
    return tuple(distinct)


def _check_label(label: str, known: Collection[str] | None, names: Collection[str], lines: Lines) -> None:
    """Refuse a blank label, and one that is not known; ``names`` are the known ones with single blanks."""
    if not label.strip():
        raise lines.error(f"a blank label {shown(label)}, expected one", "fill it in, or remove the row")
    if known is None or label in known or _spaced(label) in names:
        return
    message = f"label {shown(label)} is not among the {len(known):,} known: {listed(_sorted(known))}"
    number = _number(label)
    near = next((name for name in known if number is not None and _number(name) == number), None)
    if near is not None:
        raise lines.error(message, f"{shown(near)} is the same number: write both the same")
    near = nearest(label, known)
    if near is None:
        raise lines.error(message, "remove the row, or add the label to the training texts")
    if folded(near) == folded(label):
        raise lines.error(message, f"{shown(near)} differs by capitals only: write both the same")
    raise lines.error(message, f"did you mean {shown(near)}?")


def _equal_numbers(labels: Sequence[str]) -> tuple[str, ...]:
    """A note for each number that is written in several ways, which makes several labels of it."""
    counts = Counter(labels)
    ways: dict[Decimal, list[str]] = {}
    for label in counts:
        number = _number(label)
        if number is not None:
            ways.setdefault(number, []).append(label)
    notes = []
    for same in ways.values():
        if len(same) > 1:
            named = " and ".join(f"{shown(label)} (rows: {counts[label]:,})" for label in same[:5])
            notes.append(f"labels {named} are the same number, and stay different labels: write them alike")
    return tuple(notes)


def _number(label: str) -> Decimal | None:
    """The value of a label that is a number; exact, so that no two long numbers seem equal."""
    return Decimal(label) if len(label) < 100 and _DECIMAL.fullmatch(label) else None


def _spaced(label: str) -> str:
    """A label with single blanks, and none around it."""
    return " ".join(label.split())
