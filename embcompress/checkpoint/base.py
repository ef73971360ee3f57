"""What every checkpoint format offers, and the edit that is asked of it.

A format is one file with a subclass of :class:`Checkpoint` and one line in ``FILE_FORMATS``
(``checkpoint/files.py``). Reading is by row blocks; writing makes a whole new checkpoint in
which some tensors are replaced and every other byte is carried over. torch is imported only by
``torch_state``, when it is called.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from embcompress.checkpoint.description import Description
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.errors import UsageError
from embcompress.progress import Progress, silent
from embcompress.storage.rawio import CHUNK


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
        graphs: how a graph computes with each table that goes, by its name; called by formats that hold a
            graph, and gives what they know as a table's graph.
    """

    remove: frozenset[str]
    add: tuple[NewTensor, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """What an edited copy is on disk.

    Attributes:
        name: of its format, as messages call it.
        suffix: what its name ends in where the user names none.
    """

    name: str
    suffix: str


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

    def form(self, *, dense: bool) -> Form:  # noqa: ARG002 - most formats hold both
        """What an edited copy is: its own format, unless that cannot hold what the copy does.

        Args:
            dense: whether the copy holds dense tables again, or what stands for them.
        """
        return Form(self.format, self.path.suffix)

    @property
    def dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name, compressed tables as if they were dense."""
        tables = self.description.tables if self.description else ()
        parts = {part for table in tables for part in table.part_names}
        shapes = {name: info.shape for name, info in self.tensors.items() if name not in parts}
        return shapes | {table.name: table.shape for table in tables}

    @property
    def copied_size(self) -> int:
        """Bytes of the weights in the form that compressed copies have."""
        return self.size

    @property
    def descriptions(self) -> Mapping[str, Description]:
        """Each place in which the record stands, by name, and what it says there."""
        return {} if self.description is None else {self.path.name: self.description}

    def bytes_of(self, name: str) -> Iterator[bytes]:
        """The bytes of a dense tensor in pieces of a few megabytes, its elements in row-major order.

        Raises:
            InputError: they cannot be read.
        """
        info = self.tensors[name]
        dtype = info.readable_dtype()
        step = max(1, CHUNK // max(1, dtype.nbytes(info.shape[1])))
        for start in range(0, info.shape[0], step):
            yield dtype.encode(self.rows(name, start, min(start + step, info.shape[0]))).tobytes()

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The stored tensors as torch tensors on the CPU, by name.

        Args:
            names: those that are wanted, all of them stored; None for the state dict as the format's own
                loader gives it, which in a PyTorch file may hold more than tensors.

        Raises:
            UsageError: the format holds no state dict.
            InputError: a tensor cannot be read.
        """
        import torch

        state = {}
        for name in self.tensors if names is None else names:
            info = self.tensors[name]
            assert info.dtype is not None
            elements = bytearray(b"".join(self.bytes_of(name)))
            dtype = getattr(torch, info.dtype.torch)
            flat = torch.frombuffer(elements, dtype=dtype) if elements else torch.empty(0, dtype=dtype)
            state[name] = flat.reshape(info.shape)
        return state

    def remainder(
        self,
        edit: Edit | None = None,  # noqa: ARG002
        description: Description | None = None,  # noqa: ARG002
    ) -> Mapping[str, object]:
        """All that it holds beside dense tensors and our record, by a name for each: plain data or a SHA-256.

        With an ``edit`` and its ``description``, that of what :meth:`write` would make: an output that holds
        nothing else has the same.

        Raises:
            UsageError: the edit cannot be made.
            InputError: something cannot be read.
        """
        return {}  # of a format that holds nothing else

    @abc.abstractmethod
    def check_integrity(self, progress: Progress = silent) -> None:
        """Check whatever checksums the format carries; formats without any do nothing.

        Raises:
            InputError: a checksum does not fit its bytes.
        """

    @abc.abstractmethod
    def sidecar(self, key: str) -> object:
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
