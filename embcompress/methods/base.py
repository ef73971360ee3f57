"""What every method of compressing a table offers.

A method is one folder in ``methods/`` and one line in the registry (``methods/__init__.py``). The folder
holds

- ``method.py``: a subclass of :class:`Method`, which plans, encodes and decodes with NumPy;
- ``module.py``, if torch can look rows up in the stored parts: see :func:`Method.module`;
- ``graph.py``, if an ONNX graph can: see :func:`Method.graph`.

The last two are imported when they are needed. Contract tests run over the registry.
"""

from __future__ import annotations

import abc
import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from embcompress.dtypes import DType
from embcompress.errors import TargetError, UsageError
from embcompress.methods.parts import Part, Parts, PartSpec, check_elements
from embcompress.methods.stats import Advance, TableStats, ignore_progress
from embcompress.rows import Rows

Blocks = Callable[[], Iterator[NDArray[Any]]]
"""Gives the row blocks of a tensor in order, anew at each call."""


@dataclass(frozen=True)
class Settings:
    """What is asked of a method besides the size.

    Attributes:
        dtype: element type of float factors; methods that store codes ignore it.
        split_scale: one of ``choices.SPLITS``.
        mirrored: store the right factor transposed as well, for models that need it.
    """

    dtype: DType
    split_scale: str = "left"
    mirrored: bool = False


