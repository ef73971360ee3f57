"""Read labelled texts from a CSV file, refusing anything ambiguous, and split them into two parts."""

from __future__ import annotations

import contextlib
import csv
import difflib
import math
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from embcompress.data.csvlines import Lines, records, shown
from embcompress.errors import InputError, UsageError
from embcompress.storage.rawio import naming
from embcompress.storage.regular import opened

LABEL_LIMIT = 10_000
"""Most labels of a classifier: it has a score for each label and text, and counts every pair of labels."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_TAB_NAMES = ("tab", "\\t")
"""Names of the tab, which is hard to type in a shell."""
_USUAL_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""Delimiters tried on a header that does not match, and how each is given to ``--delimiter``."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels, in the order of their file.

    Attributes:
        texts: texts as in the file.
        labels: the label of each text as in the file; never blank.
        lines: the physical line in which each record begins, counted from 1.
        path: the file.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    path: Path

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
        )


def read_csv(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    delimiter: str | None = None,
    known_labels: Collection[str] | None = None,
) -> LabelledTexts:
    """Read the labelled texts of a UTF-8 CSV file, with or without a byte order mark.

    Args:
        path: the file; its first line that is not blank is the header.
        text_column: name of the column of texts.
        label_column: name of the column of labels.
        delimiter: one character, or ``tab``; None means a tab for ``.tsv``, otherwise a comma.
        known_labels: the allowed labels; None allows any, but requires at least two.

    Raises:
        UsageError: there is no such file or column, or the file has another delimiter.
        InputError: the file is not UTF-8 CSV, has a record or a number of labels beyond a limit, or a label
            that is not allowed.
    """
    path = Path(path)
    wanted = {"--text-column": text_column, "--label-column": label_column}
    if text_column == label_column:
        raise UsageError(
            f"{' and '.join(wanted)} are both {shown(text_column)}, expected two columns",
            remedy="name another column with one of them",
        )
    delimiter = delimiter_of(delimiter, path)
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy="give a CSV file")
    texts, labels, begins = [], [], []
    seen: dict[str, str] = {}  # one string per label rather than one per row
    with naming(path), opened(path) as file:
        lines = Lines(file, path)
        rows = records(lines, delimiter)
        header = read_header(rows, lines, delimiter, wanted)
        text_at, label_at = (header.index(name) for name in wanted.values())
        for row in rows:
            check_row(row, header, lines, delimiter)
            label = row[label_at]
            if label not in seen:
                _check_label(label, known_labels, lines)
                if len(seen) == LABEL_LIMIT:
                    raise lines.error(
                        f"label {shown(label)} is one more than {LABEL_LIMIT:,}, the limit",
                        "name the column of labels with --label-column, or put rare labels under one name",
                    )
            texts.append(row[text_at])
            labels.append(seen.setdefault(label, label))
            begins.append(lines.begin)
    if not texts:
        raise InputError(f"{path}: holds a header and no row", remedy="add a row for each text")
    if known_labels is None and len(seen) == 1:
        raise InputError(
            f"{path}: {shown(labels[0])} is the only label (rows: {len(labels):,}), expected at least 2",
            remedy="add rows of another label, or name another column with --label-column",
        )
    return LabelledTexts(tuple(texts), tuple(labels), tuple(begins), path)


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


def delimiter_of(given: str | None, path: Path) -> str:
    """The delimiter that the user names, or the one for the file's suffix."""
    if given is None:
        return "\t" if path.suffix.lower() == ".tsv" else ","
    if given in _TAB_NAMES:
        return "\t"
    if len(given) != 1 or given in '"\r\n\0':
        raise UsageError(
            f"--delimiter {shown(given)}: expected one character, and neither a quote nor a line's end",
            remedy="give one such as ',' or tab",
        )
    return given


