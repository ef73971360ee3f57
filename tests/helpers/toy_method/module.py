"""Signs times a size per row, in torch."""

from __future__ import annotations

import torch

from embcompress.methods.modules import projected, rows_in
from embcompress.nn.integer import unpacked
from embcompress.nn.lookup import CodedLookup


class SignRows(CodedLookup):
    """Looks up rows of signs times a size."""

    def __init__(self, signs, sizes, width, tokens, kept=None):
        super().__init__(tokens, width, kept)
        self.hold(signs=signs, sizes=sizes)
        self.derive()

    @property
    def stored(self):
        return self.signs

    def rows(self, numbers):
        signs = unpacked(self.signs.index_select(0, numbers), self.embedding_dim, 1)
        sizes = self.sizes.index_select(0, numbers)
        return torch.where(signs > 0, sizes, -sizes)


def coded_table(method, parts, shape, kept=None):
    return projected(
        SignRows(**rows_in(method, parts), width=shape[1], tokens=shape[0], kept=kept), None, shape
    )
