"""Token counts: from a file of counts, or counted in texts with the model's own tokenizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embcompress.choices import TEXT_COLUMN
from embcompress.data.columns import TEXT, fields
from embcompress.data.csvlines import Lines, records, shown
from embcompress.data.encoded import Encoded, batches_of
from embcompress.data.text_format import USUAL_FORMAT, TextFormat
from embcompress.data.textfile import open_texts
from embcompress.errors import InputError, UsageError
from embcompress.storage.rawio import naming
from embcompress.storage.regular import opened, read_limited

Counts = NDArray[np.float64]
"""One non-negative number per row of the table (V)."""

Encode = Callable[[Sequence[str]], Encoded]
"""A function from texts to token ids."""

COUNT_LIMIT = 1e15
"""Largest count accepted: integers up to it are exact in float64, and so are their sums."""

_REMEDY = "give a .csv, .tsv, .txt or .npy file of counts"

_ARRAY_HEADER = 1 << 16
"""Longest header of a .npy file, in bytes."""
_WIDEST = 16
"""Bytes of the widest number that NumPy stores."""


def count_texts(texts: Iterable[str], encode: Encode, rows: int, where: str) -> Counts:
    """Count the tokens of texts. The texts may be an iterator, and are not kept.

    Args:
        texts: the texts.
        encode: their tokenizer.
        rows: rows of the table, V.
        where: name of the tokenizer, for error messages.

    Raises:
        InputError: a token has no row.
    """
    counts = np.zeros(rows)
    for batch in batches_of(texts):
        tokens = encode(batch).tokens
        if tokens.size and int(tokens.max()) >= rows:
            raise InputError(
                f"{where}: a text has token {int(tokens.max()):,}, the table has rows up to {rows - 1:,}",
                remedy="use the tokenizer that belongs to this model",
            )
        counts += np.bincount(tokens, minlength=rows)
    return counts


def read_texts(
    path: Path, text_column: str = TEXT_COLUMN, text_format: TextFormat = USUAL_FORMAT
) -> Iterator[str]:
    """The texts of a file, one at a time: a column of a CSV, a key of JSON Lines, or the lines of a file.

    Args:
        path: the file, plain or gzip.
        text_column: name of the column or key, or the column's number in a CSV without a header.
        text_format: how the file is written.

    Raises:
        UsageError: there is no such file or column.
        InputError: it is not text, or a record is too long.
    """
    with open_texts(path, "give a .csv, .tsv, .jsonl or .txt file of texts") as file:
        lines = Lines(file, path, text_format.encoding)
        for (text,) in fields(lines, {TEXT: text_column}, text_format, usual="lines"):
            yield text


def read_counts(path: Path, rows: int, row_of: Callable[[], Mapping[str, int]]) -> Counts:
    """Read counts from ``.npy`` (V numbers), or from lines with a token or its id, and a count.

    A comma separates the two in ``.csv`` files, a tab in ``.tsv`` files, and the last white space of the
    line in ``.txt`` files (as in the vocabularies of GloVe and word2vec). A first line whose count is not
    a number is a header; if it names the first column ``token`` or ``id``, the column is read as that.
    Otherwise it is read as ids if all its values are integers. Tokens that the model lacks are skipped.

    Args:
        path: the file.
        rows: rows of the table, V.
        row_of: returns the row of each token; called only if the file names tokens.

    Raises:
        UsageError: the file is missing or has another suffix, or it names no token of the model.
        InputError: it is corrupt, or a number in it is not a valid count or id.
    """
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {what}", remedy=_REMEDY)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _from_array(path, rows)
    if suffix not in {".csv", ".tsv", ".txt"}:
        raise UsageError(f"{path}: suffix {path.suffix!r} is not one of counts", remedy=_REMEDY)
    header: str | None = None
    lines: list[tuple[int, str, float]] = []
    with naming(path), opened(path) as file:
        source = Lines(file, path)
        pairs = _pairs(source) if suffix == ".txt" else records(source, USUAL_FORMAT.delimiter_of(path))
        for record in pairs:
            if len(record) != 2:
                raise source.error(f"{len(record)} fields, expected a token or id and a count", "correct it")
            count = _number(record[1])
            if count is None and not lines and header is None:
                header = record[0].strip().lower()
                continue
            if count is None or not 0 <= count <= COUNT_LIMIT:
                raise source.error(
                    f"count {shown(record[1])}, expected a number from 0 to {COUNT_LIMIT:g}", "correct it"
                )
            lines.append((source.begin, record[0], count))
    if not lines:
        raise InputError(f"{path}: holds no count", remedy="write a line for each token")
    if header == "id" or (header != "token" and all(key.isdecimal() for _, key, _ in lines)):
        return _by_id(path, lines, rows)
    known, counts = row_of(), np.zeros(rows)
    named = [(known[token], count) for _, token, count in lines if token in known]
    if not named:
        raise UsageError(
            f"{path}: none of its {len(lines):,} tokens is one of the model's {len(known):,}",
            remedy="count with the model's own tokenizer: pass the texts with --corpus",
        )
    np.add.at(counts, [row for row, _ in named], [count for _, count in named])
    return counts


def _pairs(lines: Lines) -> Iterator[list[str]]:
    """Token and count of each line that is not blank."""
    lines.start_record()
    for line in lines:
        if fields := line.rsplit(None, 1):
            yield fields
        lines.start_record()


def _by_id(path: Path, lines: list[tuple[int, str, float]], rows: int) -> Counts:
    counts = np.zeros(rows)
    for line, key, count in lines:
        if not key.isdecimal() or len(key) > 4000 or int(key) >= rows:
            raise InputError(
                f"{path}: line {line}: id {shown(key)}, the table has rows up to {rows - 1:,}",
                remedy="use counts that belong to this model",
            )
        counts[int(key)] += count
    return counts


def _from_array(path: Path, rows: int) -> Counts:
    content = read_limited(path, _ARRAY_HEADER + _WIDEST * rows, f"give {rows:,} numbers, one per row")
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # ValueError, EOFError, BadZipFile, TokenError, OverflowError, MemoryError
        raise InputError(
            f"{path}: is not a NumPy array ({error})", remedy="save it with numpy.save"
        ) from None
    try:
        return check_counts(found, rows)
    except UsageError as error:  # the file is wrong, not the call
        raise InputError(f"{path}: {error.message}", error.remedy) from None


def check_counts(found: object, rows: int) -> Counts:
    """Check an array of counts and return it as float64.

    Raises:
        UsageError: it is not an array of ``rows`` numbers from 0 to ``COUNT_LIMIT``.
    """
    if not isinstance(found, np.ndarray) or found.shape != (rows,) or found.dtype.kind not in "iuf":
        kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
        raise UsageError(f"counts are {kind}, expected {rows:,} numbers", remedy="give one number per row")
    counts = found.astype(np.float64)
    bad = np.flatnonzero(~((counts >= 0) & (counts <= COUNT_LIMIT)))
    if bad.size:
        raise UsageError(
            f"count {counts[bad[0]]:g} in row {int(bad[0]):,}, expected a number from 0 to {COUNT_LIMIT:g}",
            remedy="correct it",
        )
    return counts


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