def read_header(
    rows: Iterator[list[str]],
    lines: Lines,
    delimiter: str,
    wanted: Mapping[str, str],
    remedy: str = "pass --delimiter {}",
) -> list[str]:
    """Read the header and check that every wanted column appears once; ``remedy`` is for a delimiter."""
    broken = None
    try:
        header = next(rows, [])
    except InputError as error:
        # A quoted header is broken if it is split by the wrong delimiter, which is the better message.
        broken, header = error, []
    if not set(wanted.values()) <= set(header):
        for other, given in _USUAL_DELIMITERS.items():
            if set(wanted.values()) <= set(_split(lines.held, other)):
                raise UsageError(
                    f"{lines.path}: line {lines.begin}: the columns are not delimited by {shown(delimiter)}, "
                    f"expected {' and '.join(map(shown, wanted.values()))}",
                    remedy=remedy.format(given),
                )
    if broken is not None:
        raise broken
    if not header:
        what = "holds blank lines only" if lines.number else "is empty, 0 bytes"
        raise InputError(f"{lines.path}: {what}, expected a header", remedy="write it again")
    for option, column in wanted.items():
        if column not in header:
            raise _missing(column, option, header, lines)
        if header.count(column) > 1:
            raise lines.error(
                f"column {shown(column)} appears {header.count(column)} times in the header, expected once",
                "rename or remove the others",
            )
    return header


def _split(record: list[str], delimiter: str) -> list[str]:
    with contextlib.suppress(csv.Error):
        return next(csv.reader(record, delimiter=delimiter), [])
    return []


def _missing(column: str, option: str, header: list[str], lines: Lines) -> UsageError:
    near = _nearest(column, header)
    if near is not None and _folded(near) == _folded(column):
        remedy = (
            f"{shown(near)} differs by spaces or capitals only: name it with {option}, or correct the header"
        )
    elif near is not None:
        remedy = f"did you mean {shown(near)}? name it with {option}"
    else:
        remedy = f"name another with {option}, or put a header above the rows"
    return UsageError(
        f"{lines.path}: line {lines.begin}: no column {shown(column)} among {_listed(header)}", remedy
    )


def check_row(row: list[str], header: list[str], lines: Lines, delimiter: str) -> None:
    """Refuse a row whose number of fields differs from the header's, and a repeated header."""
    if len(row) != len(header):
        ends = f" up to line {lines.number}" if lines.number > lines.begin else ""
        remedy = "complete it or remove it"
        if ends:
            remedy = f"look for a quote that opens in line {lines.begin} and closes too late"
        elif len(row) > len(header):
            remedy = f"put a text that holds {shown(delimiter)} in quotes"
        raise lines.error(f"{len(row)} fields{ends}, expected {len(header)} as in the header", remedy)
    if row == header:
        raise lines.error("the header appears here again, expected a row", "remove it")


def _check_label(label: str, known: Collection[str] | None, lines: Lines) -> None:
    if not label.strip():
        raise lines.error(f"a blank label {shown(label)}, expected one", "fill it in, or remove the row")
    if known is None or label in known:
        return
    message = f"label {shown(label)} is not among the {len(known):,} known: {_listed(_sorted(known))}"
    near = next((name for name in known if _same_number(name, label)), None)
    if near is not None:
        raise lines.error(message, f"{shown(near)} is the same number: write both the same")
    near = _nearest(label, known)
    if near is None:
        raise lines.error(message, "remove the row, or add the label to the training texts")
    if _folded(near) == _folded(label):
        raise lines.error(message, f"{shown(near)} differs by spaces or capitals only: write both the same")
    raise lines.error(message, f"did you mean {shown(near)}?")


def _nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar name; one that differs only by spaces and capitals comes first."""
    folded = {_folded(other): other for other in names}
    close = difflib.get_close_matches(_folded(name), folded, n=1)
    return folded[close[0]] if close else None


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _same_number(one: str, other: str) -> bool:
    with contextlib.suppress(ValueError):
        return float(one) == float(other)
    return False


def _listed(names: Collection[str], limit: int = 5) -> str:
    first = ", ".join(shown(name) for name, _ in zip(names, range(limit), strict=False))
    return f"{first}, …" if len(names) > limit else first
