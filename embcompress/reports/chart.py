"""Curves as lines of characters: points in, text out. Who draws them chooses the colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

_BARS = "▁▂▃▄▅▆▇█"
CURVE_TICKS = (0.5, 0.75, 0.9, 0.95, 0.98)
"""Ratios that axes name."""
_LABEL = 6
"""Columns of the labels of the error axis."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: what the legend calls it.
        mark: the character it is drawn with.
        points: (ratio, error), ratios ascending, below 1.
    """

    name: str
    mark: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Piece:
    """Some characters of one line of a chart.

    Attributes:
        text: the characters.
        curve: name of the curve they belong to, empty for axes and blanks.
    """

    text: str
    curve: str = ""


@dataclass(frozen=True)
class Frame:
    """How big a chart is, and what its axes span.

    Attributes:
        width: columns of the plane.
        height: lines of the plane.
        ratios: the least and the largest; halving what is left of a table is the same way everywhere.
        errors: the least and the largest, above 0; the axis is logarithmic.
    """

    width: int
    height: int
    ratios: tuple[float, float]
    errors: tuple[float, float]

    def column(self, ratio: float) -> float:
        """Where a ratio lies, 0 … width - 1."""
        first, last = (math.log(1 - r) for r in self.ratios)
        return (self.width - 1) * (math.log(1 - ratio) - first) / (last - first)

    def line(self, error: float) -> float:
        """Where an error lies, 0 at the top … height - 1."""
        least, largest = (math.log(e) for e in self.errors)
        return (self.height - 1) * (largest - math.log(error)) / (largest - least)


def marks(names: Sequence[str]) -> dict[str, str]:
    """A character for each name: a digit of it or its first letter that no other has."""
    found: dict[str, str] = {}
    for name in names:
        wanted = sorted((c for c in name.lower() if c.isalnum()), key=lambda c: not c.isdigit())
        others = "abcdefghijklmnopqrstuvwxyz"
        found[name] = next((c for c in (*wanted, *others) if c not in found.values()), "*")
    return found


def error_span(errors: Sequence[float]) -> tuple[float, float] | None:
    """What an error axis shows of these: to 1 at least, and a decade at least; None where all are 0."""
    positive = [error for error in errors if error > 0]
    if not positive:
        return None
    largest = max(1.0, *positive)
    return min(min(positive) / 1.25, largest / 10), largest


def chart(
    curves: Sequence[Curve], frame: Frame, ticks: Mapping[float, Sequence[str]]
) -> list[tuple[Piece, ...]]:
    """The lines of a chart: a plane with an axis of errors on its left, and labels below.

    Between points a curve is drawn straight; outside of the frame, and where the error is 0, not at all.
    Where curves meet, the columns take turns.

    Args:
        curves: what to draw.
        frame: where.
        ticks: ratios, each with its labels, one a line below the plane.
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
    """Values between 0 and 1 as a line of bars; longer lists are averaged down to ``width``."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return "".join(_BARS[min(len(_BARS) - 1, int(mean * len(_BARS)))] for mean in means)


def _cells(curve: Curve, frame: Frame) -> list[tuple[int, int]]:
    """The (column, line) of each column that a curve crosses inside of the frame."""
    cells = {}
    points = [(frame.column(ratio), frame.line(error)) for ratio, error in curve.points if error > 0]
    for (left, above), (right, below) in itertools.pairwise(points):
        for column in range(math.ceil(left), math.floor(right) + 1):
            cells[column] = above + (below - above) * (column - left) / (right - left)
    cells |= {round(column): line for column, line in points}
    inside = {column: round(line) for column, line in cells.items() if 0 <= column < frame.width}
    return [(column, line) for column, line in inside.items() if 0 <= line < frame.height]


def _error_labels(frame: Frame) -> dict[int, str]:
    """What stands at which line of the error axis: decades, and 2 and 5 of each where there is room."""
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
    """Texts centred at their columns on one line; one that would touch the one before it is left out."""
    line = ""
    for column, text in texts.items():
        start = max(0, margin + column - len(text) // 2)
        if not line or start > len(line):
            line = line.ljust(start) + text
    return line


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours of the same curve as one, without blanks at the end."""
    found = [
        Piece("".join(piece.text for piece in group), name)
        for name, group in itertools.groupby(pieces, key=attrgetter("curve"))
    ]
    if not found[-1].text.strip():
        found.pop()
    return tuple(found)
