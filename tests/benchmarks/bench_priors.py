"""What token weights without a corpus are worth: the vocabulary's prior against counts of texts.

    python tests/benchmarks/bench_priors.py --turn a.csv --turn b.csv --turn c.csv
    python tests/benchmarks/bench_priors.py --corpus a.csv --test b.csv --model all-mpnet-base-v2/ --ratio 0.9
    python tests/benchmarks/bench_priors.py --corpus a.csv --test b.csv --tokenizer gpt2.json

``pq`` compresses a table with each source of weights: none, the vocabulary, the counts of a corpus, and both.
It is judged by ``--test`` texts, with those of ``--corpus`` as other ones; or by each ``--turn`` file in
turn, with the others as its corpus, and the means are shown.

* Without ``--tokenizer``: the table of all-MiniLM-L6-v2, or of a directory of another model (``--model``).
  Shown are the signal-to-error ratio weighted by the counts of the test texts, and the cosine and the
  neighbours kept of the sentence vectors of a sample.
* ``--tokenizer``: for tokenizer.json files of any kind, with a table whose rows are drawn from MiniLM's: what
  is lost of that ratio against weights from the very texts that it is judged by. Then Spearman's correlation
  of the prior with the counts of the test texts, and their cross-entropy in nats a token under even shares,
  under the prior, and under their own counts. Shares are mixed with even ones, 99 to 1, so none is zero.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers
from bench_methods import MINILM, TABLE, Encoder, neighbours, sample, share_kept, token_counts
from measuring import print_table
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import Counts
from embcompress.data.priors import ALL_TOKENS, prior_of
from embcompress.data.tokenizing import TokenizerJson

OTHERS, OWN = "other.npy", "own.npy"
SOURCES = {
    "none": "none",
    "vocabulary": "auto",
    "other texts": f"none+{OTHERS}",
    "vocabulary and other texts": OTHERS,
}
"""What is given to ``--weights``, by its name here."""
BEST = f"none+{OWN}"
"""The counts of the test texts, which no one has, scaled to as many tokens as those of a vocabulary."""


@dataclass(frozen=True)
class Texts:
    """Files to judge by, and others to count tokens in."""

    corpus: Sequence[Path]
    test: Sequence[Path]


class Bench:
    """A model whose table is compressed again and again.

    Args:
        model: its directory.
        texts: what it is judged by.
        folder: for everything that is written.
    """

    def __init__(self, model: Path, texts: Texts, folder: Path) -> None:
        self.model, self._folder = model, folder
        self._table = load_file(model / "model.safetensors")[TABLE].astype(np.float64)
        rows = len(self._table)
        self.own = token_counts(texts.test, rows, model)
        self._others = token_counts(texts.corpus, rows, model)

    def compressed(self, weights: str, ratio: float) -> Path:
        """The directory with a table that was compressed under these weights, dense again."""
        small, dense = self._folder / "small", self._folder / "dense"
        np.save(self._folder / OWN, self.own * ALL_TOKENS / self.own.sum())
        np.save(self._folder / OTHERS, self._others)
        prefix, plus, file = weights.rpartition("+")
        given = f"{prefix}{plus}{self._folder / file}" if file.endswith(".npy") else file
        embcompress.factorize(
            self.model, ratio=ratio, method="pq", weights=given, output=small, force=True, keys=TABLE
        )
        return embcompress.expand(small, output=dense, force=True).output

    def decibels(self, dense: Path) -> float:
        """The signal-to-error ratio, rows weighted by the counts of the test texts."""
        lost = np.square(load_file(dense / "model.safetensors")[TABLE] - self._table).sum(axis=1)
        return 10 * float(np.log10(self.own @ np.square(self._table).sum(axis=1) / (self.own @ lost)))


def figures(bench: Bench, texts: Sequence[str], ratio: float) -> Iterator[tuple[float, float, float]]:
    """Decibels, cosine and neighbours kept, for each source of weights."""
    encoder = Encoder(texts, bench.model)
    original = encoder.vectors(transformers.AutoModel.from_pretrained(bench.model).eval())
    nearest = neighbours(original)
    for source, weights in SOURCES.items():
        dense = bench.compressed(weights, ratio)
        vectors = encoder.vectors(transformers.AutoModel.from_pretrained(dense).eval())
        cosine = float((vectors * original).sum(axis=1).mean())
        found = bench.decibels(dense), cosine, share_kept(nearest, neighbours(vectors))
        print(ratio, source, *(f"{figure:.4f}" for figure in found), file=sys.stderr, flush=True)
        yield found


def real(model: Path, turns: Sequence[Texts], ratios: Sequence[float], size: int, folder: Path) -> None:
    """Print what a real model keeps, a row a ratio and source of weights."""
    rows = []
    for ratio in ratios:
        every = [[*figures(Bench(model, turn, folder), sample(turn.test, size), ratio)] for turn in turns]
        means = np.mean(every, axis=0)  # sources × 3
        for source, (decibels, cosine, kept) in zip(SOURCES, means, strict=True):
            rows.append([str(ratio), source, f"{decibels:.2f}", f"{cosine:.4f}", f"{100 * kept:.1f} %"])
    print_table(["ratio", "weights", "dB", "cosine", "top-5 neighbours kept"], rows)


def nats(shares: Counts, counts: Counts) -> float:
    """Cross-entropy of the tokens of texts under ``shares``, in nats a token."""
    mixed = 0.99 * shares / shares.sum() + 0.01 / len(shares)
    return -float(counts @ np.log(mixed)) / float(counts.sum())


def ranks(values: Counts) -> Counts:
    """The rank of each value, equal ones sharing their mean rank."""
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]


def model_of(tokenizer: Path, folder: Path) -> Path:
    """A directory with a tokenizer, and a table whose rows are drawn from MiniLM's."""
    rows = len(TokenizerJson.read(tokenizer).vocabulary)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    shutil.copy(tokenizer, model / "tokenizer.json")
    (model / "config.json").write_text('{"model_type": "bert"}')
    known = load_file(MINILM / "model.safetensors")[TABLE]
    drawn = np.random.default_rng(0).integers(len(known), size=rows)
    save_file({TABLE: known[drawn]}, model / "model.safetensors")
    return model


