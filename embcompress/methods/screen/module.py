"""A screened table in torch: the modules of the inner method, with the bits of the kept tokens."""

from __future__ import annotations

from embcompress.methods.base import Method
from embcompress.methods.modules import Parts, TableModules
from embcompress.methods.screen.method import KEPT, Screen


def coded_table(method: Method, parts: Parts, shape: tuple[int, int]) -> TableModules:
    """Build the modules of the inner table of a (V, d) table."""
    assert isinstance(method, Screen)
    inner = {suffix: part for suffix, part in parts.items() if suffix != KEPT}
    found: TableModules = method.inner.module().coded_table(
        method.inner, inner, shape, kept=parts[KEPT].clone()
    )
    return found