@dataclass(frozen=True)
class TableLayout:
    """How a method will store one table: everything that is decided before the work.

    Attributes:
        parts: the tensors it stores.
        rank: components kept; None for a method that keeps the table's own.
        dtype: element type of what a lookup is computed from.
        bits: bits a coefficient takes, on average.
        predicted_error: relative Frobenius error, weighted where rows are.
        tolerance: by what share of itself the measured error may exceed the predicted one.
        state: what the method settled while it planned (codebooks, scales); only the method reads it.
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
        """Suffixes of the parts."""
        return tuple(part.suffix for part in self.parts)


Read = Callable[[int, int], NDArray[Any]]
"""``read(start, stop)`` gives those rows of a table, (stop-start)×d floats."""

Fit = Callable[[int], TableLayout | None]
"""The layout with the smallest predicted error in so many bytes; None where nothing fits."""


class Method(abc.ABC):
    """A way to compress a table of V×d. Methods hold no state: an instance is its registry entry.

    Attributes:
        name: registry name, as in ``--method``.
        parts: everything that it may store for a table, in stored order. The NumPy decoder, the torch module,
            the ONNX graph, ``verify`` and ``finetune`` all go by this list.
        seed: of its randomness, None where it has none.
        margin: by what share of itself a target error is undercut, for methods that predict from a sample.
        by_spectrum: whether errors are predicted from the spectrum, which must then be precise where they
            are small.
        by_rows: whether each row is coded by itself in the same number of bytes, without the spectrum.
        exact: whether rows are stored as they are, but for rounding to the element type.
        is_factors: whether it stores two float factors and nothing in codes.
    """

    name: str
    parts: tuple[PartSpec, ...]
    seed: int | None = None
    margin: float = 0.02
    by_spectrum: bool = False
    by_rows: bool = False
    exact: bool = False
    is_factors: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of ``parts``."""
        return tuple(spec.suffix for spec in self.parts)

    @abc.abstractmethod
    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Fewest bytes that a (V, d) table can take, by the shape alone."""

    @abc.abstractmethod
    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """The layout with the smallest predicted error in ``limit`` bytes; None where nothing fits.

        More bytes never predict a larger error.
        """

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """:meth:`fit` for one table and many limits: a method may remember work from limit to limit."""
        return lambda limit: self.fit(stats, limit, settings)

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Roughly the error of :meth:`fit`, fast; None where nothing fits in ``limit`` bytes.

        It is for comparing methods: one that codes a sample to know its error answers from a model instead.
        """
        layout = self.fit(stats, limit, settings)
        return None if layout is None else layout.predicted_error

    def cheapest(self, stats: TableStats, error: float, settings: Settings) -> TableLayout:
        """The smallest layout with a predicted error of at most ``error`` (0 to 1), to 0.1 % of its bytes.

        Raises:
            TargetError: no layout smaller than the table is as good.
        """
        fit = self.fitter(stats, settings)
        best = fit(stats.rows.nbytes - 1)
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
            # Errors fall roughly exponentially with bytes: alternate a step along that line and a halving.
            share = 0.5
            if turn % 2 == 0 and 0 < best.predicted_error < wanted < above:
                share = math.log(above / wanted) / math.log(above / best.predicted_error)
            middle = low + max(1, min(high - low - 1, round(share * (high - low))))
            found = fit(middle)
            if found is not None and found.predicted_error <= wanted:
                best, high = found, min(middle, found.nbytes)
            else:
                low, above = middle, found.predicted_error if found else above
        raise AssertionError("unreachable")

    def for_energy(self, stats: TableStats, energy: float, settings: Settings) -> TableLayout:
        """The smallest layout that keeps the share ``energy`` (up to 1) of the squared singular values.

        The share that is lost is the square of the relative error.

        Raises:
            TargetError: no layout smaller than the table keeps as much.
        """
        return self.cheapest(stats, math.sqrt(1 - energy), settings)

    def widest(self, shape: tuple[int, int], settings: Settings) -> TableLayout:
        """A layout whose names and figures are as long as any of a (V, d) table; its bytes mean nothing."""
        parts = tuple(Part(suffix, settings.dtype, shape) for suffix in self.suffixes)
        return TableLayout(parts, min(shape), settings.dtype, -1 / 3e-10, -1 / 3e-10, 0.0)

    def limits(self, rows: Rows, settings: Settings) -> str:
        """What can be asked for, as the remedy of a target that is out of reach."""
        least = self.least(rows.shape, settings)
        if least >= rows.nbytes:
            return "leave it dense, or choose another --method"
        return f"ask for a ratio of at most {1 - least / rows.nbytes:.4g}"

    @abc.abstractmethod
    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """The contents of each part of the layout by its suffix; the table is read when one is asked for.

        Rows of the table that are all zero decode to exact zeros.

        Args:
            stats: the table.
            layout: what :meth:`fit` made of it.
            settings: those it was made with.
            advance: called with the number of rows coded, by methods that take long.

        Raises:
            TargetError: the stored types cannot hold the values (found while blocks are made).
        """

    def decoder(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """The (V, d) table that stored parts stand for.

        Args:
            parts: every part that is not optional is there.
            shape: of the table, as its record says.
            rank: components kept, as its record says.

        Raises:
            InputError: the parts are not those of such a table.
        """
        check_elements(self.parts, {suffix: part.dtype for suffix, part in parts.items()})
        return self.decode(parts, shape, rank)

    @abc.abstractmethod
    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """:meth:`decoder`, once the element types are checked; large parts are read only as rows are."""

    @abc.abstractmethod
    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """Floating-point operations of one token's lookup (multiply-add = 2, a gather = 0)."""

    def around(self, inner: Method) -> Method | None:
        """This method with ``inner`` to store what it keeps; None where it wraps no other."""
        return None

    @property
    def has_module(self) -> bool:
        """Whether torch can look rows up in what it stores."""
        return self._find("module")

    def module(self) -> ModuleType:
        """``module.py`` in the method's folder, which imports torch.

        It offers ``coded_table(method, parts, shape, kept=None)``; see :mod:`embcompress.methods.modules`.
        """
        return importlib.import_module(self._beside("module"))

    def graph(self) -> Any:
        """How an ONNX graph computes with what it stores, from ``graph.py`` in its folder; needs onnx.

        Returns:
            A ``TableGraph``, see ``checkpoint/onnx/building.py``.

        Raises:
            UsageError: there is no ``graph.py``.
        """
        if not self._find("graph"):
            raise UsageError(
                f"what method {self.name} stores cannot stand in an ONNX graph",
                remedy="choose another --method",
            )
        return importlib.import_module(self._beside("graph")).table_graph(self)

    def _beside(self, name: str) -> str:
        """Full name of a module in the method's folder."""
        return f"{type(self).__module__.rpartition('.')[0]}.{name}"

    def _find(self, name: str) -> bool:
        return importlib.util.find_spec(self._beside(name)) is not None


class RankedMethod(Method):
    """A method whose size follows from a rank, so that a user can ask for one."""

    @abc.abstractmethod
    def check_rank(self, rows: Rows, name: str, rank: int, settings: Settings) -> None:
        """Refuse a rank by the shape alone, before a row is read.

        Raises:
            TargetError: there is no such rank, or it would not make the table smaller.
        """

    @abc.abstractmethod
    def break_even(self, rows: Rows, settings: Settings) -> int:
        """Largest rank that takes fewer bytes than the table, at most min(V, d); 0 where none does."""

    @abc.abstractmethod
    def at_rank(self, stats: TableStats, rank: int, settings: Settings) -> TableLayout:
        """The layout that keeps ``rank`` components, 1 … min(V, d)."""
