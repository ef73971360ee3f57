"""The interface of every checkpoint format, and the edit that its ``write`` carries out.

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
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.description import Description
from embcompress.checkpoint.tensors import NewTensor, TensorInfo
from embcompress.errors import UsageError
from embcompress.progress import Progress, silent
from embcompress.storage.rawio import CHUNK


@dataclass(frozen=True)
class NewParameters:
    """Parameters of a model that take the place of others.

    Attributes:
        before: how many they replace.
        shapes: their shapes.
    """

    before: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Edit:
    """The changes from a source checkpoint to a new one.

    Attributes:
        remove: names of the tensors to leave out.
        add: new tensors, each in the place of a removed one.
        aliases: further names for added tensors, new name -> name in ``add``. Formats that share
            memory (torch) store them at no cost; safetensors notes them in its metadata, as
            ``save_model`` does, if the source noted any.
        documents: JSON documents of a directory by relative path, to be rewritten; None deletes one.
        graphs: for each removed table, by name, a function that returns how a graph computes with the new
            tensors. Only formats that hold a graph call it and know the type of the result.
        parameters: where tables become parts or parts tables: for a removed name of each, what takes the
            place of the parameters of a model. Saved optimizers number them.
    """

    remove: frozenset[str]
    add: tuple[NewTensor, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    graphs: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    parameters: Mapping[str, NewParameters] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How to read a file that may hold more than one state dict of tensors.

    Attributes:
        weights_only: leave out everything but weights and plain data, instead of refusing the file.
        state: which state dict to take, by the keys that lead to it with dots between them; None for the
            likeliest one.
    """

    weights_only: bool = False
    state: str | None = None

    def check_one(self, path: Path) -> None:
        """Refuse the choice of a state dict in a format that holds one.

        Raises:
            UsageError: a state dict is chosen.
        """
        if self.state is not None:
            raise UsageError(
                f"{path}: --state {self.state}: only a PyTorch file can hold several state dicts",
                remedy="leave it out",
            )


AS_IT_IS: Final = Reading()


@dataclass(frozen=True)
class Form:
    """The format and file suffix of an edited copy.

    Attributes:
        name: name of the format, as messages call it.
        suffix: suffix of the default output name.
    """

    name: str
    suffix: str


