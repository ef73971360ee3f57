"""What every checkpoint format offers, and the edit that is asked of it.

A format is one file with a subclass of :class:`Checkpoint` and one line in ``FILE_FORMATS``
(``checkpoint/files.py``). Reading is by row blocks; writing makes a whole new checkpoint in
which some tensors are replaced and every other byte is carried over. Nothing here imports torch.
"""

from __future__ import annotations

import abc
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from embcompress.checkpoint.description import Description
from embcompress.checkpoint.dtypes import TABLE_DTYPES, DType
from embcompress.errors import InputError, UsageError

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; the unit (rows or bytes) is the stage's own."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback of callers that show none."""


class Steps:
    """Adds up the steps of one stage for a progress callback; may be called from several threads.

    Args:
        progress: whom to tell.
        stage: what is being done.
        total: how much there is to do.
    """

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total = progress, stage, total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Tell of ``count`` more; a stage that is done again stays at its end."""
        with self._lock:
            self._done = min(self._done + count, self._total)
            self._progress(self._stage, self._done, self._total)


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, known from the headers alone.

    Attributes:
        name: its key in the state dict.
        dtype: element type; None where the stored type has no name here.
        shape: sizes, possibly empty.
        nbytes: bytes of its elements.
        layout: ``"dense"``, or what else it is (``"sparse"``, ``"quantized"``, ``"meta"``,
            ``"object"``); only dense tensors can be read.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    nbytes: int
    layout: str = "dense"

    @property
    def is_readable(self) -> bool:
        """Whether :meth:`Checkpoint.rows` can read it: dense, two-dimensional, of a type NumPy knows."""
        return (
            self.layout == "dense"
            and len(self.shape) == 2
            and self.dtype is not None
            and self.dtype.storage != ""
        )

    @property
    def is_matrix(self) -> bool:
        """Whether it can be a table: readable, and of a float type."""
        return self.is_readable and self.dtype is not None and self.dtype.is_table

    def readable_dtype(self) -> DType:
        """The element type of a tensor that :meth:`Checkpoint.rows` can read.

        Raises:
            InputError: it is none.
        """
        if not self.is_readable or self.dtype is None:
            return self.matrix_dtype()  # which says what is wrong
        return self.dtype

    def matrix_dtype(self) -> DType:
        """The element type of a tensor that can be a table.

        Raises:
            InputError: it is none.
        """
        if not self.is_matrix or self.dtype is None:
            kind = self.layout if self.layout != "dense" else (self.dtype.name if self.dtype else "unknown")
            raise InputError(
                f"{self.name}: {kind} of shape {list(self.shape)} cannot be read as a table, "
                f"a dense matrix of {', '.join(d.name for d in TABLE_DTYPES)}",
                remedy="convert the table first, or name another with --key",
            )
        return self.dtype


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is made while it is written.

    Attributes:
        name: its key in the state dict.
        dtype: element type it is stored in.
        shape: (rows, columns), or (0,) for the empty guard tensor.
        replaces: name of the removed tensor whose place (shard and position) it takes.
        blocks: called once a write; yields blocks of consecutive rows, together ``shape``.
        file: weight file of a directory that is made for it; None for the one it replaces a tensor of.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    replaces: str
    blocks: Callable[[], Iterator[NDArray[Any]]] = field(repr=False, compare=False)
    file: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes it takes on disk."""
        return self.dtype.nbytes(math.prod(self.shape))


@dataclass(frozen=True)
class Edit:
    """What a new checkpoint changes against the one it is made from.

    Attributes:
        remove: names that are left out.
        add: tensors that are written, each in the place of a removed one.
        aliases: further names for added tensors, new name -> name in ``add``. Formats that share
            memory (torch) store them at no cost; safetensors notes them in its metadata, as
            ``save_model`` does, where the source noted any.
        documents: JSON documents of a directory by relative path, written anew; None takes one away.
    """

    remove: frozenset[str]
    add: tuple[NewTensor, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint(abc.ABC):
    """An opened checkpoint: headers are read and checked, tensors are read on demand.

    Attributes:
        format: name of the format.
        suffixes: endings of file names that mean this format; none for directories.
        shares_memory: whether aliases are stored as names of their own.
        path: where it was opened.
        tensors: every stored tensor by name, in stored order.
        aliases: name -> name of an earlier tensor that is the very same memory.
        size: bytes of the weight files as they lie on disk.
        weight_files: the files that hold tensors, for hashing.
        description: what an earlier run of this tool wrote, None for a stranger's checkpoint.
        config: ``config.json`` of a directory, empty otherwise.
        notes: what the user should know about this input, one sentence each.
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    shares_memory: ClassVar[bool] = False

    path: Path
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    size: int
    weight_files: tuple[Path, ...]
    description: Description | None
    config: Mapping[str, Any]
    notes: tuple[str, ...]

    @classmethod
    @abc.abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether ``path`` is of this format, by its first bytes; never raises for a wrong one."""

    @classmethod
    @abc.abstractmethod
    def open(cls, path: Path) -> Self:
        """Open ``path`` for reading.

        Raises:
            InputError: the file is corrupt, unsafe or of an unsupported kind.
        """

    @abc.abstractmethod
    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` of a readable tensor: floats as float32 (F64 as float64), integers as they are.

        The array is the caller's own. Raises ``InputError`` when the bytes cannot be read.
        """

    @abc.abstractmethod
    def check_integrity(self, progress: Progress = silent) -> None:
        """Check whatever checksums the format carries; formats without any do nothing.

        Raises:
            InputError: a checksum does not fit its bytes.
        """

    @abc.abstractmethod
    def beside(self, key: str) -> object:
        """Plain data that stand beside the tensors under ``key``, None where there are none.

        In a PyTorch file an entry beside the state dict, in a safetensors file a metadata entry that
        holds JSON, in a directory an entry of ``config.json``. Every edited copy carries them along.

        Raises:
            InputError: they cannot be read.
        """

    @property
    def needs_guard(self) -> bool:
        """Whether a stock loader could misread the output, so that a guard tensor must stop it."""
        return False

    def check_editable(self) -> None:  # noqa: B027 - most formats have nothing to refuse
        """Refuse an input of which no edited copy can be made.

        Raises:
            UsageError: with the reason.
        """

    def check_edit(self, edit: Edit) -> None:
        """Refuse an edit that would write a tensor under the name of one that stays.

        Raises:
            UsageError: with the name.
        """
        for name in (*(new.name for new in edit.add), *edit.aliases):
            if name in self.tensors and name not in edit.remove:
                raise UsageError(
                    f"{self.path}: holds {name} already, the name of a tensor to be written",
                    remedy="rename it, or take another table",
                )

    @abc.abstractmethod
    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Bytes that the weight files would take after ``edit``, at most a few hundred a tensor too many."""

    @abc.abstractmethod
    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write a complete new checkpoint to ``target``, which does not exist yet.

        Tensors that ``edit`` does not name are carried byte for byte; :meth:`check_edit` has
        passed. The result is valid and opens with this class. ``target`` is a staging place: the
        caller syncs and renames.

        Returns:
            Warnings for the user, one sentence each.
        """

    @classmethod
    @abc.abstractmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Replace the description in a checkpoint that :meth:`write` has just written.

        The new description has the same tables; only measured figures and hashes differ, and
        room for them was kept.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file descriptors. Reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
