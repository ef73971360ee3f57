"""Differences between a checkpoint's tensors and a model's, and when they are errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embcompress.errors import MissingWeights, UsageError, listed

RIGHT_MODEL = "use the model class and the sizes that it was made from"


@dataclass(frozen=True)
class Misfit:
    """How the tensors in a file differ from those of a model.

    Attributes:
        shapes: tensors whose shape differs, each as a text with both shapes.
        missing: names that only the model has.
        unknown: names that only the file has.
    """

    shapes: Sequence[str] = ()
    missing: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def names(self) -> str:
        """The missing and unknown names as a text; empty if there are none."""
        missing, unknown = _listed("missing from the file", self.missing), self.too_much
        return "; ".join(filter(None, (missing, unknown)))

    @property
    def too_much(self) -> str:
        """The unknown names as a text; empty if there are none."""
        return _listed("unknown to the model", self.unknown)

    def check(self, where: object, *, strict: bool, remedy: str) -> None:
        """Refuse shapes that differ and, if ``strict``, names that differ.

        Args:
            where: the file, for messages.
            strict: whether the names must be the same.
            remedy: what the user can do if names differ.

        Raises:
            MissingWeights: names must be the same, and the file lacks weights.
            UsageError: shapes differ, or names must be the same and the file holds more weights.
        """
        shapes, names = _listed("of another shape", self.shapes), self.names if strict else ""
        if not shapes and not names:
            return
        kind = MissingWeights if strict and self.missing else UsageError
        problems = "; ".join(filter(None, (shapes, names)))
        raise kind(f"{where}: does not fit the model: {problems}", remedy=RIGHT_MODEL if shapes else remedy)


def _listed(what: str, names: Sequence[str]) -> str:
    """``2 unknown to the model: a, b``; empty without names."""
    return f"{len(names)} {what}: {listed(names)}" if names else ""
