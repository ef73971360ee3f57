"""A file of word vectors as a checkpoint that holds one table and its tokens."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import Checkpoint, Edit, Form
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.safetensors.file import NEW_METADATA, Safetensors, size_of_new, write_tensors
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.checkpoint.vectors.base import StoredVectors, VectorFormat
from embcompress.checkpoint.vectors.record import RECORD_KEY, TABLE, VOCABULARY, VectorRecord
from embcompress.checkpoint.vectors.registry import certain_format
from embcompress.dtypes import DTYPES
from embcompress.progress import Progress, Steps, silent
from embcompress.storage.rawio import CHUNK

FORMAT = "word vectors"
"""Format name of word vectors, dense or compressed."""


class VectorFile(Checkpoint):
    """A checkpoint of dense word vectors. The file is read on first use of its rows or tokens.

    An edited copy is a .safetensors file (``vectors/compressed.py``), since formats of word vectors hold
    dense tables only.

    Args:
        path: the file.
        kind: its format.
        progress: called while the file is read.
    """

    format = FORMAT

    def __init__(self, path: Path, kind: VectorFormat, progress: Progress) -> None:
        self.path = path
        self.aliases: Mapping[str, str] = {}
        self.config: Mapping[str, Any] = {}
        self.description: Description | None = None
        self.weight_files = kind.files(path)
        self.size = sum(file.stat().st_size for file in self.weight_files)
        self._kind, self._progress = kind, progress
        self._opened: StoredVectors | None = None

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Ask the formats of word vectors."""
        return certain_format(path) is not None

    @classmethod
    def open(cls, path: Path, progress: Progress = silent) -> Self:
        kind = certain_format(path)
        assert kind is not None, "it was recognized"
        return cls(path, kind, progress)

    @property
    def _stored(self) -> StoredVectors:
        if self._opened is None:
            self._opened = self._kind.open(self.path, self._progress)
        return self._opened

    @functools.cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:  # type: ignore[override]
        """The table, its tokens as bytes, and what else the format holds."""
        shape, dtype = self._stored.shape, self._stored.dtype
        nbytes = sum(len(token) + 1 for token in self._stored.tokens()) - 1
        extras = self._stored.extras.items()
        return {
            TABLE: TensorInfo(TABLE, dtype, shape, dtype.nbytes(shape[0] * shape[1])),
            VOCABULARY: TensorInfo(VOCABULARY, DTYPES["U8"], (nbytes,), nbytes),
            **{n: TensorInfo(n, e.dtype, e.shape, e.dtype.nbytes(math.prod(e.shape))) for n, e in extras},
        }

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Notes on repeated and on blank tokens, if there are any; all their rows are kept."""
        # A set of the tokens themselves would take ten times the memory.
        hashes, blank = array("q"), None
        for row, token in enumerate(self._stored.tokens()):
            hashes.append(hash(token))
            if blank is None and not token.strip():
                blank = f"the token of row {row:,} is {token.decode()!r}; it is kept"
        again = len(hashes) - len(np.unique(np.frombuffer(hashes, np.int64)))
        repeated = f"rows of tokens that have an earlier row: {again:,}; they are kept" if again else None
        return (*self._stored.notes, *(note for note in (repeated, blank) if note is not None))

    @property
    def record(self) -> VectorRecord:
        """The record of this file for a compressed copy."""
        form = self._kind.dense_form(self.path)
        return VectorRecord.of(self.path, self._kind.name) if form is None else VectorRecord(*form)

    @property
    def copied_size(self) -> int:
        """Size of a .safetensors file with the same table and tokens."""
        return size_of_new(self._entries(Edit(frozenset(), ())), self._metadata, None)

    def form(self, *, dense: bool) -> Form:
        """The format of this file for a dense copy, otherwise safetensors."""
        if dense:
            return Form(self.record.format, self.record.suffix)
        return Form(Safetensors.format, *Safetensors.suffixes)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        self.tensors[name].readable_dtype()
        return self._reader(name)(start, stop)

    def _reader(self, name: str) -> Callable[[int, int], NDArray[Any]]:
        return self._stored.rows if name == TABLE else self._stored.extras[name].read

    def bytes_of(self, name: str) -> Iterator[bytes]:
        """The tokens as a compressed file stores them, or the table."""
        dtype = self.tensors[name].dtype
        assert dtype is not None
        return (dtype.encode(block).tobytes() for block in self._blocks(name))

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The stored tensors; by default the table alone, since the others are not weights."""
        return super().torch_state([TABLE] if names is None else names)

    def _joined(self) -> Iterator[bytes]:
        joined = bytearray()
        for number, token in enumerate(self._stored.tokens()):
            joined += b"\n" + token if number else token
            if len(joined) >= CHUNK:
                yield bytes(joined)
                joined.clear()
        yield bytes(joined)

    def remainder(
        self,
        edit: Edit | None = None,  # noqa: ARG002 - every edit keeps all of it
        description: Description | None = None,  # noqa: ARG002
    ) -> Mapping[str, object]:
        """The metadata of a compressed copy, with the format but not the file's suffix."""
        found = {f"metadata {key}": value for key, value in NEW_METADATA.items()}
        return {**found, f"metadata {RECORD_KEY}": self.record.format}

    @property
    def _metadata(self) -> dict[str, str]:
        return {RECORD_KEY: self.record.to_json(), **NEW_METADATA}

    def check_integrity(self, progress: Progress = silent) -> None:
        """Do nothing: errors in the file show when it is read."""

    def sidecar(self, key: str) -> object:  # noqa: ARG002
        """None: the formats hold nothing else."""
        return None

    def check_editable(self) -> None:
        self._stored.check_editable()

    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Exactly the bytes that :meth:`write` produces."""
        return size_of_new(self._entries(edit), self._metadata, description)

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write the edited copy to ``target`` as a .safetensors file."""
        entries = self._entries(edit)
        advance = Steps(progress, "write", sum(entry.nbytes for entry in entries))
        write_tensors(target, entries, self._metadata, description, advance)
        return ()

    def _entries(self, edit: Edit) -> list[NewTensor]:
        """The tensors of a copy, wide types first so that every tensor is aligned; see ``Safetensors``."""
        kept = (info for name, info in self.tensors.items() if name not in edit.remove)
        entries = [*edit.add, *map(self._kept, kept)]
        return sorted(entries, key=lambda entry: -entry.dtype.bits)

    def _kept(self, info: TensorInfo) -> NewTensor:
        assert info.dtype is not None
        return NewTensor(
            info.name, info.dtype, info.shape, info.name, functools.partial(self._blocks, info.name)
        )

    def _blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """A tensor in pieces of a few megabytes."""
        if name == VOCABULARY:
            return (np.frombuffer(piece, np.uint8) for piece in self._joined())
        shape = self.tensors[name].shape
        read = self._reader(name)
        step = max(1, CHUNK // (4 * math.prod(shape[1:]) or 1))
        return (read(i, min(i + step, shape[0])) for i in range(0, shape[0], step))

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Rewrite the header in place; see ``Safetensors.amend``."""
        Safetensors.amend(target, description)

    def close(self) -> None:
        """Close the file and drop its temporary copy; further calls do nothing."""
        if self._opened is not None:
            self._opened.close()
