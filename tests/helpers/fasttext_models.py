"""Models of fastText, written and read by its format alone, and the rows of n-grams by its own words.

Format: ``FastText::saveModel``, ``Args::save``, ``Dictionary::save``, ``DenseMatrix::save`` and
``QuantMatrix::save`` of https://github.com/facebookresearch/fastText, version 0.9.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np

MAGIC, VERSION = 793712314, 12
CBOW, SKIPGRAM, SUPERVISED = 1, 2, 3


@dataclass(frozen=True)
class Model:
    """A model, dense unless ``quantized`` holds the bytes of a quantized input matrix."""

    words: tuple[bytes, ...]
    table: np.ndarray
    output: np.ndarray
    labels: tuple[bytes, ...] = ()
    counts: tuple[int, ...] = ()
    kind: int = SKIPGRAM
    buckets: int = 0
    minn: int = 0
    maxn: int = 0
    version: int = VERSION
    pruned: tuple[tuple[int, int], ...] | None = None
    quantized: bytes | None = None

    @property
    def dictionary(self) -> bytes:
        counts = self.counts or range(7, 7 + len(self.words) + len(self.labels))
        kinds = [0] * len(self.words) + [1] * len(self.labels)
        each = zip((*self.words, *self.labels), counts, kinds, strict=True)
        return b"".join(word + b"\0" + struct.pack("<qb", count, kind) for word, count, kind in each)

    @property
    def head(self) -> bytes:
        arguments = [
            self.table.shape[1],
            5,
            2,
            1,
            5,
            1,
            2,
            self.kind,
            self.buckets,
            self.minn,
            self.maxn,
            100,
        ]
        sizes = [len(self.words) + len(self.labels), len(self.words), len(self.labels)]
        pruned = -1 if self.pruned is None else len(self.pruned)
        return struct.pack("<2i12id3i2q", MAGIC, self.version, *arguments, 1e-4, *sizes, 12345, pruned)

    def bytes(self) -> bytes:
        pairs = b"".join(struct.pack("<2i", *pair) for pair in self.pruned or ())
        table = b"\1" + self.quantized if self.quantized is not None else b"\0" + dense(self.table)
        return self.head + self.dictionary + pairs + table + b"\0" + dense(self.output)


def model(tokens, matrix, **options) -> Model:
    """A model of these words; its output matrix has no rows unless it is given."""
    words = tuple(token.encode() if isinstance(token, str) else token for token in tokens)
    return replace(Model(words, matrix, np.zeros((0, matrix.shape[1]), np.float32)), **options)


def write(path, tokens, matrix):
    path.write_bytes(model(tokens, matrix).bytes())


def dense(matrix) -> bytes:
    return struct.pack("<2q", *matrix.shape) + matrix.astype("<f4").tobytes()


def read(data: bytes) -> Model:
    """Read a dense model to its last byte."""
    fields = struct.unpack_from("<2i12id3i2q", data)
    assert (fields[0], fields[1]) == (MAGIC, VERSION)
    dimension, kind, buckets, minn, maxn = fields[2], fields[9], fields[10], fields[11], fields[12]
    size, nwords, nlabels, _, pruned = fields[15:]
    assert (size, pruned) == (nwords + nlabels, -1)
    at, entries, counts = 92, [], []
    for entry in range(size):
        end = data.index(b"\0", at)
        count, is_label = struct.unpack_from("<qb", data, end + 1)
        assert is_label == (entry >= nwords)
        entries.append(data[at:end])
        counts.append(count)
        at = end + 10
    matrices = []
    for _ in range(2):
        rows, columns = struct.unpack_from("<2q", data, at + 1)
        assert (data[at], columns) == (0, dimension)
        matrices.append(np.frombuffer(data, "<f4", rows * columns, at + 17).reshape(rows, columns))
        at += 17 + 4 * rows * columns
    assert at == len(data)
    words, labels = tuple(entries[:nwords]), tuple(entries[nwords:])
    return Model(words, *matrices, labels, tuple(counts), kind, buckets, minn, maxn)


def ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """All substrings of ``<word>`` of these lengths, but for a bracket alone."""
    text = f"<{word}>"
    found = []
    for start in range(len(text)):
        for stop in range(start + 1, min(len(text), start + longest) + 1):
            if stop - start >= shortest and text[start:stop] not in ("<", ">"):
                found.append(text[start:stop])
            elif stop - start >= shortest and start > 0 and stop < len(text):
                found.append(text[start:stop])  # a bracket within a word
    return found


def bucket(ngram: str, buckets: int) -> int:
    """FNV-1a of 32 bits; fastText takes the bytes as signed."""
    number = np.uint32(2166136261)
    with np.errstate(over="ignore"):
        for byte in np.frombuffer(ngram.encode(), np.int8):
            number = (number ^ np.uint32(np.int64(byte) & 0xFFFFFFFF)) * np.uint32(16777619)
    return int(number) % buckets


def vector(made: Model, word: str, table: np.ndarray | None = None) -> np.ndarray:
    """What ``get_word_vector`` returns; zeros if there is nothing to compose it of."""
    table = made.table if table is None else table
    encoded = word.encode()
    rows = [made.words.index(encoded)] if encoded in made.words else []
    if word != "</s>" and made.buckets:
        numbers = [bucket(ngram, made.buckets) for ngram in ngrams(word, made.minn, made.maxn)]
        kept = dict(made.pruned) if made.pruned is not None else dict(zip(numbers, numbers, strict=True))
        rows += [len(made.words) + kept[number] for number in numbers if number in kept]
    return table[rows].astype(np.float64).mean(0) if rows else np.zeros(table.shape[1])


def quantizer(books) -> bytes:
    """Codebooks (256 × numbers) of the groups of a row."""
    widths = [book.shape[1] for book in books]
    sizes = struct.pack("<4i", sum(widths), len(widths), widths[0], widths[-1])
    return sizes + b"".join(book.astype("<f4").tobytes() for book in books)


def quantized(codes, books, norm_codes=None, norms=None) -> bytes:
    """A quantized matrix."""
    columns = sum(book.shape[1] for book in books)
    head = struct.pack("<?2qi", norms is not None, len(codes), columns, codes.size)
    tail = b"" if norms is None else norm_codes.astype(np.uint8).tobytes() + quantizer([norms])
    return head + codes.astype(np.uint8).tobytes() + quantizer(books) + tail
