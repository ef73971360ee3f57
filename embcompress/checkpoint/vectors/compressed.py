"""Compressed word vectors: a .safetensors file that holds the parts of the table and its tokens."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint, Edit, Form
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.checkpoint.safetensors.header import Header, read_header
from embcompress.checkpoint.tensors import NewTensor
from embcompress.checkpoint.vectors.base import Written
from embcompress.checkpoint.vectors.fasttext.subwords import header_of
from embcompress.checkpoint.vectors.file import FORMAT
from embcompress.checkpoint.vectors.record import RECORD_KEY, TABLE, VOCABULARY, parse_record
from embcompress.checkpoint.vectors.registry import format_named
from embcompress.checkpoint.vectors.streamed import counted, split_tokens
from embcompress.dtypes import DType
from embcompress.errors import InputError
from embcompress.progress import Progress, Steps, silent
from embcompress.storage.rawio import read_at
from embcompress.storage.regular import open_regular

_LONGEST_HEADER = 1 << 18
"""Longest header that is inspected, in bytes; the ones written here take a few thousand."""

_AGAIN = "make the file again from its source"


class CompressedVectors(Safetensors):
    """A .safetensors file made from a file of word vectors; expanding it gives the vectors back."""

    format = FORMAT

    def __init__(self, path: Path, fd: int, header: Header, size: int) -> None:
        super().__init__(path, fd, header, size)
        self.record = parse_record(header.metadata, path)
        self._kind = format_named(self.record.format, path)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Recognize a file by the record in its metadata."""
        if not super().recognizes(path):
            return False
        fd = open_regular(path)
        try:
            if int.from_bytes(read_at(fd, 8, 0), "little") > _LONGEST_HEADER:
                return False
            return RECORD_KEY in read_header(fd, os.fstat(fd).st_size, path).metadata
        except InputError:
            return False
        finally:
            os.close(fd)

    def form(self, *, dense: bool) -> Form:
        """The format of the source for a dense copy, otherwise safetensors."""
        if dense:
            return Form(self._kind.name, self.record.suffix)
        return Form(Safetensors.format, self.path.suffix)

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The stored tensors; by default the table alone, since the others are not weights."""
        tables = self.description.tables if self.description else ()
        kept = {TABLE, *(part for table in tables for part in table.part_names)}
        weights = [name for name in self.tensors if name in kept]
        return super().torch_state(weights if names is None else names)

    def remainder(
        self, edit: Edit | None = None, description: Description | None = None
    ) -> Mapping[str, object]:
        """The metadata, and of our own record only the format, since a file may have been renamed."""
        return {**super().remainder(edit, description), f"metadata {RECORD_KEY}": self.record.format}

    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Exact for a safetensors copy, approximate for a dense one."""
        if description is not None:
            return super().size_after(edit, description)
        table = self._dense(edit)
        extras = sum(tensor.nbytes for tensor in self._extras(edit).values())
        return self._kind.size_of(_shape(table), table.dtype, self.tensors[VOCABULARY].nbytes) + extras

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write the edited copy, in the format of the source if its table is dense."""
        if description is not None:
            return super().write(target, edit, description, progress)
        table = self._dense(edit)
        shape, advance = _shape(table), Steps(progress, "write", table.nbytes)
        tokens = tokens_of(self, shape[0]) or ()
        extras = self._extras(edit)
        self._kind.write(target, Written(shape, table.dtype, tokens, table.blocks(), advance, extras))
        return ()

    def _extras(self, edit: Edit) -> Mapping[str, NewTensor]:
        """Everything that a dense copy holds beside the table and its tokens."""
        known = (info for name, info in self.tensors.items() if name not in {TABLE, VOCABULARY, *edit.remove})
        kept = [
            NewTensor(i.name, i.dtype, i.shape, i.name, partial(self._stored_blocks, i.name, i.dtype))
            for i in known
            if i.dtype is not None and i.dtype.storage
        ]
        return {new.name: new for new in (*kept, *edit.add) if new.name != TABLE}

    def _stored_blocks(self, name: str, dtype: DType) -> Iterator[NDArray[Any]]:
        return (np.frombuffer(piece, dtype.storage) for piece in self.bytes_of(name))

    def _dense(self, edit: Edit) -> NewTensor:
        """The dense table that an edit without a description restores.

        Raises:
            InputError: there is none, or its vocabulary is missing.
        """
        found = next((new for new in edit.add if new.name == TABLE), None)
        if found is None or VOCABULARY not in self.tensors:
            missing = VOCABULARY if found else f"compressed {TABLE}"
            raise InputError(f"{self.path}: holds no {missing}", remedy=_AGAIN)
        return found


def _shape(table: NewTensor) -> tuple[int, int]:
    rows, columns = table.shape
    return rows, columns


def tokens_of(checkpoint: Checkpoint, rows: int) -> Iterator[bytes] | None:
    """The token of each row of word vectors, None if the checkpoint is something else.

    A fastText model has rows after those, of n-grams, which have no token.

    Args:
        checkpoint: dense or compressed.
        rows: rows of its table, V.

    Raises:
        InputError: the tokens are stored in the wrong form, or are more or fewer than the rows.
    """
    info = checkpoint.tensors.get(VOCABULARY)
    if info is None:
        return None
    if (header := header_of(checkpoint)) is not None:
        rows = min(rows, header.words)
    where = f"{checkpoint.path}: {VOCABULARY}"
    if info.layout != "dense" or info.dtype is None or info.dtype.name != "U8" or len(info.shape) != 1:
        raise InputError(f"{where} is not a list of bytes", remedy=_AGAIN)
    return counted(split_tokens(checkpoint.bytes_of(VOCABULARY), where), rows, where)
