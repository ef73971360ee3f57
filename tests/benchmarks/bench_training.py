"""Sentences a second in training: the package's loop against the plain torch loop a user would write.

    python tests/benchmarks/bench_training.py [--rounds 5]

Both train the same network from the same start with Adam on the intents under examples/, in the same
process, one epoch each in turn. The plain loop shuffles with a DataLoader, pads each batch to its longest
sentence, and packs it for an LSTM or averages it with a mask for a DAN, as tutorials do. Figures are medians
over the rounds, ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import print_table, verdict
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from embcompress.classifiers import CLASSIFIERS
from embcompress.classifiers.base import Architecture, Classifier
from embcompress.data.tokenizing import Words
from embcompress.training.devices import Runtime
from embcompress.training.loop import Trainer
from embcompress.training.records import Recipe, Watcher
from embcompress.training.scoring import Dataset

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "intents_train.csv"
BATCH = 50
DIMENSION = 300


class PlainDAN(nn.Module):
    """The deep averaging network as one writes it first: look all tokens up, sum where there is one."""

    def __init__(self, like: Classifier) -> None:
        super().__init__()
        bag = like.get_submodule("embedding")
        self.embedding = nn.Embedding.from_pretrained(
            bag.weight.detach().clone(), freeze=False, padding_idx=0
        )
        self.layers, self.output = like.get_submodule("layers"), like.get_submodule("output")

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        stats = (tokens != 0).unsqueeze(-1)
        mean = (self.embedding(tokens) * stats).sum(dim=1) / lengths.unsqueeze(-1)
        return self.output(self.layers(mean))


class PlainLSTM(nn.Module):
    """The LSTM classifier with packed sequences, as the documentation of torch shows it."""

    def __init__(self, like: Classifier) -> None:
        super().__init__()
        for name in ("embedding", "dropout", "lstm", "output"):
            self.add_module(name, like.get_submodule(name))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.output(self.dropout(states.sum(dim=1) / lengths.unsqueeze(-1)))


PLAIN: dict[str, Callable[[Classifier], nn.Module]] = {"dan": PlainDAN, "lstm": PlainLSTM}


def fresh(name: str, tokens: int, labels: int) -> Classifier:
    torch.manual_seed(0)
    kind = CLASSIFIERS[name]
    return kind.build(
        Architecture(name, DIMENSION, kind.hidden, 0.4), tokens=tokens, labels=labels, padding=0
    )


def plain_loop(model: nn.Module, data: Dataset) -> Callable[[], None]:
    """One epoch of the loop that a user would write."""
    rows = np.split(data.texts.tokens, np.cumsum(data.texts.lengths)[:-1])
    examples = [(torch.from_numpy(row), int(label)) for row, label in zip(rows, data.labels, strict=True)]

    def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        texts, labels = zip(*batch, strict=True)
        lengths = torch.tensor([len(text) for text in texts])
        return pad_sequence(list(texts), batch_first=True), lengths, torch.tensor(labels)

    loader = DataLoader(examples, batch_size=BATCH, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch() -> None:
        model.train()
        for tokens, lengths, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens, lengths), labels).backward()
            optimizer.step()

    return epoch


def our_loop(model: nn.Module, data: Dataset) -> Callable[[], None]:
    """One epoch of the package's loop; the dev set is a handful of texts."""
    dev = Dataset(type(data.texts)(data.texts.tokens[: data.texts.lengths[0]], data.texts.lengths[:1]),
                  data.labels[:1], data.padding)  # fmt: skip
    recipe = Recipe(epochs=1000, batch_size=BATCH, schedule="constant")
    trainer = Trainer(model, data, dev, recipe, Runtime(torch.device("cpu")))
    steps = -(-len(data) // BATCH)
    counted = 0

    def stop() -> bool:
        nonlocal counted
        counted += 1
        return counted % steps == 0

    return lambda: (trainer.run(Watcher(), stop, lambda: None), None)[1]


def timed(epoch: Callable[[], None]) -> float:
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    arguments = parser.parse_args()

    with DATA.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, names = [row["text"] for row in rows], sorted({row["label"] for row in rows})
    tokenizer = Words.build(texts)
    labels = np.array([names.index(row["label"]) for row in rows])
    data = Dataset(tokenizer.encode(texts, 256), labels, tokenizer.padding)
    size = len(tokenizer.vocabulary)

    table = []
    for name, plain in PLAIN.items():
        loops = (
            our_loop(fresh(name, size, len(names)), data),
            plain_loop(plain(fresh(name, size, len(names))), data),
        )
        for loop in loops:
            loop()  # allocates moments and warms the kernels
        pairs = [(timed(loops[0]), timed(loops[1])) for _ in range(arguments.rounds)]
        ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
        table.append(
            (
                f"{name}, {len(data):,} sentences",
                f"{len(data) / ours:,.0f}",
                f"{len(data) / theirs:,.0f}",
                f"{ratio:.2f}",
                verdict(ratio >= 1),
            )
        )
    print_table(
        ("training", "embcompress, sentences/s", "plain torch loop", "ratio", "at least as fast"), table
    )


if __name__ == "__main__":
    main()
