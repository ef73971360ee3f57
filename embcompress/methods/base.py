"""The protocol of methods: how a table is planned, encoded and decoded.

A method is one folder in ``methods/`` and one line in ``METHODS`` of ``choices.py``, from which the registry
(``methods/__init__.py``) is built. The folder holds

- ``method.py``: a subclass of :class:`Method`, which plans, encodes and decodes with NumPy;
- ``module.py`` (optional): looks rows up in the stored parts with torch, see :meth:`Method.module`;
- ``graph.py`` (optional): does the same in an ONNX graph, see :meth:`Method.graph`.

The last two are imported only when they are needed. Contract tests run over the registry.
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
"""Yields the row blocks of a tensor in order; each call starts again."""


@dataclass(frozen=True)
class Settings:
    """Options of a compression other than its target.

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
    """How a method will store one table, decided before the table is encoded.

    Attributes:
        parts: the tensors that will be stored.
        rank: components kept; None if the method does not reduce the rank.
        dtype: element type of the numbers that a lookup computes with.
        bits: average bits of a coefficient.
        predicted_error: relative Frobenius error, weighted if the rows have weights, in the metric if there
            is one.
        tolerance: how far the measured error may exceed the predicted one, as a fraction of it.
        state: whatever else the method has decided (codebooks, scales); only the method reads it.
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
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the parts, in stored order."""
        return tuple(part.suffix for part in self.parts)


Read = Callable[[int, int], NDArray[Any]]
"""``read(start, stop)`` returns those rows of a table, (stop-start)×d floats."""

Fit = Callable[[int], TableLayout | None]
"""``fit(limit)`` returns the layout with the smallest predicted error in ``limit`` bytes, or None."""


