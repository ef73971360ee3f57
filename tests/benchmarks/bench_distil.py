"""What learning from the original gives on texts of kinds that nothing was learned from.

    python tests/benchmarks/bench_distil.py --learn a.csv --learn b.csv --test c.csv --test news.txt
    python tests/benchmarks/bench_distil.py --learn a.csv --test c.csv --base svd:0.9 --minutes 2 --train all

The table of all-MiniLM-L6-v2 is compressed with the frequencies that its vocabulary shows, mixed with counts
of the texts to learn from, and the model then learns from its original on these texts. For every file of test
texts the cosine of sentence vectors to those of the original is shown, and the share of each text's five
nearest others that stay the same, before and after. No test text is read before that.

Several ``--train`` and ``--mixture`` are compared one after another. How much is learned in a time depends on
the number of threads; set it with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench_methods import MINILM
from measuring import print_table

import embcompress
from embcompress import DistilRecipe
from embcompress.data.counting import read_texts

BASES = ("pq:0.97", "pq:0.98", "svd:0.9")


def likenesses(path: Path, tests: Sequence[Path]) -> list[str]:
    """Cosine and neighbours kept, for each file of texts."""
    found = (embcompress.compare(path, MINILM, test).likeness for test in tests)
    return [f"{one.cosine:.4f} / {one.neighbours:.1%}" for one in found]


def rows(
    base: str, texts: Path, tests: Sequence[Path], recipes: Sequence[DistilRecipe], folder: Path
) -> Iterator[list[str]]:
    """A row for the compressed model, and one for each way of learning."""
    method, _, ratio = base.partition(":")
    small = folder / "small"
    embcompress.factorize(
        MINILM, method=method, ratio=float(ratio), weights="auto", corpus=texts, output=small, force=True
    )
    yield [base, "–", "–", "–", *likenesses(small, tests)]
    for recipe in recipes:
        start = time.perf_counter()
        result = embcompress.distil(small, MINILM, texts, recipe=recipe, output=folder / "tuned", force=True)
        seconds = time.perf_counter() - start
        learned = result.recipe
        label = f"{learned.train}, rate {result.learning_rate:.2g}, mixture {learned.mixture:g}"
        yield [base, label, f"{result.steps:,}", f"{seconds:.0f}", *likenesses(result.output, tests)]


def main() -> None:
    parser = argparse.ArgumentParser(description="What learning from the original gives on other texts.")
    parser.add_argument("--learn", type=Path, action="append", required=True)
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--base", action="append", help="METHOD:RATIO")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--epochs", type=int, help="passes over the texts, in the place of --minutes")
    parser.add_argument("--train", action="append")
    parser.add_argument("--mixture", type=float, action="append")
    parser.add_argument("--learning-rate", type=float)
    given = parser.parse_args()
    recipes = [
        DistilRecipe(
            train=train,
            mixture=mixture,
            epochs=given.epochs,
            minutes=None if given.epochs else given.minutes,
            learning_rate=given.learning_rate,
        )
        for train, mixture in itertools.product(given.train or [None], given.mixture or [None])
    ]
    print(f"{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = folder / "learn.txt"
        distinct = dict.fromkeys(" ".join(text.split()) for file in given.learn for text in read_texts(file))
        texts.write_text("\n".join(distinct))
        found = [
            row for base in given.base or BASES for row in rows(base, texts, given.test, recipes, folder)
        ]
    header = ["base", "trained", "steps", "s", *(test.parent.name + "/" + test.name for test in given.test)]
    print_table(header, found)


if __name__ == "__main__":
    main()
