"""How much each token moves a classifier's predictions; the only kind of weights that needs torch.

A token's importance is how much predictions change without it, as in dictionary screening
(arXiv:2211.12715): here the L1 distance between the class probabilities of a text and those of the same
text with every occurrence of the token replaced by the unknown token, summed over the texts that hold it.
Where the tokenizer has no unknown token, the token is left out instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint
from embcompress.classifiers.base import MODULE
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.record import read_record
from embcompress.data.counting import Counts
from embcompress.data.encoded import Encoded, Ids
from embcompress.data.tokenizing import Tokenizer
from embcompress.errors import InputError, UsageError
from embcompress.progress import Progress, Steps
from embcompress.training.devices import runtime
from embcompress.training.scoring import Dataset, scores_of

_MOST = 1 << 18
"""Most token ids that are scored together, unless a single text with its variants has more."""


def importances(
    source: Checkpoint, texts: Iterable[str], file: Path, rows: int, progress: Progress
) -> Counts:
    """The importance of each token (V), scaled so that all of them add up to the number of tokens.

    They are then comparable to counts: a token that moves predictions as much as the average one gets
    the number of times it occurs. This takes one pass of the classifier for each distinct token of each
    text.

    Args:
        source: a classifier written by ``train``.
        texts: the texts.
        file: their file, for error messages.
        rows: of the table, V.
        progress: called as ``progress("importance", done, total)``.

    Raises:
        UsageError: the checkpoint is no classifier of ours, its table has another number of rows, or no
            token changes a prediction.
        InputError: a file is corrupt, or holds no text.
    """
    record = read_record(source)
    if record.architecture.name == MODULE:
        raise UsageError(
            f"{source.path}: holds a module of your own, and its code is not run to weigh tokens",
            remedy="count tokens with --corpus, or give importances of your own with --weights",
        )
    if len(record.tokenizer.vocabulary) != rows:
        raise UsageError(
            f"{source.path}: the classifier has {len(record.tokenizer.vocabulary):,} tokens, the table "
            f"{rows:,} rows",
            remedy="choose the table of the classifier's tokens with --key",
        )
    found = tuple(texts)
    if not found:
        raise InputError(f"{file}: holds no text", remedy="give texts that the classifier reads")
    encoded = record.tokenizer.encode(found, record.max_length)
    where = runtime()
    model = open_classifier(source.path).model.to(where.device)
    distinct = _distinct(encoded)
    advance = Steps(progress, "importance", sum(map(len, distinct)))
    sums = np.zeros(rows)
    for group, variants in _groups(encoded, distinct, record.tokenizer):
        data = Dataset(variants, np.zeros(len(variants), np.int64), record.tokenizer.padding)
        shares = torch.softmax(scores_of(model, data, where).double(), dim=1).numpy()
        at = 0
        for text in group:
            tokens = distinct[text]
            own, without = shares[at], shares[at + 1 : at + 1 + len(tokens)]
            sums[tokens] += np.abs(without - own).sum(axis=1)
            at += 1 + len(tokens)
            advance(len(tokens))
    if not sums.any():
        raise UsageError(
            f"{file}: no token changes a prediction of {source.path}",
            remedy="count tokens with --corpus",
        )
    sums *= len(encoded.tokens) / sums.sum()
    return sums


def _distinct(encoded: Encoded) -> list[Ids]:
    """The distinct tokens of each text."""
    return [np.unique(tokens) for tokens in np.split(encoded.tokens, encoded.starts[1:])]


def _groups(encoded: Encoded, distinct: list[Ids], tokenizer: Tokenizer) -> Iterator[tuple[range, Encoded]]:
    """Ranges of texts, each with its texts followed by their variants without each distinct token."""
    unknown = _unknown(tokenizer)
    first, held = 0, 0
    rows: list[NDArray[np.int64]] = []
    for number, (start, length) in enumerate(zip(encoded.starts, encoded.lengths, strict=True)):
        text, tokens = encoded.tokens[start : start + length], distinct[number]
        size = length * (1 + len(tokens))
        if rows and held + size > _MOST:
            yield range(first, number), _joined(rows)
            first, held, rows = number, 0, []
        held += size
        rows.append(text)
        for token in tokens:
            if unknown is not None:
                rows.append(np.where(text == token, unknown, text))
            else:
                rest = text[text != token]
                rows.append(rest if rest.size else np.array([tokenizer.padding]))
    yield range(first, len(distinct)), _joined(rows)


def _joined(rows: list[NDArray[np.int64]]) -> Encoded:
    return Encoded(np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows)))


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The unknown token, which an empty text is read as; None where there is none."""
    tokens = tokenizer.encode([""], 1).tokens
    return None if tokens[0] == tokenizer.padding else int(tokens[0])
