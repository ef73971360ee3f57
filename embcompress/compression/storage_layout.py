"""Under which names the parts of a table are stored, and which library they are for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embcompress.checkpoint.base import Checkpoint
from embcompress.choices import AUTO
from embcompress.compression.request import Request
from embcompress.errors import UsageError
from embcompress.methods import METHODS
from embcompress.methods.base import Method
from embcompress.native import native_form
from embcompress.native.base import NativeForm
from embcompress.tables import Table


def _of_factors() -> list[str]:
    """Names of the methods that store two float factors."""
    return [name for name, method in METHODS.items() if method.is_factors]


@dataclass(frozen=True)
class StorageLayout:
    """How the parts of tables are stored.

    Attributes:
        form: the form of the model's own library; None for names of this package.
        notes: what the user should know, one sentence each.
    """

    form: NativeForm | None = None
    notes: tuple[str, ...] = ()

    @property
    def mirrored(self) -> bool:
        """Whether right factors are stored twice."""
        return self.form is not None and self.form.mirrored

    def name_for(self, method: Method) -> str:
        """The one of ``LAYOUTS`` that gives the user what is stored with ``method``."""
        return "native" if self.form else "sequential" if method.is_factors else "embcompress"


def storage_layout(source: Checkpoint, tables: Sequence[Table], request: Request) -> StorageLayout:
    """The layout that is asked for, or else the native one where it is exact.

    Args:
        source: the checkpoint.
        tables: those to be compressed.
        request: how they are to be compressed.

    Raises:
        UsageError: the layout cannot hold what the method stores, or is not exact for this model.
    """
    layout, method = request.layout, request.chosen_method
    factors = method is not None and method.is_factors
    if layout in {"native", "sequential"} and not factors:
        stores = "may store codes" if request.method == AUTO else "stores codes"
        raise UsageError(
            f"layout {layout}: holds two float factors, method {request.method} {stores}",
            remedy=f"choose --method {' or '.join(_of_factors())}, or leave out --layout",
        )
    form = native_form(source)
    note = None if form is None else form.note(source, native=False)
    notes = () if note is None else (note,)
    if layout in {"sequential", "embcompress"} or not factors:
        return StorageLayout(notes=notes)
    reason = "the model's library has no form for factors"
    if form is not None:
        types = ((table, request.float_type or table.rows.dtype) for table in tables)
        reason = next(filter(None, (form.objection(source, *each) for each in types)), "")
        if not reason:
            return StorageLayout(form, (form.note(source, native=True) or "",))
        reason = f"{form.name}'s own form would not be exact: {reason}"
    if layout == "native":
        raise UsageError(f"{source.path}: {reason}", remedy="leave out --layout; embcompress loads it then")
    return StorageLayout(None, () if form is None else (f"stored for embcompress, since {reason}", *notes))
