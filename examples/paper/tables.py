"""Renders what is measured so far: Markdown tables and plots beside the CSV files.

    python examples/paper/tables.py [--results DIR]

Cells are test accuracy in percent, mean ± sample standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import plots
import small
import typed
from compression import INT4
from results import MODELS, SETS, STARTS, Cost, Measurement, Quantized, ResultFile
from schedules import PAIRS, SCRATCH
from spread import Cell, Spread, at_chosen_rates, lost, spreads

RESULTS = Path(__file__).parent / "results"
ONLINE = ("svd", "online-calr", "online-constant", "weighted", "weighted-linear", "recommended", "offline")
METHODS = ("dense", "int8", "int4", *ONLINE)
MEANINGS = {
    "dense": "the uncompressed model, 8 epochs",
    "int8": "its table rounded to 8 bits and a scale a row, not retrained",
    "int4": "the same with 4 bits",
    "svd": "the SVD of its table, not retrained",
    "online-calr": "5 epochs, SVD, 3 epochs of Adam with CALR",
    "online-constant": "5 epochs, SVD, 3 epochs of Adam at a constant rate",
    "weighted": "5 epochs, SVD with rows weighted by (count + 1)^0.5, 3 epochs at a constant rate",
    "weighted-linear": "5 epochs, SVD with rows weighted by count + 1, 3 epochs of Adam, rate 3e-3 to 0",
    "recommended": "the same with (count + 1)^s, s of 0, 0.5, 1 chosen on dev before retraining",
    "offline": "SVD of the start table, U S as a narrow table, 8 epochs",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    render(parser.parse_args(arguments).results)


def render(folder: Path) -> None:
    """Write tables.md and the plots into ``folder``."""
    measured = {
        arm: ResultFile(folder / f"{arm}.csv", Measurement).read()
        for arm in ("compression", "schedules", "ablations", "typed")
    }
    costs = ResultFile(folder / "cost.csv", Cost).read()
    small_rows = ResultFile(folder / f"{small.NAME}.csv", Measurement).read()
    fasttext = ResultFile(folder / "fasttext.csv", Quantized).read()
    compression = measured["compression"]
    draws = importlib.util.find_spec("matplotlib") is not None
    parts = ["Test accuracy in percent, mean ± sample deviation over seeds."]
    parts.append("\n".join(f"- **{name}**: {meaning}." for name, meaning in MEANINGS.items()))
    for start in STARTS:
        rows = [row for row in compression if row.start == start]
        if rows:
            if draws:
                plots.accuracy_over_ratio(rows, folder / f"compression-{start}.png")
            parts += [
                f"## Start {start}: accuracy at a ratio",
                f"![Accuracy over the fraction of bytes removed](compression-{start}.png)",
                f"Seeds: {_seeds(rows)}, but where a cell says (n=…).",
                *_accuracies(rows),
                f"### Start {start}: points lost, over all sets and models",
                _losses(rows),
                f"### Start {start}: sizes and table errors",
                _sizes(rows),
            ]
    own_size = {"dense", "int8", "int4"}
    sized = [row for row in compression if row.ratio == INT4]
    starts = {row.start for row in sized}
    equal = [row for row in compression if row.method in own_size and row.start in starts] + sized
    if sized:
        parts += [
            f"## Equal bytes: four bits against factors, start {', '.join(sorted(starts))}",
            _by_case(equal, lambda row: row.method),
        ]
    if measured["schedules"]:
        if draws:
            plots.learning_rates(folder / "schedules.png")
        parts += _schedules(measured["schedules"])
    if measured["ablations"]:
        parts += [
            "## Ablations at ratio 0.98, Adam at a constant rate",
            _by_case(measured["ablations"], lambda row: row.method),
            "Seconds of retraining (shared cores: compare within a column only):",
            _by_case(measured["ablations"], lambda row: row.method, lambda row: row.seconds, digits=1),
        ]
    if costs:
        parts += ["## Cost of a sentence", _costs(costs)]
    if small_rows:
        parts += _small(small_rows)
    if fasttext:
        parts += ["## fastText, quantized by itself", _quantized(fasttext)]
    if measured["typed"]:
        parts += _typed(measured["typed"])
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    note = "" if draws else "; no pictures without matplotlib: pip install 'embcompress[plot]'"
    count = sum(map(len, (*measured.values(), costs, small_rows, fasttext)))
    print(f"{folder / 'tables.md'}: {count} rows{note}")


def _small(rows: Sequence[Measurement]) -> list[str]:
    """Points lost at the largest ratios, mean ± standard error, and the bytes that are left."""
    usual = _seeds(rows)
    columns = [p for p in itertools.product(SETS, MODELS) if any((r.set, r.model) == p for r in rows)]
    points: dict[tuple[str, float, tuple[str, str]], list[float]] = defaultdict(list)
    for row, loss in lost(rows):
        points[row.method, row.ratio, (row.set, row.model)].append(loss)
    dense = {(c.set, c.model): s for c, s in spreads(rows).items() if c.method == "dense"}
    lines = [["dense: accuracy", *(shown(dense.get(column), usual) for column in columns)]]
    for method, ratios in small.PLAN.items():
        for ratio in ratios:
            found = [points[method, ratio, column] for column in columns]
            cells = [shown(Spread.of(each), usual, error=True) if each else "" for each in found]
            if any(cells):
                lines.append([f"{method}, {ratio:.2%}", *cells])
    header = ["", *(", ".join(column) for column in columns)]
    meanings = "\n".join(f"- **{name}**: {meaning}." for name, meaning in small.MEANINGS.items())
    sizes = [row for row in rows if row.method in ("dense", "pq", "screen+int4")]
    return [
        "## 50 to 400 times smaller",
        f"Points of accuracy lost, mean ± standard error. Seeds: {usual}, but where a cell says (n=…).",
        meanings,
        markdown(header, lines),
        "Bytes of the table:",
        _bytes(sizes),
    ]


def _bytes(rows: Sequence[Measurement]) -> str:
    """Mean bytes of the table by method, ratio and set."""
    found: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row.method, row.ratio, row.set].append(row.table_bytes)
    names = dict.fromkeys((method, ratio) for method, ratio, _ in found)
    lines = [
        [
            method + (f", {ratio:.2%}" if ratio else ""),
            *(f"{Spread.of(found[method, ratio, s]).mean:,.0f}" for s in SETS if found[method, ratio, s]),
        ]
        for method, ratio in names
    ]
    return markdown(["", *SETS], lines)


def _quantized(rows: Sequence[Quantized]) -> str:
    """Accuracy and bytes of fastText's classifiers."""
    by: dict[tuple[str, float], list[Quantized]] = defaultdict(list)
    for row in rows:
        by[row.set, row.ratio].append(row)
    usual = max(map(len, by.values()))
    lines = [
        [
            f"{name}, {ratio:.1%}" if ratio else f"{name}, dense",
            shown(Spread.of([100 * row.test_accuracy for row in found]), usual),
            f"{Spread.of([row.table_bytes for row in found]).mean:,.0f}",
            f"{Spread.of([row.file_bytes for row in found]).mean:,.0f}",
        ]
        for (name, ratio), found in by.items()
    ]
    return markdown(["", "accuracy", "table bytes", "file bytes"], sorted(lines))


