"""Charts made of characters: points in, lines of text out; the caller adds colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

_BARS = "▁▂▃▄▅▆▇█"
CURVE_TICKS = (0.5, 0.75, 0.9, 0.95, 0.98)
"""Ratios with a label on the axis."""
_LABEL = 6
"""Width of the error axis labels, in characters."""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: its name in the legend.
        mark: the character it is drawn with.
        points: (ratio, error), ratios ascending, below 1.
    """

    name: str
    mark: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Piece:
    """A run of characters in one line of a chart.

    Attributes:
        text: the characters.
        curve: name of the curve they belong to, empty for axes and spaces.
    """

    text: str
    curve: str = ""


@dataclass(frozen=True)
class Frame:
    """How large a chart is, and what its axes span.

    Attributes:
        width: columns of the plotting area.
        height: lines of the plotting area.
        ratios: the smallest and the largest; the axis is logarithmic in what is left of a table.
        errors: the smallest and the largest, above 0; the axis is logarithmic.
    """

    width: int
    height: int
    ratios: tuple[float, float]
    errors: tuple[float, float]

    def column(self, ratio: float) -> float:
        """The column of a ratio, 0 … width - 1."""
        first, last = (math.log(1 - r) for r in self.ratios)
        return (self.width - 1) * (math.log(1 - ratio) - first) / (last - first)

    def line(self, error: float) -> float:
        """The line of an error, 0 at the top … height - 1."""
        least, largest = (math.log(e) for e in self.errors)
        return (self.height - 1) * (largest - math.log(error)) / (largest - least)


def marks(names: Sequence[str]) -> dict[str, str]:
    """A character for each name: a digit of it, or its first letter, that no other name has."""
    found: dict[str, str] = {}
    for name in names:
        wanted = sorted((c for c in name.lower() if c.isalnum()), key=lambda c: not c.isdigit())
        others = "abcdefghijklmnopqrstuvwxyz"
        found[name] = next((c for c in (*wanted, *others) if c not in found.values()), "*")
    return found


def error_span(errors: Sequence[float]) -> tuple[float, float] | None:
    """What an error axis spans: up to 1 at least, and a decade at least; None if all errors are 0."""
    positive = [error for error in errors if error > 0]
    if not positive:
        return None
    largest = max(1.0, *positive)
    return min(min(positive) / 1.25, largest / 10), largest


def chart(
    curves: Sequence[Curve], frame: Frame, ticks: Mapping[float, Sequence[str]]
) -> list[tuple[Piece, ...]]:
    """The lines of a chart: the plotting area with an axis of errors on its left, and labels below.

    Points are joined by straight lines. Nothing is drawn outside of the frame, or where the error is 0.
    Where curves meet, columns show them in turn.

    Args:
        curves: what to draw.
        frame: size and axes.
        ticks: ratios with their labels, each of which gets a line below the plotting area.
    """
    plane = [[Piece(" ")] * frame.width for _ in range(frame.height)]
    taken: dict[tuple[int, int], list[Curve]] = {}
    for curve in curves:
        for column, line in _cells(curve, frame):
            taken.setdefault((line, column), []).append(curve)
    for (line, column), there in taken.items():
        curve = there[column % len(there)]
        plane[line][column] = Piece(curve.mark, curve.name)
    labels = _error_labels(frame)
    lines = []
    for number, cells in enumerate(plane):
        label = labels.get(number, "")
        lines.append(_joined([Piece(f"{label:>{_LABEL}} {'┤' if label else '│'}"), *cells]))
    columns = {round(frame.column(ratio)): texts for ratio, texts in ticks.items()}
    ground = "".join("┴" if column in columns else "─" for column in range(frame.width))
    lines.append((Piece(f"{'':>{_LABEL}} └{ground}"),))
    for texts in zip(*columns.values(), strict=True):
        placed = _placed(dict(zip(columns, texts, strict=True)), _LABEL + 2)
        lines.append((Piece(placed),))
    return lines


def sparkline(values: Sequence[float], width: int) -> str:
    """Values between 0 and 1 as a line of bars; lists longer than ``width`` are averaged."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return "".join(_BARS[min(len(_BARS) - 1, int(mean * len(_BARS)))] for mean in means)


def _cells(curve: Curve, frame: Frame) -> list[tuple[int, int]]:
    """The (column, line) of each column that a curve crosses inside the frame."""
    cells = {}
    points = [(frame.column(ratio), frame.line(error)) for ratio, error in curve.points if error > 0]
    for (left, above), (right, below) in itertools.pairwise(points):
        for column in range(math.ceil(left), math.floor(right) + 1):
            cells[column] = above + (below - above) * (column - left) / (right - left)
    cells |= {round(column): line for column, line in points}
    inside = {column: round(line) for column, line in cells.items() if 0 <= column < frame.width}
    return [(column, line) for column, line in inside.items() if 0 <= line < frame.height]


def _error_labels(frame: Frame) -> dict[int, str]:
    """The labels of the error axis by line: decades, and 2 and 5 of each where there is room."""
    least, largest = frame.errors
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(largest)) + 1)
    lines_a_decade = (frame.height - 1) / math.log10(largest / least)
    found: dict[int, str] = {}
    for factor in (1, 2, 5) if lines_a_decade >= 6 else (1,):
        for decade in decades:
            error = float(f"{factor}e{decade}")
            if least <= error <= largest:
                found[round(frame.line(error))] = f"{error:g}"
    return found


def _placed(texts: Mapping[int, str], margin: int) -> str:
    """One line of texts centred at their columns; a text that would touch the one before is left out."""
    line = ""
    for column, text in texts.items():
        start = max(0, margin + column - len(text) // 2)
        if not line or start > len(line):
            line = line.ljust(start) + text
    return line


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Adjacent pieces of the same curve joined, without spaces at the end."""
    found = [
        Piece("".join(piece.text for piece in group), name)
        for name, group in itertools.groupby(pieces, key=attrgetter("curve"))
    ]
    if not found[-1].text.strip():
        found.pop()
    return tuple(found)
