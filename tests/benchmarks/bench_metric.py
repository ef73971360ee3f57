"""What a metric over the columns is worth: all-MiniLM-L6-v2's table by ``pq``, with and without it.

    python tests/benchmarks/bench_metric.py --corpus a.csv --corpus b.csv --test c.csv
    python tests/benchmarks/bench_metric.py --corpus a.csv --test b.csv --share 0.3 --share 0.5 --share 0.9

Counts and metric come from the corpus, the metric from a sample of it; sentence vectors of a sample of the
test texts are judged. Shown are the signal-to-error ratio weighted by the counts of the corpus, the error
in the metric as the package measured it, the cosine to the original's vectors, and the share of the five
nearest neighbours kept. ``--control`` adds the same metric in directions that are not the model's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import transformers
from bench_methods import (
    MINILM,
    RATIOS,
    TABLE,
    Counts,
    Encoder,
    Matrix,
    neighbours,
    sample,
    share_kept,
    token_counts,
)
from measuring import print_table
from safetensors.numpy import load_file

import embcompress
from embcompress.choices import MAX_LENGTH, METRIC_TEXTS
from embcompress.compression import column_metric
from embcompress.pretrained.models import open_pretrained
from embcompress.pretrained.tokens import encoded
from embcompress.progress import silent
from embcompress.training.devices import runtime
from embcompress.training.fisher import outer_products


class Judge:
    """The original's sentence vectors of a sample of texts, with which those of other tables are compared."""

    def __init__(self, files: Sequence[Path], texts: int) -> None:
        self.encoder = Encoder(sample(files, texts))
        self.original = self.encoder.vectors(transformers.AutoModel.from_pretrained(MINILM).eval())
        self.nearest = neighbours(self.original)

    def of(self, dense: Path) -> tuple[float, float]:
        """Cosine, and share of neighbours kept."""
        vectors = self.encoder.vectors(transformers.AutoModel.from_pretrained(dense).eval())
        return float((vectors * self.original).sum(axis=1).mean()), share_kept(
            self.nearest, neighbours(vectors)
        )


def measured(files: Sequence[Path]) -> Matrix:
    """The mean outer product of gradients on texts of all files."""
    model = open_pretrained(MINILM)
    texts = sample(files, METRIC_TEXTS)
    start = time.perf_counter()
    found = outer_products(model, encoded(model, texts, MAX_LENGTH), runtime(), column_metric.SEED, silent)
    print(f"metric of {len(texts):,} texts in {time.perf_counter() - start:.0f} s\n", flush=True)
    return found


def turned(matrix: Matrix) -> Matrix:
    """The same eigenvalues in random directions."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal(matrix.shape))
    return turn @ matrix @ turn.T


def row(
    ratio: float, label: str, counts: Counts, metric: Matrix | None, share: float, judge: Judge, folder: Path
) -> list[str]:
    """What ``pq`` keeps with one metric."""
    with mock.patch.object(column_metric, "SHARE", share):
        small = embcompress.factorize(
            MINILM,
            ratio=ratio,
            method="pq",
            weights=counts,
            metric=metric,
            output=folder / "small",
            force=True,
        )
    (table,) = small.tables
    dense = embcompress.expand(small.output, output=folder / "dense", force=True).output
    cosine, kept = judge.of(dense)
    assert table.weighted_error is not None
    seen = "–" if table.metric_error is None else f"{table.metric_error:.4f}"
    decibels = f"{-20 * np.log10(table.weighted_error):.2f}"
    return [f"{ratio:g}", label, decibels, seen, f"{cosine:.4f}", f"{100 * kept:.1f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, action="append", required=True)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument(
        "--ratio", type=float, action="append", help="bytes removed (default: 0.9, 0.95, 0.97)"
    )
    parser.add_argument("--share", type=float, action="append", help="of what was measured in the metric")
    parser.add_argument("--control", action="store_true", help="also a metric in other directions")
    parser.add_argument("--texts", type=int, default=500, help="test texts to draw (default: 500)")
    given = parser.parse_args()
    transformers.logging.disable_progress_bar()
    counts = token_counts(given.corpus, len(load_file(MINILM / "model.safetensors")[TABLE]))
    matrix, judge = measured(given.corpus), Judge(given.test, given.texts)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for ratio in given.ratio or RATIOS:
            for label, metric, shares in (
                ("counts", None, [0.0]),
                ("counts and metric", matrix, given.share or [column_metric.SHARE]),
                ("counts and turned metric", turned(matrix), [column_metric.SHARE] * given.control),
            ):
                for share in shares:
                    named = f"{label}, {share:g}" if metric is matrix else label
                    rows.append(row(ratio, named, counts, metric, share, judge, Path(name)))
    print_table(["ratio", "pq with", "dB", "error in the metric", "cosine", "top-5 neighbours kept"], rows)


if __name__ == "__main__":
    main()
