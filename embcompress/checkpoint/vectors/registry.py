"""The registry of formats of word vectors. A new format is one file here and one line below."""

from __future__ import annotations

from pathlib import Path

from embcompress.checkpoint.vectors.base import PACKED_SUFFIXES, VectorFormat
from embcompress.checkpoint.vectors.fasttext import FastText
from embcompress.checkpoint.vectors.glove import GloVe
from embcompress.checkpoint.vectors.npy import Npy
from embcompress.checkpoint.vectors.packing import is_zip_of_vectors
from embcompress.checkpoint.vectors.stream import read_head
from embcompress.checkpoint.vectors.word2vec_binary import Word2VecBinary
from embcompress.checkpoint.vectors.word2vec_text import Word2VecText
from embcompress.errors import InputError
from embcompress.storage.regular import first_bytes

VECTOR_FORMATS: tuple[VectorFormat, ...] = (FastText(), Npy(), Word2VecText(), Word2VecBinary(), GloVe())
"""Formats in the order in which they are tried; contract tests run over them."""

_MODELS = (b"PK", b"\x80", b"\x08")
"""First bytes of PyTorch files (zip archives, pickles) and ONNX models. An archive may also hold vectors."""


def certain_format(path: Path) -> VectorFormat | None:
    """The format of a file that may be anything, None if it holds no word vectors.

    Raises:
        UsageError: a zip archive with several files of vectors.
        InputError: a compressed file that is corrupt.
    """
    if first_bytes(path, 2).startswith(_MODELS) and not is_zip_of_vectors(path):
        return None
    try:
        head = read_head(path)
    except InputError:
        if path.suffix.lower() in PACKED_SUFFIXES:
            raise
        return None  # an empty file, which its own format reports
    return next((kind for kind in VECTOR_FORMATS if kind.is_certain(path, head)), None)


def format_named(name: str, where: object) -> VectorFormat:
    """The format that a record in ``where`` names.

    Raises:
        InputError: this version does not know it.
    """
    found = next((kind for kind in VECTOR_FORMATS if kind.name == name), None)
    if found is None:
        raise InputError(
            f"{where}: made from vectors in the format {name!r}", remedy="install a newer embcompress"
        )
    return found
