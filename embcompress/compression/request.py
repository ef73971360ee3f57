"""What a user asks of ``factorize``, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from embcompress.dtypes import BY_TORCH_NAME, TABLE_DTYPES, DType
from embcompress.errors import UsageError
from embcompress.methods.base import Method, Settings
from embcompress.methods.planning import TARGETS, Target
from embcompress.native.base import NativeForm
from embcompress.rows import count_nonfinite, filled_up
from embcompress.tables import Table

NANS = ("error", "zero")
"""What may become of numbers that are NaN or infinite: the table is refused, or they are taken for zeros."""


@dataclass(frozen=True)
class Request:
    """How the user wants it done.

    Attributes:
        method: None for auto.
        dtype: element type of float factors, None for the table's own.
        split_scale: where the singular values go.
        command: the command line for the same.
        form: that of the model's own library, where the parts are stored in it.
    """

    method: Method | None
    dtype: DType | None
    split_scale: str
    command: str | None
    form: NativeForm | None = None

    @property
    def mirrored(self) -> bool:
        """Whether right factors are stored twice."""
        return self.form is not None and self.form.mirrored

    def layout_of(self, method: Method) -> str:
        """What a user would have to ask for, one of ``placing.LAYOUTS``, to get what is stored."""
        return "native" if self.form else "sequential" if method.is_factors else "embcompress"

    def settings(self, dense: DType) -> Settings:
        """For a table of type ``dense``."""
        return Settings(self.dtype or dense, self.split_scale, self.mirrored)


def target_of(**given: float | None) -> Target:
    """The one target that is given.

    Raises:
        UsageError: it is none or several, or out of its range.
    """
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        named = ", ".join(asked) or "none"
        raise UsageError(f"targets given: {named}", remedy=f"give exactly one of {', '.join(TARGETS)}")
    return Target(*asked.popitem())


def dtype_of(name: str | None) -> DType | None:
    """The element type that PyTorch calls ``name``.

    Raises:
        UsageError: no table has it.
    """
    dtype = None if name is None else BY_TORCH_NAME.get(name)
    if name is not None and (dtype is None or not dtype.is_table):
        raise UsageError(f"dtype {name!r}", remedy=f"choose from {', '.join(d.torch for d in TABLE_DTYPES)}")
    return dtype


def check_nan(nan: str) -> None:
    """Refuse what is none of ``NANS``.

    Raises:
        UsageError: with the choice.
    """
    if nan not in NANS:
        raise UsageError(f"nan {nan!r}", remedy=f"choose from {', '.join(NANS)}")


def filled(tables: Sequence[Table], nan: str) -> tuple[Table, ...]:
    """The tables, with ``nan`` ``"zero"`` their numbers that are not finite taken for zeros.

    That is a pass over each; tables without such numbers stay as they are.
    """
    if nan != "zero":
        return tuple(tables)
    counts = [count_nonfinite(table.rows) for table in tables]
    return tuple(
        replace(table, rows=filled_up(table.rows), nonfinite=count) if count else table
        for table, count in zip(tables, counts, strict=True)
    )


def label_of(method: str, target: Target) -> str:
    """What the default name of an output ends in: ``svd-ratio-0.9``."""
    value = int(target.value) if target.kind in {"rank", "max_size"} else target.value
    return f"{method}-{target.kind.replace('_', '-')}-{value}"
