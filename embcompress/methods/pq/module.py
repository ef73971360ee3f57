"""Trellis-coded rows in torch, decoded when they are looked up; see ``linalg/trelliscode.py``.

In all rows of a class the bits of a component are at the same place, within two neighbouring bytes. So the
rows that are looked up are sorted by class, and shifts and masks extract the symbols of a class at once, with
rows along the last axis. Each symbol selects a number in a codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from embcompress.linalg.classes import RowClasses
from embcompress.linalg.trelliscode import MEMORY, PAIR, TrellisCode, book_starts, code_of, coded_order
from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules, projected, right_factor, rows_in
from embcompress.nn.lookup import CodedLookup, is_eager, require

_WINDOWS = 2 << MEMORY
"""Number of windows."""

_BLOCK = 1 << 20
"""Rows numbered at a time."""


class TrellisRows(CodedLookup):
    """Looks up the scaled coefficients of trellis-coded rows.

    Rows of several classes have different rates. The code of a row that is not of class 0 continues in
    ``extra``.

    Args:
        codes: N×m bytes.
        rates: c×width bytes, twice the bits of each component in each class.
        codebooks: 1×n, flat, as in ``linalg.trelliscode.book_starts``.
        scales: c×width.
        extra: the remaining bytes of rows, one class after the other, in rows of any width.
        hot: class of each row (bytes×1), as in ``linalg/classes.py``.
        zeros: indices of rows that are zero whatever their codes (Z×1, int32).
        tokens: number of tokens, V.
        kept: which tokens keep a row, as in :class:`CodedLookup`.
    """

    codes: Tensor
    rates: Tensor
    codebooks: Tensor
    scales: Tensor
    extra: Tensor | None
    hot: Tensor | None
    zeros: Tensor | None
    # Derived from these:
    kinds: Tensor | None  # class of each row, c for rows of zeros (N, uint8); None if all are of class 0
    extra_at: Tensor | None  # first byte of each row in extra (N, int64); None without extra
    bits: Tensor  # of all classes, what _Class says
    places: Tensor  # of each component among the decoded ones of its class (c×width)
    subsets: Tensor  # subset, 0 … 3, that each window selects

    def __init__(
        self,
        codes: Tensor,
        rates: Tensor,
        codebooks: Tensor,
        scales: Tensor,
        *,
        extra: Tensor | None = None,
        hot: Tensor | None = None,
        zeros: Tensor | None = None,
        tokens: int,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__(tokens, rates.shape[1], kept)
        self.hold(codes=codes, rates=rates, codebooks=codebooks, scales=scales)
        self.hold(extra=extra, hot=hot, zeros=zeros)
        for name in ("kinds", "extra_at", "bits", "places", "subsets"):
            self.register_buffer(name, None, persistent=False)
        self.derive()

    @property
    def stored(self) -> Tensor:
        """The codes, one row each."""
        return self.codes

    @property
    def dtype(self) -> torch.dtype:
        """The type of the codebooks, which is that of the model."""
        return self.codebooks.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert tensors, but keep scales in float32: float16 is too narrow for some."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype in (torch.float16, torch.bfloat16):
            self.scales = scales.to(self.scales.device)
        return self

    def derive(self) -> None:
        super().derive()
        count, device = len(self.rates), self.codes.device
        require((self.hot is None) == (self.extra is None), "hot rows and extra go together")
        require((self.hot is None) == (count == 1), f"{count} classes of rows")
        require(self.scales.shape == self.rates.shape, f"scales are {list(self.scales.shape)}")
        try:
            self._classes, bits, places = _classes_of(self.rates.cpu().numpy() / 2, self.codebooks.shape[1])
        except ValueError as error:
            require(False, f"rates: {error}")
        width, first = self.codes.shape[1], self._classes[0].code.row_bytes
        require(first == width, f"{width} bytes hold codes of {first}")
        require(len(self.codebooks) == 1, f"codebooks are {list(self.codebooks.shape)}")
        subsets = self._classes[0].code.subsets.astype(np.int32)
        self.bits, self.places, self.subsets = (
            torch.from_numpy(array).to(device) for array in (bits, places, subsets)
        )
        self.kinds, self.extra_at = (
            torch.from_numpy(array).to(device) if array.any() else None for array in self._placed()
        )

    def _placed(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Compute ``kinds`` and ``extra_at``, with checks."""
        rows, count = len(self.codes), len(self._classes)
        kinds, extra_at = np.zeros(rows, np.uint8), np.zeros(0 if self.extra is None else rows, np.int64)
        if self.hot is not None and self.extra is not None:
            try:
                classes = RowClasses(self.hot.flatten().cpu().numpy(), rows, count)
            except ValueError as error:
                require(False, f"hot: {error}")
            more = np.array([each.code.row_bytes for each in self._classes]) - self.codes.shape[1]
            starts = np.cumsum([0, *(more * classes.totals)])
            require(bool((more[1:] > 0).all()), f"classes of {', '.join(map(str, more))} more bytes a row")
            require(
                starts[-1] == self.extra.numel(),
                f"extra has {self.extra.numel():,} bytes, not {starts[-1]:,}",
            )
            for start in range(0, rows, _BLOCK):
                stop = min(start + _BLOCK, rows)
                kinds[start:stop] = classes.span(start, stop)
                before = starts[:-1] + more * classes.before(start)
                for kind in range(1, count):
                    members = start + np.flatnonzero(kinds[start:stop] == kind)
                    extra_at[members] = before[kind] + more[kind] * np.arange(len(members))
        if self.zeros is not None:
            zeros = self.zeros.flatten().cpu().numpy()
            require(self.zeros.shape == (len(zeros), 1), f"zeros are {list(self.zeros.shape)}")
            require(bool(((zeros >= 0) & (zeros < rows)).all()), f"zeros beyond row {rows - 1:,}")
            kinds[zeros] = count
        return kinds, extra_at

    def rows(self, numbers: Tensor) -> Tensor:
        if self.kinds is None:
            found = self._decoded(0, numbers).T
        elif is_eager(numbers):
            kinds, order = self.kinds.index_select(0, numbers).sort()
            counts = torch.bincount(kinds, minlength=len(self._classes) + 1).tolist()
            groups = torch.split(numbers.index_select(0, order), counts)
            parts = [self._decoded(kind, group).T for kind, group in enumerate(groups[:-1]) if len(group)]
            parts.append(self.scales.new_zeros(counts[-1], self.embedding_dim))
            found = torch.cat(parts).index_select(0, order.argsort())
        else:  # no sizes may depend on the numbers
            kinds, found = self.kinds.index_select(0, numbers), self._decoded(0, numbers)
            for kind in range(1, len(self._classes)):
                found = torch.where(kinds == kind, self._decoded(kind, numbers), found)
            found = torch.where(kinds < len(self._classes), found, 0).T
        return found if self.dtype == torch.float16 else found.to(self.dtype)

    def _decoded(self, kind: int, numbers: Tensor) -> Tensor:
        """Coefficients (width×n) of rows of one class; of other rows, any numbers."""
        of = self._classes[kind]
        octets = self.codes.index_select(0, numbers)
        if kind and self.extra is not None and self.extra_at is not None:
            extra = self.extra.flatten()
            more = torch.arange(of.code.row_bytes - self.codes.shape[1], device=numbers.device)
            at = self.extra_at.index_select(0, numbers)[:, None] + more
            octets = torch.cat([octets, extra[at.clamp(max=len(extra) - 1)]], dim=1)
        octets = F.pad(octets, (0, 1)).T.to(torch.int32)
        byte_pairs = octets[:-1] << 8 | octets[1:]
        octet, shift, more_octet, more_shift, more_mask, base = torch.split(self.bits[of.bits_at], of.sizes)
        windows = (byte_pairs.index_select(0, octet) >> shift[:, None]) & (_WINDOWS - 1)
        uncoded = (byte_pairs.index_select(0, more_octet) << 2 >> more_shift[:, None]) & more_mask[:, None]
        scalars = [len(base), of.code.scalars - len(base), len(windows) - of.code.scalars]
        several, ones, pairs = torch.split(windows, scalars)
        book = self.codebooks.flatten()
        index = self.subsets.index_select(0, several.flatten()).view(several.shape) + base[:, None] + uncoded
        values = [book.index_select(0, index.flatten()).view(index.shape)]
        if len(ones):
            values.append(book[of.ones][self.subsets].index_select(0, ones.flatten()).view(ones.shape))
        if len(pairs):
            values += F.embedding(pairs, book[of.pairs].view(-1, 2)).unbind(-1)
        values.append(book.new_zeros(1, numbers.shape[0]))  # for components without bits
        return torch.cat(values).index_select(0, self.places[kind]) * self.scales[kind, :, None]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, classes={len(self.rates)}, bytes={self.codes.shape[1]}"


