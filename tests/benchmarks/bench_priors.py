"""What token weights without a corpus are worth: the vocabulary's prior against counts of texts.

    python tests/benchmarks/bench_priors.py --corpus a.csv --test b.csv --test c.csv
    python tests/benchmarks/bench_priors.py --test b.csv --tokenizer gpt2.json --tokenizer t5.json

Two parts, each only where it is asked for:

* ``--corpus``: all-MiniLM-L6-v2's table is compressed by ``pq`` without weights, with the prior, with the
  counts of the corpus, and with both. Shown are the signal-to-error ratio weighted by the counts of the test
  texts themselves, and the cosine and the neighbours kept of the sentence vectors of a sample of them.
* ``--tokenizer``: for tokenizer.json files of any kind, Spearman's correlation of the prior with the counts
  of the test texts, and their cross-entropy in nats a token under even shares, under the prior, and under
  their own counts. Shares are mixed with even ones, 99 to 1, so that none is zero.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import transformers
from bench_methods import MINILM, TABLE, Encoder, neighbours, sample, share_kept, token_counts
from measuring import print_table
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import Counts, count_texts, read_texts
from embcompress.data.priors import prior_of
from embcompress.data.tokenizing import TokenizerJson


def losses(corpus: list[Path], test: list[Path], ratio: float, texts: int, folder: Path) -> list[list[str]]:
    """A row for each source of weights: decibels, cosine, neighbours kept."""
    table = load_file(MINILM / "model.safetensors")[TABLE].astype(np.float64)
    counts, judged = token_counts(corpus, len(table)), token_counts(test, len(table))
    np.save(folder / "counts.npy", counts)
    encoder = Encoder(sample(test, texts))
    original = encoder.vectors(transformers.AutoModel.from_pretrained(MINILM).eval())
    nearest = neighbours(original)
    shown = []
    for label, weights in (
        ("none", None),
        ("prior", "auto"),
        ("counts of other texts", counts),
        ("prior and counts", f"auto+{folder / 'counts.npy'}"),
    ):
        small, dense = folder / "small", folder / "dense"
        embcompress.factorize(MINILM, ratio=ratio, method="pq", weights=weights, output=small, force=True)
        embcompress.expand(small, output=dense, force=True)
        lost = np.square(load_file(dense / "model.safetensors")[TABLE] - table).sum(axis=1)
        decibels = 10 * np.log10((judged @ np.square(table).sum(axis=1)) / (judged @ lost))
        vectors = encoder.vectors(transformers.AutoModel.from_pretrained(dense).eval())
        cosine = float((vectors * original).sum(axis=1).mean())
        kept = share_kept(nearest, neighbours(vectors))
        shown.append([str(ratio), label, f"{decibels:.2f}", f"{cosine:.4f}", f"{100 * kept:.1f} %"])
    return shown


def nats(shares: Counts, counts: Counts) -> float:
    """Cross-entropy of the tokens of texts under ``shares``, in nats a token."""
    mixed = 0.99 * shares / shares.sum() + 0.01 / len(shares)
    return -float(counts @ np.log(mixed)) / float(counts.sum())


def ranks(values: Counts) -> Counts:
    """The rank of each value, equal ones sharing their mean rank."""
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]


def agreement(file: Path, test: list[Path], folder: Path) -> list[str]:
    """What the prior of a tokenizer says of the test texts."""
    tokenizer = TokenizerJson.read(file)
    rows = len(tokenizer.vocabulary)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    shutil.copy(file, model / "tokenizer.json")
    (model / "config.json").write_text('{"model_type": "bert"}')
    save_file({TABLE: np.zeros((rows, 1), np.float32)}, model / "model.safetensors")
    with open_checkpoint(model) as checkpoint:
        prior = prior_of(checkpoint, rows)
    if prior is None:
        return [file.name, f"{rows:,}", "–", "nothing known", "–", "–", "–"]
    texts = (text for path in test for text in read_texts(path))
    counts = count_texts(texts, tokenizer.count, rows, file.name)
    correlation = float(np.corrcoef(ranks(prior.shares), ranks(counts))[0, 1])
    entropies = (nats(shares, counts) for shares in (np.ones(rows), prior.shares, counts))
    return [
        file.name,
        f"{rows:,}",
        prior.origin,
        f"{correlation:.2f}",
        *(f"{value:.2f}" for value in entropies),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What token weights without a corpus are worth.")
    parser.add_argument("--corpus", type=Path, action="append", default=[])
    parser.add_argument("--test", type=Path, action="append", required=True)
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--tokenizer", type=Path, action="append", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.corpus:
            rows = [
                row
                for ratio in given.ratio or (0.95,)
                for row in losses(given.corpus, given.test, ratio, given.texts, folder)
            ]
            print_table(["ratio", "weights", "dB", "cosine", "top-5 neighbours kept"], rows)
        if given.tokenizer:
            header = ["tokenizer", "tokens", "prior", "rank correlation", "nats even", "prior", "own counts"]
            print_table(header, [agreement(file, given.test, folder) for file in given.tokenizer])


if __name__ == "__main__":
    main()
