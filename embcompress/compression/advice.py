"""Notes on a plan: too little to gain, heads that are not tied, high errors, and better methods."""

from __future__ import annotations

from collections.abc import Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.methods.planning import TablePlan
from embcompress.tables import differing_head

CLEARLY_BETTER = 0.9
"""Another method is named if its error is below this share of the chosen method's."""

HIGH_ERROR = 0.5
"""Relative error from which on a note says that much of the table is lost."""


def advice(source: Checkpoint, plans: Sequence[TablePlan], size: int) -> tuple[str, ...]:
    """What the user should know of a plan, one sentence each.

    Args:
        source: the checkpoint.
        plans: one a table.
        size: bytes that the output will take.
    """
    notes = []
    if size >= source.size:
        notes.append(
            f"the output takes {size:,} bytes, no less than the input: the tables are too small to gain from"
        )
    for plan in plans:
        head = differing_head(source, plan.table)
        if head:
            notes.append(
                f"config.json says that {head} is tied to {plan.table.name}, but its values differ: it is "
                "copied unchanged"
            )
        notes += _better(plan)
    return tuple(notes)


def _better(plan: TablePlan) -> tuple[str, ...]:
    """Notes on a table of which little is kept, or of which another method would keep more."""
    layout, name = plan.layout, plan.method.name
    error, notes = layout.predicted_error, []
    if error >= HIGH_ERROR:
        at_rank = "" if layout.rank is None else f" at rank {layout.rank}"
        notes.append(
            f"{plan.table.name} keeps only {1 - error**2:.0%} of its energy{at_rank}: the model will be "
            "worse until it is retrained; a lower --ratio or a --max-error keeps more"
        )
    best = min(plan.rivals, key=plan.rivals.__getitem__)
    if best != name and plan.rivals[best] < CLEARLY_BETTER * error:
        notes.append(
            f"--method {best} would keep {plan.table.name} to an error of about {plan.rivals[best]:.2g} at "
            f"this size ({name}: {error:.2g})"
        )
    return tuple(notes)