class Checkpoint(abc.ABC):
    """An opened checkpoint: its headers are read and checked, its tensors are read on demand.

    Attributes:
        format: name of the format.
        suffixes: file name endings of this format; none for directories.
        shares_memory: whether the format stores aliases under names of their own.
        path: where the checkpoint was opened.
        tensors: every stored tensor by name, in stored order.
        aliases: name -> name of an earlier tensor that shares its memory.
        size: bytes of the weight files on disk.
        weight_files: the files that hold tensors, for hashing.
        description: the record that embcompress wrote, None if it did not write this checkpoint.
        config: ``config.json`` of a directory, empty otherwise.
        config_name: where it is in the directory.
        holds_graph: whether the computation is stored too, so that a compressed copy runs as it is.
        notes: what the user should know about this input, one sentence each.
        reading: how it was read.
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
    config_name: str = "config.json"
    holds_graph: bool = False
    notes: tuple[str, ...]
    reading: Reading = AS_IT_IS

    @classmethod
    @abc.abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Tell from its first bytes whether ``path`` has this format; never raises for other formats."""

    @classmethod
    @abc.abstractmethod
    def open(cls, path: Path) -> Self:
        """Open ``path`` for reading.

        Raises:
            InputError: the file is corrupt, unsafe or not supported.
        """

    @classmethod
    def open_as(cls, path: Path, reading: Reading) -> Self:
        """Open ``path`` as the user asks. Most formats hold one state dict of weights, and nothing else.

        Raises:
            UsageError: a state dict is chosen where there is only one.
            InputError: as :meth:`open`.
        """
        reading.check_one(path)
        return cls.open(path)

    @abc.abstractmethod
    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` of a readable tensor.

        Floats are returned as float32 (F64 as float64), integers in their stored type.

        Returns:
            Array of shape (stop - start, columns), which the caller may change.

        Raises:
            InputError: the bytes cannot be read.
        """

    def form(self, *, dense: bool) -> Form:  # noqa: ARG002 - most formats hold both
        """Format and suffix of an edited copy: the source's own, unless that format cannot hold the copy.

        Args:
            dense: whether the copy holds dense tables again, rather than compressed ones.
        """
        return Form(self.format, self.path.suffix)

    @property
    def folder(self) -> Path:
        """The folder in which the configuration and the tokenizer of the model are."""
        return self.path.parent

    @property
    def lookups(self) -> Mapping[str, str]:
        """Tensors whose rows are looked up, as far as the checkpoint itself says so.

        The values name the input that the ids of the rows come from, ``""`` if the model computes them.
        """
        return {}  # only graphs say it

    @property
    def dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name, with compressed tables under their dense name and shape."""
        tables = self.description.tables if self.description else ()
        parts = {part for table in tables for part in table.part_names}
        shapes = {name: info.shape for name, info in self.tensors.items() if name not in parts}
        return shapes | {table.name: table.shape for table in tables}

    @property
    def copied_size(self) -> int:
        """Bytes of the weights in the format of a compressed copy."""
        return self.size

    @property
    def descriptions(self) -> Mapping[str, Description]:
        """Every stored copy of the record, by the name of the place that holds it."""
        return {} if self.description is None else {self.path.name: self.description}

    @property
    def descriptors(self) -> Mapping[Path, int]:
        """Descriptors of those weight files that are kept open, so that what is hashed is what is read."""
        return {}

    def bytes_of(self, name: str) -> Iterator[bytes]:
        """The bytes of a dense tensor in row-major order, in pieces of a few megabytes.

        Raises:
            InputError: the bytes cannot be read.
        """
        info = self.tensors[name]
        dtype = info.readable_dtype()
        step = max(1, CHUNK // max(1, dtype.nbytes(info.shape[1])))
        for start in range(0, info.shape[0], step):
            yield dtype.encode(self.rows(name, start, min(start + step, info.shape[0]))).tobytes()

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The stored tensors as torch tensors on the CPU, by name.

        Args:
            names: names of the stored tensors to return; None for the whole state dict as the format's own
                loader returns it, which in a PyTorch file may hold more than tensors.

        Raises:
            UsageError: the format holds no state dict.
            InputError: a tensor cannot be read.
        """
        import torch

        state = {}
        for name in self.tensors if names is None else names:
            info = self.tensors[name]
            assert info.dtype is not None
            dtype = getattr(torch, info.dtype.torch or "none", None)
            if dtype is None:
                raise UsageError(f"{self.path}: {name} is {info.dtype.name}, which this torch does not have")
            value = torch.empty(info.nbytes, dtype=torch.uint8)
            if info.nbytes:
                self.read_into(name, value.numpy())
            # An element of torch holds two of four bits.
            shape = info.shape if info.dtype.bits >= 8 else (*info.shape[:-1], info.shape[-1] // 2)
            state[name] = value.view(dtype).reshape(shape)
        return state

    def read_into(self, name: str, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes of a dense tensor in row-major order.

        Raises:
            InputError: the bytes cannot be read.
        """
        done = 0
        for piece in self.bytes_of(name):
            out[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)

    def remainder(
        self,
        edit: Edit | None = None,  # noqa: ARG002
        description: Description | None = None,  # noqa: ARG002
    ) -> Mapping[str, object]:
        """Everything in the checkpoint but dense tensors and our record: plain data or a SHA-256, by name.

        With an ``edit`` and its ``description``, the remainder of the copy that :meth:`write` would make.
        Comparing the two shows whether an output holds anything unexpected.

        Raises:
            UsageError: the edit cannot be made.
            InputError: something cannot be read.
        """
        return {}  # most formats hold nothing else

    @abc.abstractmethod
    def check_integrity(self, progress: Progress = silent) -> None:
        """Verify the checksums of the format, if it has any.

        Raises:
            InputError: a checksum does not match its bytes.
        """

    @abc.abstractmethod
    def sidecar(self, key: str) -> object:
        """Plain data stored next to the tensors under ``key``, None if there is no such entry.

        This is an entry next to the state dict in a PyTorch file, a metadata entry that holds JSON in a
        safetensors file, and an entry of ``config.json`` in a directory. Every edited copy keeps it.

        Raises:
            InputError: the entry cannot be read.
        """

    @property
    def needs_guard(self) -> bool:
        """Whether a stock loader could misread the output, so that a guard tensor must make it fail."""
        return False

    def check_editable(self) -> None:  # noqa: B027 - most formats have nothing to refuse
        """Refuse an input that cannot be edited.

        Raises:
            UsageError: it cannot be edited.
        """

    def check_edit(self, edit: Edit) -> None:
        """Refuse an edit that would write a tensor under the name of one that is kept.

        Raises:
            UsageError: the names collide.
        """
        for name in (*(new.name for new in edit.add), *edit.aliases):
            if name in self.tensors and name not in edit.remove:
                raise UsageError(
                    f"{self.path}: holds {name} already, the name of a tensor to be written",
                    remedy="rename it, or choose another table",
                )

    @abc.abstractmethod
    def size_after(self, edit: Edit, description: Description | None) -> int:
        """Bytes of the weight files after ``edit``; may be a few hundred bytes per tensor too high."""

    @abc.abstractmethod
    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        """Write a complete new checkpoint to ``target``, which does not exist yet.

        Tensors that ``edit`` does not name are copied byte for byte. The result is valid and opens with
        this class. The caller has run :meth:`check_edit`, and will sync ``target`` and rename it.

        Returns:
            Warnings for the user, one sentence each.
        """

    @classmethod
    @abc.abstractmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Replace the description in a checkpoint that :meth:`write` has just written.

        The new description has the same tables; only measured figures and hashes differ, and
        :meth:`write` has left room for them.
        """

    def suspend(self) -> None:  # noqa: B027 - a format may need its files all the time
        """Give the open files back to the system until something is read again."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the open files. Reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
