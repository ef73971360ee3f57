"""What every method of compressing a table offers.

A method is one file with a subclass of :class:`Method` and one line in ``METHODS``
(``methods/__init__.py``); contract tests run over that registry.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from embcompress.dtypes import DType
from embcompress.errors import InputError, TargetError
from embcompress.methods.stats import Advance, TableStats, ignore_progress
from embcompress.rows import Rows

SPLITS = ("left", "even", "right")
"""Where the singular values go: into the left factor, half into each, into the right."""

Blocks = Callable[[], Iterator[NDArray[Any]]]
"""Gives the row blocks of a tensor in order, anew at each call."""


@dataclass(frozen=True)
class Settings:
    """What is asked of a method beside the size.

    Attributes:
        dtype: element type of float factors; methods with codes of their own pay no heed to it.
        split_scale: one of ``SPLITS``.
        mirrored: store the right factor transposed as well, for a model that wants it so.
    """

    dtype: DType
    split_scale: str = "left"
    mirrored: bool = False


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

    @property
    def nbytes(self) -> int:
        """Bytes it takes on disk."""
        return self.dtype.nbytes(math.prod(self.shape))


@dataclass(frozen=True)
class TableLayout:
    """How a method will store one table: all that is decided before the work.

    Attributes:
        parts: the tensors it stores.
        rank: components kept; None for a method that keeps the table's own.
        dtype: element type of what a lookup is computed from.
        bits: bits a coefficient takes, on average.
        predicted_error: relative Frobenius error foretold, weighted where rows are.
        tolerance: by what share of itself the measured error may exceed it before something is wrong.
        state: what the method settled while it planned (codebooks, scales); for its own use.
    """

    parts: tuple[Part, ...]
    rank: int | None
    dtype: DType
    bits: float
    predicted_error: float
    tolerance: float
    state: Any = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Those of the parts."""
        return tuple(part.suffix for part in self.parts)


Parts = Mapping[str, Rows]
"""The stored parts of a table by their suffix."""


Read = Callable[[int, int], NDArray[Any]]
"""``read(start, stop)`` gives those rows of a table, (stop-start)×d floats."""


