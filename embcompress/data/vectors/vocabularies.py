"""The token of each row of a table, from a vocabulary file, tokenizer.json or our own record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.shards import read_json
from embcompress.checkpoint.vectors.compressed import tokens_of
from embcompress.checkpoint.vectors.npy import read_lines
from embcompress.data.static_tokens import whitespace_vocabulary
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.data.vectors.base import decode_token
from embcompress.errors import InputError, UsageError

_OTHER_TOKENIZER = "use the tokenizer that belongs to this model"

NumberedTokens = Iterable[tuple[int, str]]


def read_vocabulary_file(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 0) and token of each line.

    Raises:
        InputError: a line is empty or too long, or the file is empty.
    """
    return ((number, decode_token(token)) for number, token in enumerate(read_lines(path)))


def vocabulary_of(checkpoint: Checkpoint, rows: int) -> NumberedTokens:
    """Pairs of row number and token for the table of a checkpoint.

    Word vectors hold their own tokens. For other checkpoints the tokens come from their own record, or else
    from ``tokenizer.json``, or else from ``vocab.txt`` next to the weights. The files may name fewer tokens
    than there are rows, since tables are often padded to a round number.

    Args:
        checkpoint: the checkpoint of the table.
        rows: rows of the table.

    Raises:
        UsageError: there is no vocabulary.
        InputError: it is broken, or belongs to another table.
    """
    path = checkpoint.path
    own = tokens_of(checkpoint, rows)
    if own is not None:
        return ((row, decode_token(token)) for row, token in enumerate(own))
    recorded = _recorded(checkpoint, rows)
    if recorded is not None:
        return recorded
    folder = checkpoint.folder
    if (file := folder / "tokenizer.json").exists():
        return tokens_in(read_json(file), rows, file)
    if (words := whitespace_vocabulary(folder)) is not None:
        return _within(enumerate(words), rows, folder)
    if (file := folder / "vocab.txt").exists():
        return _within(read_vocabulary_file(file), rows, file)
    raise UsageError(
        f"{path}: nothing says which tokens its rows belong to",
        remedy=f"put the model's tokenizer.json or vocab.txt into {folder}",
    )


def tokens_in(parsed: Any, rows: int, where: object) -> NumberedTokens:
    """Pairs of row number and token from a parsed tokenizer.json.

    Raises:
        InputError: it has another form, or more tokens than ``rows``.
    """
    return _within(_from_tokenizer(parsed, where), rows, where)


def rows_by_token(checkpoint: Checkpoint, rows: int) -> Mapping[str, int]:
    """The first row of each token; see :func:`vocabulary_of` for the errors it raises."""
    found: dict[str, int] = {}
    for row, token in vocabulary_of(checkpoint, rows):
        found.setdefault(token, row)
    return found


def _recorded(checkpoint: Checkpoint, rows: int) -> NumberedTokens | None:
    """The vocabulary in the record of a classifier, None if there is no such record."""
    record = checkpoint.sidecar(RECORD_KEY)
    tokenizer = record.get("tokenizer") if isinstance(record, dict) else None
    if not isinstance(tokenizer, dict):
        return None
    where = f"{checkpoint.path}: its {RECORD_KEY} record"
    if isinstance(text := tokenizer.get("json"), str):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        return tokens_in(parsed, rows, where)
    tokens = tokenizer.get("vocabulary")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{where} holds no list of tokens", remedy="make the file again")
    if len(tokens) != rows:
        raise InputError(
            f"{where} names {len(tokens):,} tokens, the table has {rows:,} rows", remedy="make the file again"
        )
    return enumerate(tokens)


def _from_tokenizer(parsed: Any, where: object) -> NumberedTokens:
    """Pairs of id and token, ordered by id, from a tokenizer.json of the Hugging Face ``tokenizers`` library.

    ``model.vocab`` maps tokens to ids (WordPiece, BPE, WordLevel) or lists tokens with their scores
    (Unigram). An added token overrides whatever the model has for its id.

    Raises:
        InputError: it has another form.
    """
    try:
        vocabulary = parsed["model"]["vocab"]
        if isinstance(vocabulary, dict):
            tokens = {number: token for token, number in vocabulary.items()}
        else:
            tokens = dict(enumerate(token for token, _ in vocabulary))
        tokens |= {added["id"]: added["content"] for added in parsed.get("added_tokens") or ()}
        if not all(type(number) is int and isinstance(token, str) for number, token in tokens.items()):
            raise TypeError
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(
            f"{where}: holds no map from tokens to ids under model.vocab", remedy=_OTHER_TOKENIZER
        ) from None
    return sorted(tokens.items())


def _within(tokens: NumberedTokens, rows: int, where: object) -> Iterator[tuple[int, str]]:
    """Pass the tokens on, and check that each has a row."""
    for number, token in tokens:
        if not 0 <= number < rows:
            raise InputError(
                f"{where}: token {token!r} has number {number:,}, the table has {rows:,} rows",
                remedy=_OTHER_TOKENIZER,
            )
        yield number, token
