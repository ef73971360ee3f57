"""How large a share of all tokens each token is to be expected to have, read from a vocabulary alone.

A vocabulary is made from texts and keeps something of their counts: the log-probabilities of a unigram model,
the order in which BPE merged pairs, or the order of tokens, the most frequent first. By Zipf's law the share
of the token of rank r is then about 1/r. Functions return shares that need not add up to 1; a token that is
in no text has 0.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]
"""Expected share of each token (V), 0 or more."""

Tokens = Sequence[str | None]
"""The token of each row; None where a row has none."""

FLATTENING = 2.7
"""c of 1/(rank + c), with Mandelbrot's value for English words."""

LEFT_OVER = 0.3
"""Least part of a pair that further merges leave, of all its occurrences when BPE merged it."""

ALPHABET_SHARE = 0.2
"""How much single characters have together, of what longer tokens with characters of their block have."""

_RUN = 8
"""Single characters in a row in the order of their code points that are no accident: by chance 1 of 8!."""
_SORTED, _SORTED_HEAD, _HEAD = 0.9, 0.75, 128
"""Shares of neighbours in alphabetical order, of all tokens and of so many first ones, from which a list is
taken to be sorted. By chance: half. Where equal counts are in alphabetical order nearly all neighbours are,
but not the first ones, whose counts differ."""
_ENOUGH, _STANDARD_ERRORS = 200, 4
"""Tokens from which on the order is tested, and standard errors by which the first are shorter at least: by
chance 1 of 30,000."""
_BLOCK = 7
"""Bits of a code point within its block: 128 characters, of which the first are ASCII."""

_CONTINUATION = "##"
_WORD_BEGINS = ("\u2581", "\u0120")
"""How SentencePiece and byte-level BPE write the space before a word."""
_RESERVED = re.compile(r"\[[^\[\]\s]+\]|<[^<>\s]+>")
"""[PAD], [unused7], <s>, <extra_id_0>, <0x0A>: tokens that stand for no text, or for a single byte."""


def from_scores(logs: NDArray[np.float64]) -> Shares:
    """Of a unigram model: e to the power of each score. Control tokens have score 0, and are in no text."""
    known = np.isfinite(logs) & (logs < 0)
    top = logs[known].max(initial=-np.inf)
    return np.where(known, np.exp(np.where(known, logs - top, 0)), 0.0)


def from_order(tokens: Tokens) -> Shares:
    """Of words in the order of frequency, by Zipf's law; all 0 if they are in another one."""
    return _by_rank(_usable(tokens))


def from_pieces(tokens: Tokens) -> Shares:
    """Of WordPiece, where an alphabet in the order of code points stands before or behind all else."""
    usable = _usable(tokens)
    alphabet = frozenset(_alphabet(usable))
    shares = _by_rank(["" if row in alphabet else token for row, token in enumerate(usable)])
    return _with_alphabet(shares, usable, alphabet)


def from_merges(tokens: Tokens, merges: Iterable[tuple[str, str]]) -> Shares:
    """Of BPE, by the order of merges.

    A merged pair is in fewer texts afterwards, since further merges consume it: each takes its own share from
    both of its parts. What is no result of a merge is the alphabet: characters or bytes.
    """
    row_of = {token: row for row, token in enumerate(tokens) if token is not None}
    parts: dict[int, tuple[int, int]] = {}
    for left, right in merges:
        row = row_of.get(left + right)
        if row is not None and row not in parts and left in row_of and right in row_of:
            parts[row] = row_of[left], row_of[right]
    merged = np.zeros(len(tokens))
    merged[[*parts]] = _zipf(len(parts))
    left_over = merged.copy()
    for row, pair in parts.items():
        left_over[[*pair]] -= merged[row]
    shares = np.maximum(left_over, LEFT_OVER * merged)
    usable = _usable(tokens)
    alphabet = (row for row, token in enumerate(usable) if len(token) == 1 and row not in parts)
    return _with_alphabet(shares, usable, frozenset(alphabet))