class Method(abc.ABC):
    """A way to compress a table of V×d. Methods hold no state: an instance is its registry entry.

    Attributes:
        name: registry name, as in ``--method``.
        suffixes: of all tensors that it may store, in their order.
        optional: those that a layout may do without.
        seed: of its randomness, None where it has none.
        margin: by what share of itself an error that is asked for is undercut, since the foretold one is
            that of a sample.
        by_spectrum: whether it foretells errors from the spectrum, which must then be precise where they
            are small.
        is_factors: whether it stores two float factors, and nothing in codes.
    """

    name: str
    suffixes: ClassVar[tuple[str, ...]]
    optional: ClassVar[frozenset[str]] = frozenset()
    seed: ClassVar[int | None] = None
    margin: ClassVar[float] = 0.02
    by_spectrum: ClassVar[bool] = False
    is_factors: ClassVar[bool] = False

    @abc.abstractmethod
    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Fewest bytes that it can make of a (V, d) table, by the shape alone."""

    @abc.abstractmethod
    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """The layout with the smallest foretold error in at most ``limit`` bytes; None where there is none.

        More bytes never foretell a larger error.
        """

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """About the error of :meth:`fit`, and at once; None where nothing fits in ``limit`` bytes.

        It is for comparing methods. One that codes a sample to know its error gives what a model of
        itself says instead.
        """
        layout = self.fit(stats, limit, settings)
        return None if layout is None else layout.predicted_error

    def cheapest(self, stats: TableStats, error: float, settings: Settings) -> TableLayout:
        """The smallest layout with a foretold error of at most ``error`` (0 to 1), to 0.1 % of its bytes.

        Raises:
            TargetError: no layout smaller than the table is as good.
        """
        limit = stats.rows.nbytes - 1
        best = self.fit(stats, limit, settings)
        wanted = error * (1 - self.margin)
        if best is None or best.predicted_error > wanted:
            least = (
                "nothing smaller than the table" if best is None else f"{best.predicted_error:.3g} at best"
            )
            raise TargetError(
                f"{stats.name}: error {error:.3g} is asked for, {self.name} can promise {least}",
                remedy="allow more, or choose another --method",
            )
        low, high, above = self.least(stats.rows.shape, settings) - 1, best.nbytes, 1.0
        for turn in itertools.count():
            if high - low <= max(1, high // 1000):
                return best
            # Errors fall about exponentially with bytes: by turns a step along that line, and a halving.
            share = 0.5
            if turn % 2 == 0 and 0 < best.predicted_error < wanted < above:
                share = math.log(above / wanted) / math.log(above / best.predicted_error)
            middle = low + max(1, min(high - low - 1, round(share * (high - low))))
            found = self.fit(stats, middle, settings)
            if found is not None and found.predicted_error <= wanted:
                best, high = found, min(middle, found.nbytes)
            else:
                low, above = middle, found.predicted_error if found else above
        raise AssertionError("unreachable")

    def for_energy(self, stats: TableStats, energy: float, settings: Settings) -> TableLayout:
        """The smallest layout that keeps the share ``energy`` of the squared singular values, up to 1.

        What is not kept is the square of the relative error.

        Raises:
            TargetError: see :meth:`cheapest`.
        """
        return self.cheapest(stats, math.sqrt(1 - energy), settings)

    def widest(self, shape: tuple[int, int], settings: Settings) -> TableLayout:
        """A layout whose names and figures are as long as any of a (V, d) table; its bytes mean nothing."""
        parts = tuple(Part(suffix, settings.dtype, shape) for suffix in self.suffixes)
        return TableLayout(parts, min(shape), settings.dtype, -1 / 3e-10, -1 / 3e-10, 0.0)

    def limits(self, rows: Rows, settings: Settings) -> str:
        """What of a table can be asked for, as the remedy of a target that is out of reach."""
        least = self.least(rows.shape, settings)
        if least >= rows.nbytes:
            return "leave it dense, or choose another --method"
        return f"ask for a ratio of at most {1 - least / rows.nbytes:.4g}"

    @abc.abstractmethod
    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> tuple[Blocks, ...]:
        """The contents of the parts; the table is read again when the first of them is.

        The table's all-zero rows are decoded as exact zeros.

        Args:
            stats: the table.
            layout: what :meth:`fit` made of it.
            settings: those it was made with.
            advance: called with the number of rows coded, by methods that take their time.

        Raises:
            TargetError: the stored types cannot hold the values (found while blocks are made).
        """

    @abc.abstractmethod
    def decoder(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """The (V, d) table that stored parts stand for; no part is read before rows are, but for small ones.

        Args:
            parts: all that are not optional are there.
            shape: of the table, as its record says.
            rank: components kept, as its record says.

        Raises:
            InputError: the parts are not those of such a table.
        """

    @abc.abstractmethod
    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """Floating-point operations of one token's lookup (multiply-add = 2, a gather = 0)."""


class RankedMethod(Method):
    """A method whose size is a matter of rank, so that a rank can be asked for."""

    @abc.abstractmethod
    def check_rank(self, rows: Rows, name: str, rank: int, settings: Settings) -> None:
        """Refuse a rank by the shape alone, before a row is read.

        Raises:
            TargetError: there is no such rank, or it would not make the table smaller.
        """

    @abc.abstractmethod
    def at_rank(self, stats: TableStats, rank: int, settings: Settings) -> TableLayout:
        """The layout that keeps ``rank`` components, 1 … min(V, d)."""


_OF_BYTES = frozenset({"bits", "codes", "extra", "hot", "kept", "rates"})
"""Last words of the suffixes of parts that are unsigned bytes; taken for such, others would mean anything."""


def check_parts(
    parts: Parts, expected: Mapping[str, tuple[int, int]], shape: tuple[int, int], rank: int | None
) -> None:
    """Refuse stored parts that are not of the kinds and shapes that a table's record calls for.

    Raises:
        InputError: with what they are, and what the record says.
    """
    for suffix, part in parts.items():
        if suffix.rpartition(".")[2] in _OF_BYTES and part.dtype.name != "U8":
            raise InputError(
                f"part {suffix} is of {part.dtype.name}, expected are unsigned bytes (U8)",
                remedy="make the file again from its source",
            )
    if all(parts[suffix].shape == wanted for suffix, wanted in expected.items()):
        return
    found = ", ".join(f"{suffix} {list(part.shape)}" for suffix, part in parts.items())
    of_rank = "" if rank is None else f" of rank {rank}"
    raise InputError(
        f"parts {found} are not those of a table {list(shape)}{of_rank}, as its record says",
        remedy="make the file again from its source",
    )
