"""Tensors of a checkpoint: :class:`TensorInfo` describes a stored one, :class:`NewTensor` one to write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from embcompress.dtypes import TABLE_DTYPES, DType
from embcompress.errors import InputError


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as the headers describe it.

    Attributes:
        name: its key in the state dict.
        dtype: element type; None if embcompress has no name for the stored type.
        shape: its sizes, empty for a scalar.
        nbytes: bytes of its elements.
        layout: ``"dense"``, ``"sparse"``, ``"quantized"``, ``"meta"`` or ``"object"``; only dense tensors
            can be read.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    nbytes: int
    layout: str = "dense"

    @property
    def is_readable(self) -> bool:
        """Whether ``Checkpoint.rows`` can read it: dense, two-dimensional, of a type that NumPy knows."""
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
        """The element type of a tensor that ``Checkpoint.rows`` can read.

        Raises:
            InputError: ``Checkpoint.rows`` cannot read this one.
        """
        if not self.is_readable or self.dtype is None:
            return self.matrix_dtype()  # raises an error that says why
        return self.dtype

    def matrix_dtype(self) -> DType:
        """The element type of a tensor that can be a table.

        Raises:
            InputError: this one cannot.
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
    """A tensor that is computed while it is written.

    Attributes:
        name: its key in the state dict.
        dtype: element type it is stored in.
        shape: (rows, columns), or (0,) for the empty guard tensor.
        replaces: name of the removed tensor whose place (shard and position) it takes.
        blocks: called once per write; yields blocks of consecutive rows, together of ``shape``.
        file: new weight file of a directory to write it to; None for the file of the tensor it replaces.
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
