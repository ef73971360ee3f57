"""What the user should know of a plan: ties that are none, how little is kept, what would keep more."""

from __future__ import annotations

from collections.abc import Sequence

from embcompress.checkpoint.base import Checkpoint
from embcompress.methods.planning import TablePlan
from embcompress.tables import differing_head

CLEARLY_BETTER = 0.9
"""Share of an error that another method must stay below to be named."""

HIGH_ERROR = 0.5
"""Relative error from which the summary says plainly that much of the table is lost."""


def advice(source: Checkpoint, plans: Sequence[TablePlan], size: int) -> tuple[str, ...]:
    """Notes on plans whose output takes ``size`` bytes, one sentence each."""
    notes = []
    if size >= source.size:
        notes.append(
            f"the output takes {size:,} bytes, no less than the input: its tables are too small to gain"
        )
    for plan in plans:
        head = differing_head(source, plan.table)
        if head:
            notes.append(
                f"config.json says that {head} is tied to {plan.table.name}, but its values differ: "
                "it is carried unchanged"
            )
        notes += _better(plan)
    return tuple(notes)


def _better(plan: TablePlan) -> tuple[str, ...]:
    """What would keep more of a table at this size, where little is kept or another method does better."""
    layout, name = plan.layout, plan.method.name
    error, notes = layout.predicted_error, []
    if error >= HIGH_ERROR:
        at_rank = "" if layout.rank is None else f" at rank {layout.rank}"
        notes.append(
            f"{plan.table.name} keeps only {1 - error**2:.0%} of its energy{at_rank}: the model will be "
            "worse unless it is trained on; a lower --ratio or a --max-error keeps more"
        )
    best = min(plan.rivals, key=plan.rivals.__getitem__)
    if best != name and plan.rivals[best] < CLEARLY_BETTER * error:
        notes.append(
            f"--method {best} would keep {plan.table.name} to an error of about {plan.rivals[best]:.2g} at "
            f"this size ({name}: {error:.2g})"
        )
    return tuple(notes)