def agreement(name: str, bench: Bench) -> list[str]:
    """How well the prior of a tokenizer predicts the test texts."""
    counts, rows = bench.own, len(bench.own)
    with open_checkpoint(bench.model) as checkpoint:
        prior = prior_of(checkpoint, rows)
    if prior is None:
        return [name, f"{rows:,}", "nothing known", "–", "–", "–", "–"]
    correlation = float(np.corrcoef(ranks(prior.shares), ranks(counts))[0, 1])
    entropies = (nats(shares, counts) for shares in (np.ones(rows), prior.shares, counts))
    shown = (f"{value:.2f}" for value in (correlation, *entropies))
    return [name, f"{rows:,}", prior.origin, *shown]


def made_up(
    tokenizers: Sequence[Path], turns: Sequence[Texts], ratios: Sequence[float], folder: Path
) -> None:
    """Print what is lost with the vocabulary of each tokenizer, and how well its prior predicts texts."""
    losses, agreements = [], []
    for file in tokenizers:
        benches = [Bench(model_of(file, folder), turn, folder) for turn in turns]
        agreements.append(agreement(file.name, benches[0]))
        for ratio in ratios:
            given = (*SOURCES.values(), BEST)
            every = [[one.decibels(one.compressed(weights, ratio)) for weights in given] for one in benches]
            *others, best = np.mean(every, axis=0).tolist()
            losses.append(
                [file.name, str(ratio), f"{best:.2f}", *(f"{best - other:.2f}" for other in others)]
            )
            print(*losses[-1], file=sys.stderr, flush=True)
    header = ["tokenizer", "ratio", "dB with the very texts", *(f"lost: {name}" for name in SOURCES)]
    print_table(header, losses)
    header = ["tokenizer", "tokens", "prior", "rank correlation", "nats even", "prior", "own counts"]
    print_table(header, agreements)


def main() -> None:
    parser = argparse.ArgumentParser(description="What token weights without a corpus are worth.")
    add = parser.add_argument
    add("--corpus", type=Path, action="append", default=[], help="CSV to count tokens in (repeats)")
    add("--test", type=Path, action="append", default=[], help="CSV of texts to judge by (repeats)")
    add("--turn", type=Path, action="append", default=[], help="CSV that is judged by in turn (repeats)")
    add("--model", type=Path, default=MINILM, help="directory of a transformer (default: MiniLM)")
    add("--ratio", type=float, action="append", help="bytes removed (repeats; default: 0.95)")
    add("--texts", type=int, default=300, help="test texts to draw (default: 300)")
    add("--tokenizer", type=Path, action="append", default=[], help="tokenizer.json (repeats)")
    given = parser.parse_args()
    if bool(given.turn) == bool(given.test) or bool(given.test) != bool(given.corpus):
        parser.error("give --turn files, or --corpus and --test")
    turns = [Texts([file for file in given.turn if file != one], [one]) for one in given.turn]
    turns = turns or [Texts(given.corpus, given.test)]
    ratios = given.ratio or [0.95]
    with tempfile.TemporaryDirectory() as name:
        if given.tokenizer:
            made_up(given.tokenizer, turns, ratios, Path(name))
        else:
            real(given.model, turns, ratios, given.texts, Path(name))


if __name__ == "__main__":
    main()
