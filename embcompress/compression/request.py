"""What a user asks of ``factorize``, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embcompress.checkpoint.base import AS_IT_IS, Reading
from embcompress.choices import (
    AUTO,
    DEFAULT_METHOD,
    DEFAULT_NAN,
    DTYPES,
    LAYOUTS,
    NANS,
    SPLITS,
    TARGETS,
)
from embcompress.compression.column_metric import GivenMetric
from embcompress.compression.weighting import GivenCounts, WeightSource
from embcompress.dtypes import BY_TORCH_NAME, DType
from embcompress.errors import UsageError, check_choice
from embcompress.methods import method_for
from embcompress.methods.base import Method
from embcompress.methods.planning import Target

__all__ = ["GivenCounts", "GivenMetric", "Request", "WeightSource", "target_of"]


@dataclass(frozen=True)
class Request:
    """What is to be compressed, how small, and how.

    Attributes:
        path: the checkpoint.
        target: how small its tables are to become.
        output: where to write; None for a place next to the input.
        keys: names of the tables, or one name; empty to have them found.
        all_tables: take every token table.
        method: registry name, or ``"auto"``.
        dtype: element type of float factors, as PyTorch names it; None for the table's own.
        split_scale: where the singular values go, one of ``SPLITS``; None for the usual place.
        layout: how factors are stored, one of ``LAYOUTS``; None for the native one where it is exact.
        nan: what to do with NaN and infinity in a table, one of ``NANS``.
        weights: how much each token counts.
        metric: texts to compute a metric over the columns from, in the format of ``weights``, or the metric
            itself (d×d); None if all columns count alike.
        check: texts on which the result is compared with the original, written as those of ``weights`` are.
        reading: what to take of a PyTorch file.
        dry_run: plan, and write nothing.
        force: replace an existing output.

    Raises:
        UsageError: a name is none of the choices, or the method makes no use of a metric.
    """

    path: Path
    target: Target
    output: Path | None = None
    keys: Sequence[str] = ()
    all_tables: bool = False
    method: str = DEFAULT_METHOD
    dtype: str | None = None
    split_scale: str | None = None
    layout: str | None = None
    nan: str = DEFAULT_NAN
    weights: WeightSource = field(default_factory=WeightSource)
    metric: GivenMetric = None
    check: Path | None = None
    reading: Reading = AS_IT_IS
    dry_run: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.keys, str):
            object.__setattr__(self, "keys", (self.keys,))
        if self.method != AUTO:
            method_for(self.method)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPES)
        if self.layout is not None:
            check_choice("layout", self.layout, LAYOUTS)
        if self.metric is not None and self.chosen_method is not None and self.chosen_method.by_rows:
            raise UsageError(
                f"a metric is given, and {self.method} stores the same with any",
                remedy="leave it out, or choose another method, such as pq",
            )
        if self.split_scale is not None:
            check_choice("split_scale", self.split_scale, SPLITS)
        check_choice("nan", self.nan, NANS)

    @property
    def chosen_method(self) -> Method | None:
        """The method; None for the one with the smallest predicted error."""
        return None if self.method == AUTO else method_for(self.method)

    @property
    def float_type(self) -> DType | None:
        """The element type of float factors; None for the table's own."""
        return None if self.dtype is None else BY_TORCH_NAME[self.dtype]

    @property
    def has_prior(self) -> bool:
        """Whether rows are weighted by what the vocabulary suggests, where the user does not say."""
        return self.chosen_method is None or self.chosen_method.weighs

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read besides the checkpoint."""
        texts = (self.metric, self.check)
        return (*self.weights.files, *(Path(each) for each in texts if isinstance(each, str | Path)))

    @property
    def label(self) -> str:
        """What the default name of the output ends in: method, kind of target and value."""
        kind, value = self.target.kind, self.target.value
        number = int(value) if kind in {"rank", "max_size"} else value
        return f"{self.method}-{kind.replace('_', '-')}-{number}"


def target_of(**given: float | None) -> Target:
    """The one target that is given.

    Args:
        given: a value for each kind of target, None where it is not asked for.

    Raises:
        UsageError: none or several are given, or the value is out of its range.
    """
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) != 1:
        named = ", ".join(asked) or "none"
        raise UsageError(f"targets given: {named}", remedy=f"give exactly one of {', '.join(TARGETS)}")
    return Target(*asked.popitem())
