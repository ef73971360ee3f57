"""Under which names, and for whose eyes, the parts of a table are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embcompress.checkpoint.base import Checkpoint
from embcompress.compression.request import Request
from embcompress.errors import UsageError
from embcompress.native import native_form
from embcompress.native.base import NativeForm
from embcompress.tables import Table

LAYOUTS = ("native", "sequential", "embcompress")
"""What a user may ask for: the form of the model's own library, that of ``nn.Sequential(nn.Embedding,
nn.Linear)``, or whatever this package reads, which for float factors is the same as the second."""


@dataclass(frozen=True)
class StorageLayout:
    """What was settled.

    Attributes:
        form: the library's own form; None for names of this package.
        notes: what the user should know, one sentence each.
    """

    form: NativeForm | None = None
    notes: tuple[str, ...] = ()


def storage_layout(
    source: Checkpoint, tables: Sequence[Table], request: Request, layout: str | None
) -> StorageLayout:
    """Settle the layout: the one asked for, or the native one where it is exact.

    Args:
        source: the checkpoint.
        tables: those to be compressed.
        request: how they are to be compressed.
        layout: one of ``LAYOUTS``, or None.

    Raises:
        UsageError: the layout cannot hold what the method stores, or is not exact for the model.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r}", remedy=f"choose from {', '.join(LAYOUTS)}")
    method = request.method
    factors = method is not None and method.is_factors
    if layout in {"native", "sequential"} and not factors:
        stored = "codes" if method else "what is found best"
        raise UsageError(
            f"layout {layout}: holds two float factors, method {method.name if method else 'auto'} "
            f"stores {stored}",
            remedy="choose --method svd, or leave out --layout",
        )
    if layout in {"sequential", "embcompress"} or not factors:
        return StorageLayout()
    form = native_form(source)
    reason = "the model's library has no form for factors"
    if form is not None:
        types = ((table, request.dtype or table.rows.dtype) for table in tables)
        reason = next(filter(None, (form.objection(source, *each) for each in types)), "")
        if not reason:
            return StorageLayout(form, ("it loads with the library of the model, without embcompress",))
        reason = f"{form.name}'s own form would not be exact: {reason}"
    if layout == "native":
        raise UsageError(f"{source.path}: {reason}", remedy="leave out --layout; embcompress loads it then")
    return StorageLayout(None, () if form is None else (f"stored for embcompress, since {reason}",))
