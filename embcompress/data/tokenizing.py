"""From texts to token ids: rules that split words, with a vocabulary, and tokenizer.json files.

A rule is one subclass of :class:`RecordedTokenizer` and one line in ``TOKENIZERS``. What it writes about
itself (:meth:`RecordedTokenizer.to_dict`) goes into the checkpoint, so that a classifier needs no other file.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from embcompress.checkpoint.base import Checkpoint
from embcompress.data.charsmaps import check_maps
from embcompress.data.encoded import Encoded
from embcompress.errors import InputError, UsageError

PADDING, UNKNOWN = "<pad>", "<unk>"
"""Tokens 0 and 1 of a vocabulary made here."""

RECORD_KEY = "classifier"
"""Under which key the record of a classifier stands beside its tensors; see ``Checkpoint.beside``."""

_PADDINGS = ("[PAD]", "<pad>", "<|pad|>")
_UNKNOWNS = ("[UNK]", "<unk>", "<|unk|>")

_SPARSEST = 2
"""How many ids there may be for each token: a table has a row for every id."""

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
"""Words with their apostrophes, and punctuation marks one by one."""


class Tokenizer(abc.ABC):
    """Turns texts into token ids.

    Attributes:
        vocabulary: token of each id.
        padding: id that fills short texts up.
    """

    vocabulary: tuple[str, ...]
    padding: int

    @abc.abstractmethod
    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Ids of each text, cut off after ``max_length``; a text without tokens is one unknown token."""

    def count(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text as its model reads it, whole; for counting how often tokens occur."""
        return self.encode(texts, None)


class RecordedTokenizer(Tokenizer):
    """A tokenizer that a checkpoint carries in its record.

    Attributes:
        rule: registry name.
    """

    rule: ClassVar[str]

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What :func:`tokenizer_from_dict` makes it from again, ready for JSON."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError: ``raw`` is none of ours.
        """


class _Splitting(RecordedTokenizer):
    """A rule that splits a text into tokens, looked up in a vocabulary of tokens seen before."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self.padding = 0
        self._ids = {token: number for number, token in enumerate(self.vocabulary)}

    @classmethod
    def build(cls, texts: Iterable[str], *, min_count: int = 1, max_tokens: int | None = None) -> Self:
        """The rule with the tokens of ``texts``, the frequent ones first.

        Args:
            texts: where to count.
            min_count: how often a token must occur.
            max_tokens: most tokens besides padding and unknown, None for all.
        """
        counts = Counter(token for text in texts for token in cls.split(text))
        kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
        own = [token for token in kept if token not in (PADDING, UNKNOWN)]
        return cls((PADDING, UNKNOWN, *own[:max_tokens]))

    @staticmethod
    @abc.abstractmethod
    def split(text: str) -> list[str]:
        """The tokens of a text."""

    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Look every token up; see the base class."""
        unknown = self._ids[UNKNOWN]
        get = self._ids.get
        return Encoded.of(
            [get(token, unknown) for token in self.split(text)[:max_length]] or [unknown] for text in texts
        )

    def to_dict(self) -> dict[str, Any]:
        """The name of the rule and the vocabulary."""
        return {"rule": self.rule, "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """See the base class."""
        vocabulary = raw["vocabulary"]
        if not isinstance(vocabulary, list) or not all(isinstance(token, str) for token in vocabulary):
            raise TypeError("the vocabulary is no list of texts")
        if vocabulary[:2] != [PADDING, UNKNOWN] or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"a vocabulary begins with {PADDING} and {UNKNOWN} and holds no token twice")
        return cls(vocabulary)


class Words(_Splitting):
    """Lower-cased words with their apostrophes, and single punctuation marks."""

    rule = "words"

    @staticmethod
    def split(text: str) -> list[str]:
        """See the class."""
        # One letter with its accent, however it is written down.
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


class Whitespace(_Splitting):
    """What stands between white space, case kept; for texts that are tokenized already."""

    rule = "whitespace"

    @staticmethod
    def split(text: str) -> list[str]:
        """See the class."""
        return text.split()


class TokenizerJson(RecordedTokenizer):
    """A tokenizer.json of the Hugging Face ``tokenizers`` library, without its special tokens.

    Needs the extra ``embcompress[tokenizers]``.
    """

    rule = "tokenizer.json"

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokenizer = _read(text)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._ids: dict[str, int] = self._tokenizer.get_vocab()
        by_id = {number: token for token, number in self._ids.items()}
        if max(by_id, default=0) > _SPARSEST * (len(by_id) + 1024):
            raise InputError(
                f"tokenizer.json: {len(by_id):,} tokens have ids up to {max(by_id):,}",
                remedy="take the tokenizer that belongs to this model",
            )
        self.vocabulary = tuple(by_id.get(i, f"<{i}>") for i in range(max(by_id, default=-1) + 1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The tokenizer in a file.

        Raises:
            InputError: it is none.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"{path}: is no text in UTF-8", remedy="give a tokenizer.json") from None

    @functools.cached_property
    def padding(self) -> int:  # type: ignore[override]
        """The id of [PAD] or <pad>; asked for only where texts are filled up.

        Raises:
            InputError: there is none.
        """
        found = next((self._ids[name] for name in _PADDINGS if name in self._ids), None)
        if found is None:
            raise InputError(
                f"tokenizer.json: has no padding token ({', '.join(_PADDINGS)})",
                remedy="add one, or use --tokenizer words",
            )
        return found

    def count(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text as its model reads it: whole, and with the special tokens around it."""
        with _told():
            return Encoded.of(one.ids for one in self._tokenizer.encode_batch_fast(list(texts)))

    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Encode with the library, without special tokens; see the base class."""
        with _told():
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return Encoded.of(one.ids[:max_length] or [self._unknown] for one in found)

    @functools.cached_property
    def _unknown(self) -> int:
        return next((self._ids[name] for name in _UNKNOWNS if name in self._ids), self.padding)

    def to_dict(self) -> dict[str, Any]:
        """The name of the rule and the text of the file."""
        return {"rule": self.rule, "json": self._text}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """See the base class."""
        if not isinstance(raw["json"], str):
            raise TypeError("a tokenizer.json is text")
        return cls(raw["json"])


TOKENIZERS: dict[str, type[RecordedTokenizer]] = {
    kind.rule: kind for kind in (Words, Whitespace, TokenizerJson)
}
"""Every rule by name; contract tests run over it."""

SPLITTING: dict[str, type[_Splitting]] = {kind.rule: kind for kind in (Words, Whitespace)}
"""The rules that need no file: their vocabulary is that of the training texts."""


def tokenizer_from_dict(raw: Mapping[str, Any]) -> RecordedTokenizer:
    """Make a tokenizer from what :meth:`RecordedTokenizer.to_dict` wrote.

    Raises:
        ValueError, KeyError, TypeError: ``raw`` is none of ours.
    """
    return TOKENIZERS[raw["rule"]].from_dict(raw)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a checkpoint brings: in its own record, or as ``tokenizer.json`` beside its weights.

    Raises:
        UsageError: there is none.
        InputError: it cannot be read.
    """
    record = checkpoint.sidecar(RECORD_KEY)
    if isinstance(record, dict):
        try:
            return tokenizer_from_dict(record["tokenizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{checkpoint.path}: its tokenizer cannot be read ({type(error).__name__}: {error})",
                remedy="train the classifier again",
            ) from None
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UsageError(
            f"{checkpoint.path}: brings no tokenizer to count tokens with",
            remedy=f"put the model's tokenizer.json into {folder}, or give counts with --weights",
        )
    return TokenizerJson.read(file)


def _read(text: str) -> Any:
    """The library's tokenizer from the text of a tokenizer.json."""
    try:
        import tokenizers
    except ImportError:
        raise UsageError(
            "tokenizer.json needs the library tokenizers", remedy="pip install 'embcompress[tokenizers]'"
        ) from None
    with _told():
        check_maps(text)
        return tokenizers.Tokenizer.from_str(text)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Make an error of whatever the library raises; a panic of its Rust code is no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"tokenizer.json: cannot be read ({error})", remedy="download it again") from None
