"""Terminal output for training and its results, with rich."""

from __future__ import annotations

from embcompress.reports.learning import CompressResult, EvaluateResult, TrainingResult
from embcompress.reports.terminal import Lines, print_table, safe, show, stdout
from embcompress.reports.units import human_bytes
from embcompress.training.records import Epoch, Watcher

_WIDEST_CONFUSION = 12
"""Most labels for which the confusion matrix is printed; --json always contains it."""


class TrainingProgress(Lines, Watcher):
    """A line for each epoch on stderr, and on a terminal a bar with the loss and the time left.

    Args:
        quiet: print nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._dev = 0.0

    def step(self, epoch: int, done: int, total: int, loss: float, learning_rate: float) -> None:
        """Move the bar."""
        if self._quiet or not self._console.is_terminal:
            return
        text = f"epoch {epoch}  loss {loss:.4f}  rate {learning_rate:<7.2g}  dev {self._dev:.2%}"
        self._bar.show(text, done, total, begun=done - 1)
        if done == total:
            self._bar.stop()

    def epoch(self, epoch: Epoch, *, best: bool) -> None:
        """Print the measurements of the epoch."""
        self._dev = epoch.dev_accuracy
        if not self._quiet:
            self._console.print(epoch_line(epoch, best=best), soft_wrap=True)


def epoch_line(epoch: Epoch, *, best: bool) -> str:
    """One epoch in a line of 80 columns; the star marks the best so far."""
    measured = f"dev {epoch.dev_accuracy:7.2%}{' *' if best else '  '} loss {epoch.dev_loss:.4f}"
    if epoch.loss is None or epoch.learning_rate is None:
        return f"epoch {epoch.epoch:2}  before training        {measured}"
    learned = f"loss {epoch.loss:.4f}  rate {epoch.learning_rate:<7.2g}"
    return f"epoch {epoch.epoch:2}  {learned}  {measured}  {epoch.seconds:.1f} s"


@show.register
def _(result: TrainingResult) -> None:
    console = stdout()
    console.print(
        f"[bold]{safe(result.classifier)}[/]  {result.tokens:,} tokens, {len(result.labels)} labels, "
        f"{result.train_texts:,} texts to learn from, {result.dev_texts:,} to choose the epoch"
    )
    if result.pretrained:
        share = result.pretrained / result.tokens
        console.print(f"pretrained vectors filled {result.pretrained:,} rows ({share:.1%})")
    before = f" ({result.epochs[0].dev_accuracy:.2%} before)" if result.source else ""
    console.print(
        f"dev accuracy {result.dev_accuracy:.2%}{before}, epoch {result.best} of {result.epochs[-1].epoch}"
    )
    console.print(f"wrote [bold]{safe(result.output)}[/], {human_bytes(result.size)}")


@show.register
def _(result: EvaluateResult) -> None:
    console = stdout()
    confusion = result.confusion
    console.print(
        f"[bold]{safe(result.path)}[/]  {human_bytes(result.size)}, on {confusion.counts.sum():,} texts of "
        f"{safe(result.texts)}"
    )
    console.print(f"accuracy [bold]{result.accuracy:.2%}[/], macro-F1 {result.macro_f1:.4f}\n")
    scores = [
        (safe(one.label), f"{one.precision:.4f}", f"{one.recall:.4f}", f"{one.f1:.4f}", f"{one.support:,}")
        for one in confusion.scores
    ]
    print_table(console, ("label", "precision", "recall", "F1", "texts"), scores)
    if len(confusion.labels) > _WIDEST_CONFUSION:
        console.print(f"\nthe confusion of {len(confusion.labels)} labels is in --json")
        return
    numbers = [str(i + 1) for i in range(len(confusion.labels))]
    headers = ("true, and predicted as", *numbers)
    counts = [
        (f"{number} {safe(label)}", *(f"{count:,}" for count in row))
        for number, label, row in zip(numbers, confusion.labels, confusion.counts, strict=True)
    ]
    console.print()
    print_table(console, headers, counts)


@show.register
def _(result: CompressResult) -> None:
    console = stdout()
    steps = (("dense", result.before), ("factorized", result.without_training), ("retrained", result.after))
    measured = [
        (name, human_bytes(step.size), f"{step.accuracy:.2%}", f"{step.macro_f1:.4f}") for name, step in steps
    ]
    print_table(console, ("", "weights", "accuracy", "macro-F1"), measured)
    console.print(
        f"\nmeasured on {result.after.confusion.counts.sum():,} texts of {safe(result.after.texts)}"
    )
    for compressed in result.factorized.tables:
        rank = "" if compressed.rank is None else f"rank {compressed.rank} "
        rows = f"rows weighted by {compressed.weighting}" if compressed.weighting else "all rows alike"
        columns = f", columns by the scores of {compressed.metric}" if compressed.metric else ""
        sizes = f"{human_bytes(compressed.bytes_before)} → {human_bytes(compressed.bytes_after)}"
        console.print(
            f"{safe(compressed.name)}: {rank}by {compressed.method}, {sizes} "
            f"({compressed.ratio:.1%} removed)\n{safe(rows)}{safe(columns)}"
        )
    console.print(f"wrote [bold]{safe(result.factorized.output)}[/]")
