"""Trellis-coded rows in torch, decoded when they are looked up; see ``linalg/trelliscode.py``.

Each component of a row is a symbol: the window of coded bits of its step, with its uncoded bits above them.
Both lie within two neighbouring bytes, at positions that are the same for all rows of a class. So shifts and
masks extract the symbols of a whole batch, with tokens along the last axis, and one gather finds their values
in an array made from the codebooks.
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

from embcompress.linalg.bits import Bits
from embcompress.linalg.trelliscode import MEMORY, PAIR, code_of, coded_order
from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules, projected, right_factor, rows_in
from embcompress.nn.lookup import CodedLookup, packed_bits, require

_WINDOW = 2 << MEMORY
"""Number of windows; symbols with the same uncoded bits are adjacent."""

_BLOCK = 1 << 20
"""Rows numbered at a time."""

_PLAIN, _ZERO = -1, -2
"""Values in ``nth_hot`` for rows that are not hot: ordinary rows, and rows of zeros."""


class TrellisRows(CodedLookup):
    """Looks up the scaled coefficients of trellis-coded rows.

    There may be two classes of rows, with different rates. The code of a *hot* row, one of the second class,
    continues in ``extra``.

    Args:
        codes: N×m bytes.
        rates: c×width bytes, twice the bits of each component in each class.
        codebooks: 1×n, flat, one class after the other.
        scales: c×width.
        extra: H×e bytes, the remaining bytes of hot rows.
        hot: one bit per row (⌈N/8⌉×1 bytes, most significant first).
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
    nth_hot: Tensor | None  # for each row, its row in extra, or one of the two values above (N, int32)
    levels: Tensor  # index in the codebooks of the value of each symbol; one past their end means zero
    places: Tensor  # c×6×width: window byte and shift; uncoded bits' byte, shift and mask; first symbol

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
        for name in ("nth_hot", "levels", "places"):
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
        classes, device = len(self.rates), self.codes.device
        require(classes == (1 if self.hot is None else 2), f"{classes} classes of rows")
        require((self.hot is None) == (self.extra is None), "hot rows and extra go together")
        require(self.scales.shape == self.rates.shape, f"scales are {list(self.scales.shape)}")
        try:
            found = [_Class.of(rates) for rates in self.rates.cpu().numpy() / 2]
        except ValueError as error:
            require(False, f"rates: {error}")
        more = 0 if self.extra is None else self.extra.shape[1]
        for each, width in zip(found, (self.codes.shape[1], self.codes.shape[1] + more), strict=False):
            require(each.row_bytes == width, f"{width} bytes hold codes of {each.row_bytes}")
        starts = np.cumsum([0, *(each.level_count for each in found)])
        count = int(starts[-1])
        require(self.codebooks.shape == (1, count), f"codebooks are {list(self.codebooks.shape)} for {count}")
        levels = [each.levels + start for each, start in zip(found, starts, strict=False)]
        firsts = np.cumsum([0, *map(len, levels)])
        levels.append(np.full(_WINDOW, count))  # for components without bits, any window
        places = np.stack([each.places for each in found])
        coded = places[:, -1] >= 0
        places[:, -1] = np.where(coded, places[:, -1] + firsts[: len(found), None], firsts[-1])
        self.levels = torch.from_numpy(np.concatenate(levels).astype(np.int32)).to(device)
        self.places = torch.from_numpy(places).to(device)
        self.nth_hot = self._numbered()

    def _numbered(self) -> Tensor | None:
        """Compute ``nth_hot``, with checks; None if all rows are ordinary."""
        if self.hot is None and self.zeros is None:
            return None
        numbered = np.full(len(self.codes), _PLAIN, np.int32)
        if self.hot is not None and self.extra is not None:
            hot = Bits(packed_bits(self.hot, len(self.codes), "hot"), len(self.codes))
            require(
                hot.total == len(self.extra), f"{hot.total:,} rows are hot, extra has {len(self.extra):,}"
            )
            for start in range(0, len(numbered), _BLOCK):
                stop = min(start + _BLOCK, len(numbered))
                some = numbered[start:stop]
                some[hot.span(start, stop)] = np.arange(hot.before(start), hot.before(stop))
        if self.zeros is not None:
            zeros = self.zeros.flatten().cpu().numpy()
            require(self.zeros.shape == (len(zeros), 1), f"zeros are {list(self.zeros.shape)}")
            require(
                bool(((zeros >= 0) & (zeros < len(numbered))).all()),
                f"zeros beyond row {len(numbered) - 1:,}",
            )
            numbered[zeros] = _ZERO
        return torch.from_numpy(numbered).to(self.codes.device)

    def rows(self, numbers: Tensor) -> Tensor:
        codes = self.codes.index_select(0, numbers)
        nth_hot = None if self.nth_hot is None else self.nth_hot.index_select(0, numbers)
        if self.extra is not None and nth_hot is not None:
            codes = torch.cat([codes, self.extra.index_select(0, nth_hot.clamp(min=0))], dim=1)
        octets = F.pad(codes, (0, 1)).T.contiguous().to(torch.int32)
        byte_pairs = octets[:-1] << 8 | octets[1:]
        symbols, scales = self._symbols(0, byte_pairs), self.scales[0, :, None]
        if self.extra is not None and nth_hot is not None:
            hot = nth_hot >= 0
            symbols = torch.where(hot, self._symbols(1, byte_pairs), symbols)
            scales = torch.where(hot, self.scales[1, :, None], scales)
        values = F.pad(self.codebooks.flatten(), (0, 1)).index_select(0, self.levels)
        coefficients = values.index_select(0, symbols.flatten()).view(symbols.shape) * scales
        if self.zeros is not None and nth_hot is not None:
            coefficients = coefficients * (nth_hot != _ZERO)
        return coefficients.T if self.dtype == torch.float16 else coefficients.T.to(self.dtype)

    def _symbols(self, kind: int, byte_pairs: Tensor) -> Tensor:
        """Symbol of each component (width×n) in one class, from pairs of neighbouring bytes of the rows."""
        octet, shift, more_octet, more_shift, more_mask, first = self.places[kind].unbind()
        windows: Tensor = byte_pairs.index_select(0, octet) >> shift[:, None] & _WINDOW - 1
        uncoded: Tensor = byte_pairs.index_select(0, more_octet) << MEMORY + 1 >> more_shift[:, None]
        uncoded = uncoded & more_mask[:, None]
        symbols: Tensor = (windows | uncoded) + first[:, None]
        return symbols

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, classes={len(self.rates)}, bytes={self.codes.shape[1]}"