def is_reserved(token: str) -> bool:
    """Whether a token stands for no text: a name in brackets."""
    return _RESERVED.fullmatch(token) is not None


def reserved_in(text: str) -> Iterator[str]:
    """The names in brackets in a text."""
    return (found[0] for found in _RESERVED.finditer(text))


def _usable(tokens: Tokens) -> list[str]:
    """The tokens, empty where they stand for no text."""
    return ["" if token is None or is_reserved(token) else token for token in tokens]


def _by_rank(tokens: Sequence[str]) -> Shares:
    """Zipf's law over the tokens that are not empty; all 0 if they are not in the order of frequency."""
    rows = [row for row, token in enumerate(tokens) if token]
    listed = [tokens[row] for row in rows]
    shares = np.zeros(len(tokens))
    if not (_is_alphabetical(listed) or _is_accidental(listed)):
        shares[rows] = _zipf(len(rows))
    return shares


def _is_alphabetical(tokens: Sequence[str]) -> bool:
    ascending = np.array([one <= other for one, other in itertools.pairwise(tokens)])
    if len(tokens) <= _RUN:
        return False
    return bool(ascending.mean() >= _SORTED and ascending[:_HEAD].mean() >= _SORTED_HEAD)


def _is_accidental(tokens: Sequence[str]) -> bool:
    """Whether the first tenth of the tokens is no shorter than the others.

    Frequent words are short (Zipf 1935), so that it is shorter where the order is one of frequency: in six
    vocabularies by 12 to 85 standard errors.
    """
    sizes = (len(token.removeprefix(_CONTINUATION)) for token in tokens)
    lengths = np.log([size for size in sizes if size > 1])
    if len(lengths) < _ENOUGH:
        return False
    first = lengths[: len(lengths) // 10]
    return bool(lengths.mean() - first.mean() < _STANDARD_ERRORS * lengths.std() / np.sqrt(len(first)))


def _zipf(count: int) -> Shares:
    shares: Shares = 1 / (np.arange(1, count + 1) + FLATTENING)
    return shares


def _alphabet(tokens: Sequence[str]) -> Iterable[int]:
    """Rows of single characters that stand in long runs in the order of their code points."""
    run: list[int] = []
    for row, token in enumerate([*tokens, ""]):
        character = token.removeprefix(_CONTINUATION)
        if len(character) == 1 and run and tokens[run[-1]].removeprefix(_CONTINUATION) < character:
            run.append(row)
            continue
        if len(run) >= _RUN:
            yield from run
        run = [row] if len(character) == 1 else []


def _with_alphabet(shares: Shares, tokens: Sequence[str], alphabet: Collection[int]) -> Shares:
    """Shares with those of single characters, whose order says nothing, and which are there to be complete.

    The characters of one block of Unicode share alike in a part of what longer tokens have whose characters
    are of that block: so letters and punctuation of the language of the vocabulary weigh more than those of
    others. None has less than the least share of the others; within a word (``##x``) none has more.
    """
    if not shares.any():
        return shares
    masses = _masses(shares, tokens)
    members = Counter(_block(tokens[row]) for row in alphabet if len(tokens[row]) == 1)
    least = shares[shares > 0].min()
    found = shares.copy()
    for row in alphabet:
        found[row] = least
        if len(tokens[row]) == 1:
            block = _block(tokens[row])
            found[row] = max(least, ALPHABET_SHARE * masses[block] / members[block])
    return found


def _masses(shares: Shares, tokens: Sequence[str]) -> Mapping[int, float]:
    """How much the characters of each block have, each token's share split among its characters."""
    masses: defaultdict[int, float] = defaultdict(float)
    for row in np.flatnonzero(shares).tolist():
        characters = tokens[row].removeprefix(_CONTINUATION)
        for character in characters:
            masses[_block(character)] += float(shares[row]) / len(characters)
    return masses


def _block(character: str) -> int:
    """The block of a character; marks of word begins are blanks, and so of the first."""
    return 0 if character in _WORD_BEGINS else ord(character) >> _BLOCK
