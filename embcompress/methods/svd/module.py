"""Two float factors in torch."""

from __future__ import annotations

from torch import Tensor

from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules, projected, right_factor, rows_in
from embcompress.nn.lookup import FloatRows


def coded_table(
    method: Method, parts: Parts, shape: tuple[int, int], kept: Tensor | None = None
) -> TableModules | None:
    """Build the modules that hold the factors of a (V, d) table; None if torch's own modules serve."""
    if kept is None:
        return None
    lookup = FloatRows(**rows_in(method, parts), tokens=shape[0], kept=kept)
    return projected(lookup, right_factor(parts, shape[1]), shape)
