"""A small intent classifier in plain torch: the kind of model whose checkpoint you want smaller.

It averages the embeddings of a sentence's words and sends the mean through one hidden layer. Nearly all
of its bytes are the embedding table, which is what ``embcompress factorize`` shrinks. Nothing here knows
about that, except ``evaluate``: to read a factorized file it calls ``embcompress.load``.

    python examples/intent_classifier.py train -o build/intents.pt
    python examples/intent_classifier.py evaluate build/intents.pt
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import embcompress

DATA = Path(__file__).parent / "data"
TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")  # words, and punctuation marks one by one
PADDING, UNKNOWN = "<pad>", "<unk>"


class IntentClassifier(nn.Module):
    """A deep averaging network: the mean of the word embeddings, one hidden layer, one score a label."""

    def __init__(self, words: int, labels: int, dimension: int = 300, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, dimension, padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.hidden = nn.Linear(dimension, hidden)
        self.output = nn.Linear(hidden, labels)
        # torch starts embeddings at a standard deviation of 1, of which training moves only a little: the
        # table would stay noise, and noise has no low rank. Starting small lets the table be what it learned.
        with torch.no_grad():
            self.embedding.weight.mul_(0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores the labels; tokens are (batch, length), 0 pads; the scores are (batch, labels)."""
        known = (tokens != 0).unsqueeze(-1)
        mean = (self.embedding(tokens) * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return self.output(torch.relu(self.hidden(self.dropout(mean))))


def read_examples(split: str) -> tuple[list[str], list[str]]:
    """Returns the texts and the labels of a CSV file with the header ``text,label``."""
    with (DATA / f"intents_{split}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def tokenize(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def build_vocabulary(texts: list[str]) -> list[str]:
    """Lists the words of the texts, the frequent ones first, after the two special tokens."""
    counts = Counter(token for text in texts for token in tokenize(text))
    return [PADDING, UNKNOWN, *sorted(counts, key=lambda token: (-counts[token], token))]


def encode(texts: list[str], vocabulary: list[str]) -> Tensor:
    """Turns texts into token numbers, padded to the longest: (texts, length)."""
    index = {token: number for number, token in enumerate(vocabulary)}
    unknown = index[UNKNOWN]
    # a text without a single token still needs one number
    rows = [[index.get(token, unknown) for token in tokenize(text)] or [unknown] for text in texts]
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def encode_split(split: str, vocabulary: list[str], labels: list[str]) -> tuple[Tensor, Tensor]:
    """Returns the token numbers and the label numbers of one of the CSV files beside this script."""
    texts, names = read_examples(split)
    return encode(texts, vocabulary), torch.tensor([labels.index(name) for name in names])


@torch.no_grad()
def accuracy(model: IntentClassifier, tokens: Tensor, targets: Tensor) -> float:
    model.eval()
    return (model(tokens).argmax(dim=1) == targets).float().mean().item()


def train(output: Path, epochs: int, seed: int) -> None:
    """Trains on the CSV files beside this script and saves the epoch that does best on the dev set."""
    torch.manual_seed(seed)
    texts, names = read_examples("train")
    vocabulary, labels = build_vocabulary(texts), sorted(set(names))
    tokens, targets = encode_split("train", vocabulary, labels)
    dev_tokens, dev_targets = encode_split("dev", vocabulary, labels)

    model = IntentClassifier(len(vocabulary), len(labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    output.parent.mkdir(parents=True, exist_ok=True)
    best = 0.0
    for epoch in range(1, epochs + 1):
        model.train()
        for batch in torch.randperm(len(tokens)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens[batch]), targets[batch]).backward()
            optimizer.step()
        reached = accuracy(model, dev_tokens, dev_targets)
        print(f"epoch {epoch}: dev accuracy {reached:.1%}")
        if reached >= best:  # among equals the one that trained longest
            best = reached
            checkpoint = {"state_dict": model.state_dict(), "vocabulary": vocabulary, "labels": labels}
            torch.save(checkpoint, output)
    print(f"saved {output}: {len(vocabulary)} words, dev accuracy {best:.1%}")


def evaluate(path: Path) -> None:
    """Prints the accuracy on the test set of a model, dense or factorized as its file is."""
    checkpoint = torch.load(path, weights_only=True)
    vocabulary, labels = checkpoint["vocabulary"], checkpoint["labels"]
    model = IntentClassifier(len(vocabulary), len(labels))
    if "embedding.weight" in checkpoint["state_dict"]:
        model.load_state_dict(checkpoint["state_dict"])
    else:  # the table is stored as two factors: embcompress swaps the layer, then loads
        embcompress.load(model, path)
    tokens, targets = encode_split("test", vocabulary, labels)
    print(f"{path}: test accuracy {accuracy(model, tokens, targets):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and evaluate a small intent classifier.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train on the data beside this script")
    training.add_argument("-o", "--output", type=Path, required=True, help="the checkpoint to write")
    training.add_argument("--epochs", type=int, default=6)
    training.add_argument("--seed", type=int, default=0)
    evaluation = commands.add_parser("evaluate", help="print the test accuracy of a checkpoint")
    evaluation.add_argument("checkpoint", type=Path, help="dense or factorized")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments.output, arguments.epochs, arguments.seed)
    else:
        evaluate(arguments.checkpoint)


if __name__ == "__main__":
    main()