def _typed(rows: Sequence[Measurement]) -> list[str]:
    """What was chosen on held-out texts, and what it loses on test texts."""
    found = {texts: typed.held_out_losses(texts, rows) for texts in SETS}
    columns = [(texts, ratio) for texts in SETS if found[texts] for ratio in typed.RATIOS]
    lines = [
        [f"{one.method}, {one.rate:g}", *(f"{found[texts][one][ratio]:.2f}" for texts, ratio in columns)]
        for one in typed.SETTINGS
    ]
    judged = spreads((row for row, _ in lost(rows)), dict(lost(rows)).__getitem__)
    methods = list(dict.fromkeys((c.method, c.ratio) for c in judged))
    cases = sorted({(c.start, c.set, c.model) for c in judged})
    return [
        "## The path as typed: points lost on held-out texts of all sets but one, seed 0",
        markdown(["retraining", *(f"but {texts}, {ratio:.0%}" for texts, ratio in columns)], lines),
        "## The path as typed: points lost on test texts",
        markdown(
            ["", *(f"{method}: {ratio:.0%}" for method, ratio in methods)],
            [
                [
                    ", ".join(case),
                    *(shown(judged.get(Cell(case[1], case[2], case[0], *m)), 3) for m in methods),
                ]
                for case in cases
            ],
        ),
    ]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(spread: Spread | None, usual: int, digits: int = 2, *, error: bool = False) -> str:
    """A cell; its count where it is not the usual one. With ``error`` the standard error is shown."""
    if spread is None:
        return ""
    by = math.sqrt(spread.n) if error else 1
    deviation = f" ± {spread.deviation / by:.{digits}f}" if spread.n > 1 else ""
    return f"{spread.mean:.{digits}f}{deviation}" + (f" (n={spread.n})" if spread.n != usual else "")


def _seeds(rows: Iterable[Measurement]) -> int:
    return len({row.seed for row in rows})


def _accuracies(rows: Sequence[Measurement]) -> list[str]:
    """For each set and model, methods by ratios."""
    found, usual, parts = spreads(rows), _seeds(rows), []
    ratios = sorted({row.ratio for row in rows if row.ratio not in (0.0, INT4)})
    for texts, model in itertools.product(SETS, MODELS):
        here = {(c.method, c.ratio): s for c, s in found.items() if (c.set, c.model) == (texts, model)}
        if not here:
            continue
        fixed = ", ".join(
            f"{name} {shown(here.get((name, 0.0)), usual)}"
            for name in ("dense", "int8", "int4")
            if (name, 0.0) in here
        )
        lines = [
            [method, *(shown(here.get((method, ratio)), usual) for ratio in ratios)]
            for method in ONLINE
            if any((method, ratio) in here for ratio in ratios)
        ]
        parts += [
            f"**{texts}, {model}**: {fixed}",
            markdown(["removed", *(f"{r:.0%}" for r in ratios)], lines),
        ]
    return parts


