"""fastText models as a format of word vectors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embcompress.checkpoint.tensors import NewTensor
from embcompress.checkpoint.vectors.base import StoredVectors, VectorFormat, Written, suffix_of
from embcompress.checkpoint.vectors.fasttext.dictionary import entries
from embcompress.checkpoint.vectors.fasttext.header import HEADER_BYTES, MAGIC, parse_header
from embcompress.checkpoint.vectors.fasttext.model import COUNTS, LABELS, OUTPUT, SIZES, FastTextModel
from embcompress.checkpoint.vectors.fasttext.subwords import HEADER
from embcompress.checkpoint.vectors.packing import packed
from embcompress.checkpoint.vectors.streamed import counted, split_tokens
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.progress import Progress

_AGAIN = "make the compressed file again from its source"


class FastText(VectorFormat):
    """A model of fastText 0.1 or later, dense (.bin) or quantized (.ftz), plain or compressed.

    Quantized models are only read.
    """

    name = "fastText model"
    suffixes = (".bin", ".ftz")

    def recognizes(self, path: Path, head: bytes) -> bool:
        """Recognize the magic bytes, or the suffix of quantized models."""
        return head.startswith(MAGIC) or (bool(head) and suffix_of(path) == ".ftz")

    def open(self, path: Path, progress: Progress) -> StoredVectors:
        """Read the dictionary; rows are read from the file on demand."""
        return FastTextModel(path, progress)

    def write(self, target: Path, new: Written) -> None:
        """Write the model with ``new``'s rows as its input matrix, and everything else from its extras."""
        missing = next((name for name in (HEADER, COUNTS, OUTPUT) if name not in new.extras), None)
        if missing is not None:
            raise InputError(f"{target.name}: holds no {missing}", remedy=_AGAIN)
        head = b"".join(_pieces(new.extras[HEADER]))
        header = parse_header(head, f"{target.name}: {HEADER}")
        stored, output = new.extras[COUNTS], new.extras[OUTPUT]
        counts = itertools.chain.from_iterable(block.tolist() for block in stored.blocks())
        fits = (
            (header.rows, header.dimension) == new.shape
            and header.pruned is None
            and len(head) == HEADER_BYTES + 1
            and (stored.dtype.name, stored.shape) == ("I64", (header.words + header.labels,))
            and (output.dtype.name, output.shape[1:]) == ("F32", (header.dimension,))
            and (LABELS in new.extras) == (header.labels > 0)
        )
        if not fits:
            raise InputError(f"{target.name}: {HEADER} does not fit the other tensors", remedy=_AGAIN)
        with packed(target) as file:
            file.write(head[:HEADER_BYTES])
            file.writelines(entries(new.tokens, 0, counts))
            if header.labels:
                labels = counted(split_tokens(_pieces(new.extras[LABELS]), LABELS), header.labels, LABELS)
                file.writelines(entries(labels, 1, counts))
            file.write(SIZES.pack(False, *new.shape))
            for block in new.blocks:
                file.write(np.ascontiguousarray(block, "<f4").tobytes())
                new.advance(block.nbytes)
            file.write(head[HEADER_BYTES:] + SIZES.pack(False, *output.shape)[1:])
            file.writelines(_pieces(output))

    def size_of(self, shape: tuple[int, int], dtype: DType, token_bytes: int) -> int:  # noqa: ARG002
        return HEADER_BYTES + 2 * SIZES.size + 4 * shape[0] * shape[1] + token_bytes


def _pieces(tensor: NewTensor) -> Iterator[bytes]:
    """The stored bytes of a tensor."""
    return (tensor.dtype.encode(block).tobytes() for block in tensor.blocks())