class Method(abc.ABC):
    """A way to compress a V×d table. Methods hold no state; one instance of each is in the registry.

    Attributes:
        name: registry name, as given to ``--method``.
        parts: everything that the method may store for a table, in stored order. The NumPy decoder, the torch
            module, the ONNX graph, ``verify`` and ``finetune`` all use this list.
        seed: seed of its random numbers; None if it uses none.
        margin: how far below a target error the predicted error must be, as a fraction of the target;
            methods that predict from a sample need this.
        by_spectrum: whether errors are predicted from the spectrum. If they are small, the spectrum is
            measured again in float64.
        by_rows: whether each row is coded independently, in the same number of bytes, without the spectrum.
        exact: whether rows are stored unchanged, except for rounding to the element type.
        has_rank: whether it keeps a number of components, which is in the record.
        is_factors: whether exactly two float factors are stored, and no codes.
    """

    name: str
    parts: tuple[PartSpec, ...]
    seed: int | None = None
    margin: float = 0.02
    by_spectrum: bool = False
    by_rows: bool = False
    exact: bool = False
    has_rank: bool = False
    is_factors: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of ``parts``, in stored order."""
        return tuple(spec.suffix for spec in self.parts)

    @abc.abstractmethod
    def least(self, shape: tuple[int, int], settings: Settings) -> int:
        """Fewest bytes that a (V, d) table can take; depends on the shape alone."""

    @abc.abstractmethod
    def fit(self, stats: TableStats, limit: int, settings: Settings) -> TableLayout | None:
        """Plan the layout with the smallest predicted error in at most ``limit`` bytes.

        The predicted error never grows with ``limit``.

        Args:
            stats: the table.
            limit: bytes of all parts together.
            settings: other options.

        Returns:
            None if nothing fits.
        """

    def fitter(self, stats: TableStats, settings: Settings) -> Fit:
        """Return :meth:`fit` for one table and many limits; methods may reuse work between calls."""
        return lambda limit: self.fit(stats, limit, settings)

    def predict_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the error of :meth:`fit` quickly, to compare methods; None if nothing fits.

        A method whose :meth:`fit` encodes a sample answers from a model instead.
        """
        layout = self.fit(stats, limit, settings)
        return None if layout is None else layout.predicted_error

    def quick_error(self, stats: TableStats, limit: int, settings: Settings) -> float | None:
        """Estimate the error of :meth:`fit` from a small trial; None if :meth:`fit` itself is as quick.

        With it, slow methods are passed over where they are clearly worse than others.
        """
        return None

    def cheapest(self, stats: TableStats, error: float, settings: Settings) -> TableLayout:
        """Find the smallest layout whose predicted error is at most ``error`` (0 to 1).

        Its bytes are within 0.1 % of the smallest possible.

        Raises:
            TargetError: no layout that is smaller than the table reaches the error.
        """
        fit = self.fitter(stats, settings)
        best = fit(stats.rows.nbytes - 1)
        wanted = error * (1 - self.margin)
        if best is None or best.predicted_error > wanted:
            reason = (
                "finds nothing smaller than the table"
                if best is None
                else f"predicts {best.predicted_error:.3g} at best"
            )
            raise TargetError(
                f"{stats.name}: error {error:.3g} was requested, {self.name} {reason}",
                remedy="allow more, or choose another --method",
            )
        # ``low`` bytes are too few, with error ``low_error``; ``high`` bytes are enough for ``best``.
        low, high, low_error = self.least(stats.rows.shape, settings) - 1, best.nbytes, 1.0
        for turn in itertools.count():
            if high - low <= max(1, high // 1000):
                return best
            # Errors fall roughly exponentially with bytes: alternate steps along that line with bisection.
            share = 0.5
            if turn % 2 == 0 and 0 < best.predicted_error < wanted < low_error:
                share = math.log(low_error / wanted) / math.log(low_error / best.predicted_error)
            middle = low + max(1, min(high - low - 1, round(share * (high - low))))
            found = fit(middle)
            if found is not None and found.predicted_error <= wanted:
                best, high = found, min(middle, found.nbytes)
            else:
                low, low_error = middle, found.predicted_error if found else low_error
        raise AssertionError("unreachable")

    def for_energy(self, stats: TableStats, energy: float, settings: Settings) -> TableLayout:
        """Find the smallest layout that keeps a fraction ``energy`` (up to 1) of the squared singular values.

        The lost fraction is the square of the relative error.

        Raises:
            TargetError: no layout that is smaller than the table keeps as much.
        """
        return self.cheapest(stats, math.sqrt(1 - energy), settings)

    def widest(self, shape: tuple[int, int], settings: Settings) -> TableLayout:
        """A layout whose record is as long as any of a (V, d) table; its sizes and errors are made up."""
        parts = tuple(Part(suffix, settings.dtype, shape) for suffix in self.suffixes)
        return TableLayout(parts, min(shape), settings.dtype, -1 / 3e-10, -1 / 3e-10, 0.0)

    def limits(self, rows: Rows, settings: Settings) -> str:
        """What the user can request instead of a target that is out of reach; the remedy of an error."""
        least = self.least(rows.shape, settings)
        if least >= rows.nbytes:
            return "leave it dense, or choose another --method"
        return f"ask for a ratio of at most {1 - least / rows.nbytes:.4g}"

    @abc.abstractmethod
    def encode(
        self, stats: TableStats, layout: TableLayout, settings: Settings, advance: Advance = ignore_progress
    ) -> Mapping[str, Blocks]:
        """Return the contents of each part of the layout, by suffix.

        The table is read when blocks are taken, not before. Rows of zeros decode to exact zeros.

        Args:
            stats: the table.
            layout: its layout, from :meth:`fit`.
            settings: the settings of that layout.
            advance: called with the number of rows encoded, by methods that take long.

        Raises:
            TargetError: the stored types cannot hold the values (raised while blocks are made).
        """

    def decoder(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """Return a reader of the table that is stored in ``parts``.

        Args:
            parts: the stored parts, at least all that are not optional.
            shape: (V, d), from the table's record.
            rank: components kept, from the table's record.

        Raises:
            InputError: the parts do not belong to such a table.
        """
        check_elements(self.parts, {suffix: (part.dtype, part.shape) for suffix, part in parts.items()})
        return self.decode(parts, shape, rank)

    @abc.abstractmethod
    def decode(self, parts: Parts, shape: tuple[int, int], rank: int | None) -> Read:
        """Return the reader of :meth:`decoder`, which calls this after it has checked the element types.

        Parts with a row per token are not held in memory: the reader reads the rows that are asked for.
        """

    @abc.abstractmethod
    def flops(self, shape: tuple[int, int], rank: int | None) -> int:
        """Floating-point operations of one token's lookup (multiply-add = 2, a gather = 0)."""

    def around(self, inner: Method) -> Method | None:
        """This method with ``inner`` to store the rows that it keeps; None if it does not wrap others."""
        return None

    @property
    def has_module(self) -> bool:
        """Whether there is a ``module.py``, so that torch can look rows up in the stored parts."""
        return self._has("module")

    def module(self) -> ModuleType:
        """Import ``module.py`` from the method's folder; this imports torch.

        The module has a function ``coded_table(method, parts, shape, kept=None)`` that returns the torch
        modules of a table; see :mod:`embcompress.methods.modules`.
        """
        return importlib.import_module(self._module_name("module"))

    def graph(self) -> Any:
        """Import ``graph.py``, and onnx with it, and return what adds the lookup to an ONNX graph.

        Returns:
            A ``TableGraph``; see ``checkpoint/onnx/building.py``.

        Raises:
            UsageError: the method has no ``graph.py``.
        """
        if not self._has("graph"):
            raise UsageError(
                f"method {self.name} cannot be used in an ONNX graph",
                remedy="choose another --method",
            )
        return importlib.import_module(self._module_name("graph")).table_graph(self)

    def _module_name(self, name: str) -> str:
        """Full name of a module in the method's folder."""
        return f"{type(self).__module__.rpartition('.')[0]}.{name}"

    def _has(self, name: str) -> bool:
        return importlib.util.find_spec(self._module_name(name)) is not None


class RankedMethod(Method):
    """A method whose size follows from a rank, so that users can choose the rank."""

    @abc.abstractmethod
    def check_rank(self, rows: Rows, name: str, rank: int, settings: Settings) -> None:
        """Refuse a rank that does not suit the shape, before any row is read.

        Raises:
            TargetError: the rank is above min(V, d), or would not make the table smaller.
        """

    @abc.abstractmethod
    def break_even(self, rows: Rows, settings: Settings) -> int:
        """Largest rank, at most min(V, d), that takes fewer bytes than the table; 0 if none does."""

    @abc.abstractmethod
    def at_rank(self, stats: TableStats, rank: int, settings: Settings) -> TableLayout:
        """Plan the layout that keeps ``rank`` components, 1 … min(V, d)."""