@dataclass(frozen=True)
class _Class:
    """Positions and values of the symbols of one class of rows.

    Attributes:
        row_bytes: bytes of a code.
        level_count: numbers in the codebooks.
        levels: index in the codebooks of the value of each symbol. The upper bits of a symbol are the
            uncoded bits, or for pairs 0 or 1 for the first or second; the lower bits are the window.
        places: of each component, as in ``TrellisRows``; the first symbol of components without bits is -1.
    """

    row_bytes: int
    level_count: int
    levels: NDArray[np.intp]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, rates: NDArray[np.float64]) -> _Class:
        """Return the class whose components have these rates.

        Raises:
            ValueError: no code has such rates.
        """
        code, order = code_of(rates), coded_order(rates)
        levels: list[NDArray[np.intp]] = []
        firsts, first = np.zeros(len(order), np.intp), 0
        for rate, run in code.runs:
            found = code.levels[rate]
            firsts[run] = first
            if rate == PAIR:
                firsts[run] += np.arange(run.stop - run.start) % 2 * _WINDOW
                found = found.reshape(-1, 2).T.ravel()
            levels.append(found)
            first += len(found)
        bits, starts = code.uncoded_bits, code.uncoded_starts * (code.uncoded_bits > 0)
        places = np.tile(np.array([0, 0, 0, 0, 0, -1], np.int32)[:, None], len(rates))
        places[:, order] = (
            code.windows >> 3,
            15 - MEMORY - (code.windows & 7),
            starts >> 3,
            16 - bits - (starts & 7),
            (1 << bits) - 1 << MEMORY + 1,
            firsts,
        )
        return cls(code.row_bytes, code.book_size, np.concatenate(levels), places)


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules:
    """Build the modules that hold the coded rows and the right factor of a (V, d) table."""
    lookup = TrellisRows(**rows_in(method, parts), tokens=shape[0], kept=kept)
    return projected(lookup, right_factor(parts, shape[1]), shape)
