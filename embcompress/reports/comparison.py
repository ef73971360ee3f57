"""What ``compare`` and ``distil`` return, as plain records; JSON is their ``to_dict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcompress.training.recovery import Check, DistilRecipe, Likeness


@dataclass(frozen=True)
class CompareResult:
    """The result of :func:`embcompress.compare`.

    Attributes:
        path: the compressed model.
        teacher: the original.
        texts: the file of texts.
        size: bytes of the weight files of the compressed model.
        teacher_size: bytes of the weight files of the original.
        likeness: how alike they are.
        notes: what the user should know, one sentence each.
    """

    path: Path
    teacher: Path
    texts: Path
    size: int
    teacher_size: int
    likeness: Likeness
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return {
            "path": str(self.path),
            "teacher": str(self.teacher),
            "texts_file": str(self.texts),
            "size": self.size,
            "teacher_size": self.teacher_size,
            **self.likeness.to_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class DistilResult:
    """The result of :func:`embcompress.distil`.

    Attributes:
        source: the compressed model.
        teacher: the original.
        output: path of the result.
        recipe: settings of the training.
        learning_rate: the highest.
        train_texts: number of training texts.
        steps: optimizer steps.
        parameters: how many numbers were trained.
        checks: measurements at about every fifth of the run, the first before training.
        best: number of the check whose weights were kept, 0 for those before training.
        after: likeness of the written model on the texts that were set aside.
        size: bytes of the written weight files.
        notes: what the user should know, one sentence each.
    """

    source: Path
    teacher: Path
    output: Path
    recipe: DistilRecipe
    learning_rate: float
    train_texts: int
    steps: int
    parameters: int
    checks: tuple[Check, ...]
    best: int
    after: Likeness
    size: int
    notes: tuple[str, ...]

    @property
    def before(self) -> Likeness:
        """Likeness before training, on the texts that were set aside."""
        return self.checks[0].held_out

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, ready for JSON."""
        return {
            "source": str(self.source),
            "teacher": str(self.teacher),
            "output": str(self.output),
            "train": self.recipe.train,
            "mixture": self.recipe.mixture,
            "learning_rate": self.learning_rate,
            "train_texts": self.train_texts,
            "held_out_texts": self.after.texts,
            "steps": self.steps,
            "parameters": self.parameters,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "best": self.best,
            "checks": [check.to_dict() for check in self.checks],
            "size": self.size,
            "notes": list(self.notes),
        }
