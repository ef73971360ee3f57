"""Rows stored as small integers with one scale each; they are decoded when they are looked up."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from embcompress.linalg.packing import packed_width
from embcompress.nn.lookup import CodedLookup, require


class IntegerRows(CodedLookup):
    """Looks up rows of scaled integers; see ``linalg/integers.py``.

    Codes and scales are buffers. Scales are much smaller than other weights, so steps that suit those, such
    as Adam's, would ruin them.

    Args:
        codes: N×``packed_width(width, bits)`` bytes.
        scales: scale of each row (N×1).
        width: integers in a row.
        bits: bits of an integer, or a stored tensor (1×2) whose first number that is.
        tokens: number of tokens, V.
        kept: which tokens keep a row, as in :class:`CodedLookup`.
    """

    codes: Tensor
    scales: Tensor
    bits: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        width: int,
        bits: int | Tensor,
        *,
        tokens: int,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__(tokens, width, kept)
        self._bits = bits if isinstance(bits, int) else 0
        self.hold(bits=None if isinstance(bits, int) else bits, codes=codes, scales=scales)
        self.derive()

    @property
    def stored(self) -> Tensor:
        """The codes, one row each."""
        return self.codes

    @property
    def dtype(self) -> torch.dtype:
        """The type of the scales, which is that of the model."""
        return self.scales.dtype

    def derive(self) -> None:
        super().derive()
        if self.bits is not None:
            require(self.bits.shape == (1, 2), f"bits are {list(self.bits.shape)}")
            self._bits = int(self.bits[0, 0])
        require(1 <= self._bits <= 8, f"integers of {self._bits} bits")
        wanted = packed_width(self.embedding_dim, self._bits)
        found = f"{self.codes.shape[1]} bytes hold {self.embedding_dim} integers of {self._bits} bits"
        require(self.codes.shape[1] == wanted, found)
        require(self.scales.shape == (len(self.codes), 1), f"scales are {list(self.scales.shape)}")

    def rows(self, numbers: Tensor) -> Tensor:
        integers = unpacked(self.codes.index_select(0, numbers), self.embedding_dim, self._bits)
        scales = self.scales.index_select(0, numbers)
        if scales.dtype == torch.float16:
            scales = scales.float()
        return integers.to(scales.dtype).sub_((2**self._bits - 1) / 2) * scales

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self._bits}"


def unpacked(codes: Tensor, count: int, bits: int) -> Tensor:
    """Unpack rows of N×``packed_width(count, bits)`` bytes to integers (N×count); see ``linalg/packing.py``.

    The smallest number of bytes that holds whole integers becomes one word, from which shifts extract each.
    """
    if bits == 8:
        return codes
    octets = bits // math.gcd(bits, 8)
    together = 8 * octets // bits
    filled = F.pad(codes, (0, -codes.shape[1] % octets))
    groups = filled.view(codes.shape[0], filled.shape[1] // octets, octets)
    words: Tensor = groups[..., 0]
    if octets > 1:
        words = words.to(torch.int32 if octets < 4 else torch.int64)
        for i in range(1, octets):
            words = words << 8 | groups[..., i]
    places = torch.arange(together - 1, -1, -1, dtype=words.dtype, device=codes.device) * bits
    values: Tensor = words[..., None] >> places & 2**bits - 1
    return values.flatten(1)[:, :count]
