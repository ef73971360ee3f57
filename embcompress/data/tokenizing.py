"""Turn texts into token ids: splitting rules with a vocabulary, and tokenizer.json files.

A rule is one subclass of :class:`RecordedTokenizer` and one line in ``TOKENIZERS``. Its
:meth:`RecordedTokenizer.to_dict` goes into the checkpoint, so that a classifier needs no other file.
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
from embcompress.checkpoint.directory.shards import JSON_LIMIT
from embcompress.data.charsmaps import check_maps
from embcompress.data.encoded import Encoded
from embcompress.errors import InputError, UsageError
from embcompress.storage.regular import read_limited

PADDING, UNKNOWN = "<pad>", "<unk>"
"""Tokens 0 and 1 of a vocabulary made here."""

RECORD_KEY = "classifier"
"""Key of a classifier's record in its checkpoint; see ``Checkpoint.sidecar``."""

_PADDINGS = ("[PAD]", "<pad>", "<|pad|>")
_UNKNOWNS = ("[UNK]", "<unk>", "<|unk|>")

_SPARSEST = 2
"""Most ids per token on average: a table has a row for every id."""

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
"""Words with their apostrophes, and single punctuation marks."""


class Tokenizer(abc.ABC):
    """Turns texts into token ids.

    Attributes:
        vocabulary: token of each id.
        padding: id that pads short texts.
    """

    vocabulary: tuple[str, ...]
    padding: int

    @abc.abstractmethod
    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Ids of each text, at most ``max_length``; a text without tokens becomes one unknown token."""

    def count(self, texts: Sequence[str]) -> Encoded:
        """All ids of each text as its model would read it, for counting tokens."""
        return self.encode(texts, None)


class RecordedTokenizer(Tokenizer):
    """A tokenizer that is stored in the record of a checkpoint.

    Attributes:
        rule: registry name.
    """

    rule: ClassVar[str]

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The tokenizer as plain data, ready for JSON; :func:`tokenizer_from_dict` reads it back."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError: ``raw`` was not made by :meth:`to_dict`.
        """


class _Splitting(RecordedTokenizer):
    """A rule that splits a text into tokens and looks them up in a vocabulary."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self.padding = 0
        self._ids = {token: number for number, token in enumerate(self.vocabulary)}

    @classmethod
    def build(cls, texts: Iterable[str], *, min_count: int = 1, max_tokens: int | None = None) -> Self:
        """Make the rule with the tokens of ``texts`` as vocabulary, the most frequent first.

        Args:
            texts: the texts to count tokens in.
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
        """Look up every token; those not in the vocabulary become the unknown token."""
        unknown = self._ids[UNKNOWN]
        get = self._ids.get
        return Encoded.of(
            [get(token, unknown) for token in self.split(text)[:max_length]] or [unknown] for text in texts
        )

    def to_dict(self) -> dict[str, Any]:
        """The name of the rule, and the vocabulary."""
        return {"rule": self.rule, "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        vocabulary = raw["vocabulary"]
        if not isinstance(vocabulary, list) or not all(isinstance(token, str) for token in vocabulary):
            raise TypeError("the vocabulary is not a list of texts")
        if vocabulary[:2] != [PADDING, UNKNOWN] or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"a vocabulary begins with {PADDING} and {UNKNOWN} and holds no token twice")
        return cls(vocabulary)


class Words(_Splitting):
    """Lower-cased words with their apostrophes, and single punctuation marks."""

    rule = "words"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split Unicode-normalized, lower-cased text into words and punctuation marks."""
        # NFC makes an accented letter one character, however it was encoded.
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


class Whitespace(_Splitting):
    """The runs between white space, in their own case; for texts that are tokenized already."""

    rule = "whitespace"

    @staticmethod
    def split(text: str) -> list[str]:
        """Split at white space."""
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
                remedy="use the tokenizer that belongs to this model",
            )
        self.vocabulary = tuple(by_id.get(i, f"<{i}>") for i in range(max(by_id, default=-1) + 1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the tokenizer in a file.

        Raises:
            InputError: the file is not a tokenizer.json.
        """
        try:
            return cls(read_limited(path, JSON_LIMIT).decode())
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8 text", remedy="give a tokenizer.json") from None

    @functools.cached_property
    def padding(self) -> int:  # type: ignore[override]
        """The id of [PAD] or <pad>; needed only to pad texts.

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
        """All ids of each text as its model would read it, with the special tokens."""
        with _library_errors():
            return Encoded.of(one.ids for one in self._tokenizer.encode_batch_fast(list(texts)))

    def encode(self, texts: Sequence[str], max_length: int | None) -> Encoded:
        """Encode with the library, without special tokens."""
        with _library_errors():
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return Encoded.of(one.ids[:max_length] or [self._unknown] for one in found)

    @functools.cached_property
    def _unknown(self) -> int:
        return next((self._ids[name] for name in _UNKNOWNS if name in self._ids), self.padding)

    def to_dict(self) -> dict[str, Any]:
        """The name of the rule, and the text of the file."""
        return {"rule": self.rule, "json": self._text}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        if not isinstance(raw["json"], str):
            raise TypeError("a tokenizer.json must be text")
        return cls(raw["json"])


TOKENIZERS: dict[str, type[RecordedTokenizer]] = {
    kind.rule: kind for kind in (Words, Whitespace, TokenizerJson)
}
"""Every rule by name; contract tests run over it."""

SPLITTING: dict[str, type[_Splitting]] = {kind.rule: kind for kind in (Words, Whitespace)}
"""The rules that need no file: they take their vocabulary from the training texts."""


def tokenizer_from_dict(raw: Mapping[str, Any]) -> RecordedTokenizer:
    """Make a tokenizer from the result of :meth:`RecordedTokenizer.to_dict`.

    Raises:
        ValueError, KeyError, TypeError: ``raw`` is not such a result.
    """
    return TOKENIZERS[raw["rule"]].from_dict(raw)


def tokenizer_of(checkpoint: Checkpoint) -> RecordedTokenizer | None:
    """The tokenizer in a checkpoint's own record, or in ``tokenizer.json`` next to its weights; None without.

    Raises:
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
    folder = checkpoint.folder
    file = folder / "tokenizer.json"
    return TokenizerJson.read(file) if file.exists() else None


def _read(text: str) -> Any:
    """The library's tokenizer from the text of a tokenizer.json."""
    try:
        import tokenizers
    except ImportError:
        raise UsageError(
            "tokenizer.json needs the library tokenizers", remedy="pip install 'embcompress[tokenizers]'"
        ) from None
    with _library_errors():
        check_maps(text)
        return tokenizers.Tokenizer.from_str(text)


@contextlib.contextmanager
def _library_errors() -> Iterator[None]:
    """Turn whatever the library raises into an InputError; a panic of its Rust code is no ``Exception``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"tokenizer.json: cannot be read ({error})", remedy="download it again") from None
