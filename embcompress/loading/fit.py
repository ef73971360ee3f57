"""How what is stored differs from what a model needs, and when that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embcompress.errors import MissingWeights, UsageError

RIGHT_MODEL = "use the model class and the sizes that it was made from"

_SHOWN = 3
"""Names listed in a message before the rest is counted."""


@dataclass(frozen=True)
class Misfit:
    """Names that differ.

    Attributes:
        shapes: of tensors in other shapes than the model's, each with both.
        missing: in the model and not in the file.
        unknown: in the file and not in the model.
    """

    shapes: Sequence[str] = ()
    missing: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def names(self) -> str:
        """What is missing and unknown, in words; empty where nothing is."""
        missing, unknown = _listed("missing from the file", self.missing), self.too_much
        return "; ".join(filter(None, (missing, unknown)))

    @property
    def too_much(self) -> str:
        """What is unknown, in words; empty where nothing is."""
        return _listed("unknown to the model", self.unknown)

    def check(self, where: object, *, strict: bool, remedy: str) -> None:
        """Refuse other shapes, and if ``strict`` other names.

        Args:
            where: the file, for messages.
            strict: whether names must be the same.
            remedy: what to do about names.

        Raises:
            MissingWeights: the file lacks weights.
            UsageError: shapes differ, or the file holds more.
        """
        shapes, names = _listed("of another shape", self.shapes), self.names if strict else ""
        if not shapes and not names:
            return
        kind = MissingWeights if strict and self.missing else UsageError
        problems = "; ".join(filter(None, (shapes, names)))
        raise kind(f"{where}: does not fit the model: {problems}", remedy=RIGHT_MODEL if shapes else remedy)


def _listed(what: str, names: Sequence[str]) -> str:
    """``2 unknown to the model: a, b``; empty without names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}" if names else ""
