"""What every method of compressing a table offers.

A method is one file with a subclass of :class:`Method` and one line in ``METHODS``
(``methods/__init__.py``); contract tests run over that registry.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from embcompress.checkpoint.dtypes import DType, Floats
from embcompress.linalg.spectrum import Spectrum
from embcompress.tables import Rows

SPLITS = ("left", "even", "right")
"""Where the singular values go: into the left factor, half into each, into the right."""


@dataclass(frozen=True)
class Settings:
    """What is decided about one table before the work.

    Attributes:
        rank: components kept, 1 … min(V, d).
        dtype: element type the factors are stored in.
        split_scale: one of ``SPLITS``.
        precise: project in float64, for errors that float32 could not show.
    """

    rank: int
    dtype: DType
    split_scale: str = "left"
    precise: bool = False


Blocks = Callable[[], Iterator[Floats]]
"""Gives the float row blocks of a tensor in order, anew at each call."""


@dataclass(frozen=True)
class Part:
    """One tensor that a method stores for a table.

    Attributes:
        suffix: what follows the table's stem in its name, e.g. ``"0.weight"``.
        dtype: element type.
        shape: (rows, columns).
    """

    suffix: str
    dtype: DType
    shape: tuple[int, int]


@dataclass(frozen=True)
class Dimensions:
    """What the shapes of stored parts say.

    Attributes:
        shape: (V, d) of the table they stand for.
        rank: components they keep.
    """

    shape: tuple[int, int]
    rank: int


class Method(abc.ABC):
    """A way to compress a table of V×d. Methods hold no state: an instance is its registry entry.

    Attributes:
        name: registry name, as in ``--method``.
        suffixes: of the stored tensors, in the order of all other methods.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def parts(self, shape: tuple[int, int], rank: int, dtype: DType) -> tuple[Part, ...]:
        """What is stored for a (V, d) table at ``rank``, by shapes alone; no part shrinks with the rank."""

    def nbytes(self, shape: tuple[int, int], rank: int, dtype: DType) -> int:
        """Bytes of all parts of a (V, d) table at ``rank``."""
        return sum(part.dtype.nbytes(math.prod(part.shape)) for part in self.parts(shape, rank, dtype))

    @abc.abstractmethod
    def flops(self, shape: tuple[int, int], rank: int) -> int:
        """Floating-point operations of one token's lookup (multiply-add = 2, a gather = 0)."""

    @abc.abstractmethod
    def predicted_error(self, spectrum: Spectrum, rank: int, dtype: DType) -> float:
        """Relative Frobenius error of the stored parts, foretold; falls with the rank."""

    @abc.abstractmethod
    def encode(self, table: Rows, spectrum: Spectrum, settings: Settings) -> tuple[Blocks, ...]:
        """The contents of the parts; the table is read again while they are written.

        The table's all-zero rows are decoded as exact zeros.

        Raises:
            TargetError: ``settings.dtype`` cannot hold the values (found while blocks are made).
        """

    @abc.abstractmethod
    def dimensions(self, parts: Sequence[Rows]) -> Dimensions:
        """The size of the table that the stored parts stand for, from their shapes.

        Raises:
            InputError: the shapes do not fit each other.
        """

    @abc.abstractmethod
    def decode(self, parts: Sequence[Rows], start: int, stop: int) -> Floats:
        """Rows ``start:stop`` of the table that the stored parts stand for, (stop-start)×d floats."""
