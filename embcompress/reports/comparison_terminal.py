"""Results of ``compare`` and ``distil`` for people to read, with rich."""

from __future__ import annotations

from embcompress.reports.comparison import CompareResult, DistilResult
from embcompress.reports.terminal import Lines, print_likeness, safe, show, stdout
from embcompress.reports.units import human_bytes
from embcompress.training.recovery import Check, DistilWatcher

_WHOLE = 1000


class DistilProgress(Lines, DistilWatcher):
    """A line for each check on stderr, and on a terminal a bar with the loss and the time left.

    Args:
        quiet: print nothing.
    """

    def step(self, share: float, loss: float, learning_rate: float) -> None:
        """Move the bar."""
        if self._quiet or not self._console.is_terminal:
            return
        text = f"loss {loss:.4f}  rate {learning_rate:<7.2g}"
        self._bar.show(text, share * _WHOLE, _WHOLE)

    def check(self, check: Check, *, best: bool) -> None:
        """Print the measurements of the check."""
        if not self._quiet:
            self._console.print(check_line(check, best=best), soft_wrap=True)


def check_line(check: Check, *, best: bool) -> str:
    """One check in a line of 80 columns; the star marks the best so far."""
    found = check.held_out
    loss = "untrained  " if check.loss is None else f"loss {check.loss:.4f}"
    measure = f"nearest {found.neighbours:.1%}"
    if found.perplexity is not None:
        measure = f"perplexity {found.perplexity:.2f}"
    return (
        f"step {check.step:5,}  {loss}  set aside {found.loss:.4f}{' *' if best else '  '} "
        f"cosine {found.cosine:.4f}  {measure}  {check.seconds:.0f} s"
    )


@show.register
def _(result: CompareResult) -> None:
    console = stdout()
    console.print(
        f"[bold]{safe(result.path)}[/] {human_bytes(result.size)} against [bold]{safe(result.teacher)}[/] "
        f"{human_bytes(result.teacher_size)}, on {result.likeness.texts:,} texts of {safe(result.texts)}"
    )
    print_likeness(console, ("compressed", result.likeness))


@show.register
def _(result: DistilResult) -> None:
    console = stdout()
    console.print(
        f"[bold]{safe(result.source)}[/] learned from [bold]{safe(result.teacher)}[/]: "
        f"{safe(result.recipe.train)}, {result.parameters:,} numbers, {result.steps:,} steps on "
        f"{result.train_texts:,} texts; on {result.after.texts:,} texts that were set aside"
    )
    print_likeness(console, ("before", result.before), ("after", result.after))
    console.print(f"wrote [bold]{safe(result.output)}[/], {human_bytes(result.size)}")
