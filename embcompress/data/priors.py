"""What a checkpoint's own vocabulary says of how often its tokens occur, without any text.

A kind of vocabulary is one function from a :class:`_Source` to shares, and one line in ``_KINDS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import static_modules
from embcompress.checkpoint.directory.shards import JSON_LIMIT, read_json
from embcompress.checkpoint.vectors.compressed import tokens_of
from embcompress.checkpoint.vectors.fasttext.model import COUNTS
from embcompress.checkpoint.vectors.gensim.stored import GENSIM_COUNTS
from embcompress.data.counting import Counts
from embcompress.data.shares import (
    Shares,
    from_merges,
    from_order,
    from_pieces,
    from_scores,
    is_reserved,
    reserved_in,
)
from embcompress.data.static_tokens import row_of_token
from embcompress.data.tokenizing import RECORD_KEY
from embcompress.data.vectors.vocabularies import tokens_in, vocabulary_of
from embcompress.data.vectors.words import spread
from embcompress.errors import InputError, UsageError
from embcompress.storage.regular import read_limited

TEXT_LENGTH = 32
"""Tokens of a usual text. Each token that a tokenizer puts around every text has one share of so many."""

ALL_TOKENS = 1e6
"""Tokens that a prior stands for, alone or together with counts. They are so many that the 1 which a weight
adds to each count changes little: what is never counted has its prior."""

LEAST_NAMED = 0.5
"""Share of a table's rows that its tokenizer names at least. Padding takes a third at most (ByT5), so that
one which names fewer belongs to something else, such as another model in the same folder."""

PRIOR_TOKENS, PRIOR_SHARE = 1000, 0.3
"""Tokens that a prior stands for beside counts, and so many more for each token counted."""


@dataclass(frozen=True)
class Prior:
    """How often each row is to be expected in texts.

    Attributes:
        shares: of each row among all tokens (V); their sum is 1.
        origin: what they were read from, e.g. ``"the order of merges"``.
    """

    shares: Shares
    origin: str

    def mixed(self, counts: Counts | None) -> Counts:
        """Counts with those of the prior added, scaled to ``ALL_TOKENS``; the prior's own without counts."""
        total = 0.0 if counts is None else float(counts.sum())
        added = (PRIOR_TOKENS + PRIOR_SHARE * total) * self.shares
        mixed: Counts = added if counts is None else counts + added
        mixed *= ALL_TOKENS / mixed.sum()
        return mixed


@dataclass(frozen=True)
class _Source:
    """A vocabulary and everything that is known of it.

    Attributes:
        checkpoint: whose it is.
        tokens: of each row of the vocabulary, None where it has none.
        parsed: its tokenizer.json, None without.
        framed: whether the model reads texts between the tokens that the tokenizer adds.
    """

    checkpoint: Checkpoint
    tokens: list[str | None]
    parsed: Mapping[str, Any] | None
    framed: bool


def prior_of(
    checkpoint: Checkpoint, rows: int, other: Callable[[], str | None] = lambda: None
) -> Prior | None:
    """The prior of a table's rows; None where nothing says what its tokens are or how frequent.

    Args:
        checkpoint: of the table.
        rows: rows of the table, V.
        other: makes the text of a tokenizer.json of whatever other files the tokenizer has.

    Raises:
        InputError: the vocabulary is broken, or belongs to another table.
    """
    row_of = row_of_token(checkpoint)
    source = _source(checkpoint, rows if row_of is None else len(row_of), other)
    if source is None:
        return None
    found = ((origin, kind(source)) for origin, kind in _KINDS.items())
    origin, shares = next((origin, shares) for origin, shares in found if shares is not None)
    if row_of is not None:
        if row_of.max(initial=0) >= rows:
            raise InputError(
                f"{checkpoint.path}: its tokens have rows up to {row_of.max():,}, the table has {rows:,}",
                remedy="download it again",
            )
        shares = np.bincount(row_of, shares, minlength=rows).astype(np.float64)
    total = shares.sum()
    return Prior(shares / total, origin) if total > 0 else None


def _source(checkpoint: Checkpoint, size: int, other: Callable[[], str | None]) -> _Source | None:
    """The vocabulary of a checkpoint, None if it has none."""
    parsed, framed = None, False
    is_words = tokens_of(checkpoint, size) is not None
    if not is_words:
        parsed = _recorded_json(checkpoint)
        file = checkpoint.folder / "tokenizer.json"
        if parsed is None and not isinstance(checkpoint.sidecar(RECORD_KEY), dict):
            framed = not (checkpoint.path.is_dir() and static_modules(checkpoint.path))
            made = None if file.exists() or not framed else other()
            parsed = read_json(file) if file.exists() else None if made is None else json.loads(made)
    try:
        pairs = tokens_in(parsed, size, checkpoint.path) if parsed else vocabulary_of(checkpoint, size)
        found: list[str | None] = [None] * size
        for row, token in pairs:
            found[row] = token
    except UsageError:
        return None
    if not is_words and sum(token is not None for token in found) < LEAST_NAMED * size:
        return None
    return _Source(checkpoint, found, parsed, framed)