@dataclass(frozen=True)
class _Class:
    """One class of rows, and where its positions are in ``bits``.

    ``bits`` holds of each step the first byte and the shift of its window; of each component with uncoded
    bits their first byte, shift and mask, and the first number of their codebook.

    Attributes:
        code: the trellis code.
        ones, pairs: its codebooks for one bit and for pairs.
        bits_at: its part of ``bits``.
        sizes: lengths of the six runs in it.
    """

    code: TrellisCode
    ones: slice
    pairs: slice
    bits_at: slice
    sizes: list[int]


def _classes_of(
    rates: NDArray[np.float64], size: int
) -> tuple[list[_Class], NDArray[np.int32], NDArray[np.int64]]:
    """The classes with these rates (c×width), ``bits`` and ``places``; ``size`` is that of the codebooks.

    Components with whole bits are decoded first, then the first of each pair, then the second; the row after
    them is for components without bits.

    Raises:
        ValueError: no code has such rates, or other codebooks.
    """
    classes: list[_Class] = []
    bits, places = np.empty(0, np.int32), np.empty(rates.shape, np.int64)
    codes = [code_of(each) for each in rates]
    for kind, (code, first) in enumerate(zip(codes, book_starts(codes, size), strict=True)):
        order = coded_order(rates[kind])
        singles, twos = np.split(order, [code.scalars])
        places[kind] = len(order)
        places[kind, np.concatenate([singles, twos[::2], twos[1::2]])] = np.arange(len(order))
        steps = np.arange(code.steps)
        uncoded = code.uncoded_bits[code.uncoded_bits > 0]
        starts = code.uncoded_starts[: len(uncoded)]
        runs = (
            steps >> 3,
            15 - MEMORY - (steps & 7),
            starts >> 3,
            16 - uncoded - (starts & 7),
            (1 << uncoded) - 1 << 2,  # times 4: the levels of a subset are every fourth of a codebook
            np.array([first[rate] for rate in code.rates[: len(uncoded)]], np.int64),
        )
        ones, pairs = (
            slice(first.get(rate, 0), first.get(rate, 0) + length)
            for rate, length in ((1, 4), (PAIR, 2 * _WINDOWS))
        )
        sizes = [len(run) for run in runs]
        classes.append(
            _Class(
                code=code,
                ones=ones,
                pairs=pairs,
                bits_at=slice(len(bits), len(bits) + sum(sizes)),
                sizes=sizes,
            )
        )
        bits = np.append(bits, np.concatenate(runs).astype(np.int32))
    return classes, bits, places


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules:
    """Build the modules that hold the coded rows and the right factor of a (V, d) table."""
    lookup = TrellisRows(**rows_in(method, parts), tokens=shape[0], kept=kept)
    return projected(lookup, right_factor(parts, shape[1]), shape)