def _losses(rows: Sequence[Measurement]) -> str:
    """Points lost against the dense model of the same seed: first the mean of a seed, then over seeds."""
    seeds: dict[tuple[str, float], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, points in lost(rows):
        seeds[row.method, row.ratio][row.seed].append(points)
    cases = max(len(points) for by_seed in seeds.values() for points in by_seed.values()) if seeds else 0
    ratios = sorted({ratio for _, ratio in seeds})
    lines = []
    for method in METHODS[1:]:
        cells = []
        for ratio in ratios:
            whole = [sum(p) / cases for p in seeds[method, ratio].values() if len(p) == cases]
            cells.append(shown(Spread.of(whole), _seeds(rows)) if whole else "")
        lines.append([method, *cells])
    return markdown(["removed", *("own size" if r == 0 else f"{r:.1%}" for r in ratios)], lines)


def _sizes(rows: Sequence[Measurement]) -> str:
    """Bytes, rank, parameters, error and macro-F1 for every cell."""
    errors, f1 = spreads(rows, lambda row: row.table_error), spreads(rows, lambda row: 100 * row.test_f1)
    sizes: dict[Cell, Spread] = spreads(rows, lambda row: row.table_bytes)
    ranks, parameters = spreads(rows, lambda row: row.rank), spreads(rows, lambda row: row.parameters)
    order = sorted(
        errors, key=lambda c: (SETS.index(c.set), MODELS.index(c.model), METHODS.index(c.method), c.ratio)
    )
    return markdown(
        ["set, model, method, removed", "rank", "table bytes", "parameters", "table error", "macro-F1"],
        (
            [
                f"{c.set}, {c.model}, {c.method}" + (f", {c.ratio:.1%}" if c.ratio else ""),
                f"{ranks[c].mean:.0f}",
                f"{sizes[c].mean:,.0f}",
                f"{parameters[c].mean:,.0f}",
                f"{errors[c].mean:.3f}",
                shown(f1[c], _seeds(rows)),
            ]
            for c in order
        ),
    )


def _by_case(
    rows: Sequence[Measurement],
    name: Callable[[Measurement], str],
    value: Callable[[Measurement], float] = lambda row: 100 * row.test_accuracy,
    digits: int = 2,
) -> str:
    """Methods by set and model, in the order in which methods first come."""
    found = spreads(rows, value)
    columns = [p for p in itertools.product(SETS, MODELS) if any((r.set, r.model) == p for r in rows)]
    lines = []
    for method in dict.fromkeys(map(name, rows)):
        here = {(c.set, c.model): s for c, s in found.items() if c.method == method}
        lines.append([method, *(shown(here.get(column), _seeds(rows), digits) for column in columns)])
    return markdown(["", *(", ".join(column) for column in columns)], lines)


def _schedules(rows: Sequence[Measurement]) -> list[str]:
    chosen = at_chosen_rates(rows)
    parts = ["## Schedules and optimizers", "![Learning rate over a retraining](schedules.png)"]
    for kind, title in (
        ("retrain", "Retraining at ratio 0.98, 3 epochs"),
        (SCRATCH, "From scratch, 5 epochs"),
    ):
        here = [row for row in chosen if row.method.startswith(kind)]
        here.sort(key=lambda row: PAIRS.index((*row.method.split()[1:],)))
        if here:
            first = [row for row in here if row.seed == 0]
            parts += [
                f"### {title}",
                _by_case(here, lambda row: row.method),
                "Chosen on seed 0's dev: learning rate",
                _by_case(first, lambda row: row.method, lambda row: row.learning_rate, digits=4),
            ]
    return parts


def _costs(costs: Sequence[Cost]) -> str:
    return markdown(
        [
            "set, model, table",
            "parameters",
            "table bytes",
            "file bytes",
            "FLOPs, table",
            "FLOPs, all",
            "FLOPs, counted",
            "µs alone",
            f"µs in a batch of {64}",
        ],
        (
            [
                f"{c.set}, {c.model}, {c.method}" + (f" {c.ratio:.0%} (rank {c.rank})" if c.ratio else ""),
                *(f"{v:,}" for v in (c.parameters, c.table_bytes, c.file_bytes, c.table_flops, c.flops)),
                f"{c.counted_flops:,}",
                f"{c.latency_1:.0f}",
                f"{c.latency_64:.1f}",
            ]
            for c in costs
        ),
    )


if __name__ == "__main__":
    main()