def _recorded_json(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The tokenizer.json in the record of a classifier, None without."""
    record = checkpoint.sidecar(RECORD_KEY)
    tokenizer = record.get("tokenizer") if isinstance(record, dict) else None
    text = tokenizer.get("json") if isinstance(tokenizer, dict) else None
    try:
        parsed = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


# ---- one function a kind


def _counted(source: _Source) -> Shares | None:
    """Word vectors that hold counts: models of fastText, and files of gensim."""
    checkpoint, tokens = source.checkpoint, source.tokens
    name = next((name for name in (COUNTS, GENSIM_COUNTS) if name in checkpoint.tensors), None)
    if name is None:
        return None
    info = checkpoint.tensors[name]
    if info.dtype is None or info.dtype.name != "I64":
        return None
    words = sum(token is not None for token in tokens)
    own = np.frombuffer(b"".join(checkpoint.bytes_of(name)), np.int64)[:words].astype(np.float64)
    # gensim makes up n, n - 1, ..., 1 for vectors that have no counts; equal ones say nothing either.
    steps = np.diff(own)
    if len(own) < words or (own < 0).any() or (steps == -1).all() or (steps == 0).all():
        return None
    counts = np.zeros(len(tokens))
    counts[:words] = own
    counts[[row for row, token in enumerate(tokens[:words]) if is_reserved(token or "")]] = 0
    return spread(checkpoint, counts)


def _words(source: _Source) -> Shares | None:
    """Word vectors without counts, the most frequent word first."""
    if tokens_of(source.checkpoint, len(source.tokens)) is None:
        return None
    return spread(source.checkpoint, from_order(source.tokens))


def _unigram(source: _Source) -> Shares | None:
    """A unigram model of SentencePiece."""
    vocabulary = _model(source).get("vocab")
    if not isinstance(vocabulary, list):
        return None
    try:
        scores = np.array([score for _, score in vocabulary[: len(source.tokens)]], np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{source.checkpoint.path}: its tokenizer has scores that are no numbers",
            remedy="use the tokenizer that belongs to this model",
        ) from None
    shares = np.zeros(len(source.tokens))
    shares[: len(scores)] = from_scores(scores)
    for added in _added(source):
        shares[added] = 0
    return _framed(source, shares)


def _merged(source: _Source) -> Shares | None:
    """BPE, of bytes or of characters."""
    merges = _model(source).get("merges")
    if not isinstance(merges, list) or not merges:
        return None
    return _framed(source, from_merges(_unadded(source), _pairs(merges)))


def _pieces(source: _Source) -> Shares | None:
    """WordPiece, and lists of whole words of other tokenizers."""
    tokens = _unadded(source)
    is_pieces = any(token is not None and token.startswith("##") for token in tokens)
    shares = (from_pieces if is_pieces else from_order)(tokens)
    return _framed(source, shares)


_KINDS: dict[str, Callable[[_Source], Shares | None]] = {
    "the counts of its words": _counted,
    "the order of its words": _words,
    "the log-probabilities of its tokens": _unigram,
    "the order of its merges": _merged,
    "the order of its tokens": _pieces,
}
"""What priors are read from, as records name it. The first that answers is taken; the last always does.

``verify`` computes the weights of a record again by this name: a rule that changes needs another one.
"""

ORIGINS = tuple(_KINDS)


# ---- tokenizer.json


def _model(source: _Source) -> Mapping[str, Any]:
    model = (source.parsed or {}).get("model")
    return model if isinstance(model, dict) else {}


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    """The two parts of each merge; older files have one text with a blank between them."""
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts):
            yield parts[0], parts[1]


def _added(source: _Source) -> list[int]:
    """Rows of added tokens; that they are numbers of rows was checked with the vocabulary."""
    return [added["id"] for added in (source.parsed or {}).get("added_tokens") or ()]


def _unadded(source: _Source) -> list[str | None]:
    """The tokens without the added ones, whose place says nothing."""
    tokens = [*source.tokens]
    for row in _added(source):
        tokens[row] = None
    return tokens


def _framed(source: _Source, shares: Shares) -> Shares:
    """Shares with those of the tokens that stand around every text."""
    if not source.framed or not shares.any():
        return shares
    names = {*_template(source.parsed.get("post_processor"))} if source.parsed else {"[CLS]", "[SEP]"}
    names |= {*_configured(source.checkpoint.folder)}
    found: Shares = shares / shares.sum()
    found[[row for row, token in enumerate(source.tokens) if token in names]] = 1 / TEXT_LENGTH
    return found


def _template(processor: Any) -> Iterator[str]:
    """The tokens that a post-processor of tokenizer.json adds to a single text."""
    waiting = [processor]
    while waiting:
        step = waiting.pop()
        if not isinstance(step, dict):
            continue
        waiting += _listed(step.get("processors"))
        specials = (
            each.get("SpecialToken") for each in _listed(step.get("single")) if isinstance(each, dict)
        )
        names = [special.get("id") for special in specials if isinstance(special, dict)]
        names += (pair[0] for pair in map(_listed, (step.get("cls"), step.get("sep"))) if pair)
        yield from (name for name in names if isinstance(name, str))


def _configured(folder: Path) -> Iterator[str]:
    """Tokens that begin and end texts by tokenizer_config.json, and those in brackets of chat templates."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.exists() else {}
    for key in ("bos_token", "eos_token"):
        token = config.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str):
            yield name
    templates = [config.get("chat_template")]
    if (file := folder / "chat_template.jinja").exists():
        templates.append(read_limited(file, JSON_LIMIT).decode(errors="replace"))
    for template in templates:
        yield from reserved_in(template) if isinstance(template, str) else ()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
