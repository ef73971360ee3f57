"""What is measured, and the CSV files it is kept in: one line a measurement, appended as it comes."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar, get_type_hints

SETS = ("sst2", "snips", "trec6")
MODELS = ("lstm", "dan")
STARTS = ("word2vec", "minilm", "fresh")
"""What a case can be made of, in the order in which cases are measured; a fresh table is noise."""


@dataclass(frozen=True)
class Case:
    """One training set, network, start and seed.

    Attributes:
        set: folder of the texts, one of ``SETS``.
        model: the classifier, one of ``MODELS``.
        start: where the table starts from, one of ``STARTS``.
        seed: of the dev texts (without a dev file), fresh weights, shuffling and dropout.
    """

    set: str
    model: str
    start: str
    seed: int


@dataclass(frozen=True)
class Step:
    """One thing to measure in a case.

    Attributes:
        arm: experiment it belongs to.
        method: what is done.
        ratio: fraction of the table's bytes to remove, 0 for none.
        learning_rate: highest rate of the (re)training.
    """

    arm: str
    method: str
    ratio: float = 0.0
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Measurement:
    """A step done in a case.

    Attributes:
        arm, method, ratio, learning_rate: the step.
        set, model, start, seed: the case.
        rank: components of the factors, width of a table that was made narrower, 0 for neither.
        table_bytes: bytes of the table or of what replaces it.
        parameters: numbers in the whole model.
        table_error: relative Frobenius error of the table before retraining.
        dev_accuracy: on the texts that chose the epoch.
        dev_loss: mean cross-entropy there; NaN where nothing was (re)trained.
        test_accuracy: on texts that chose nothing.
        test_f1: macro-F1 there.
        epoch: the epoch that dev chose, 0 for the model before (re)training.
        seconds: (re)training time, one thread; without that of the dense model it starts from.
    """

    arm: str
    set: str
    model: str
    start: str
    seed: int
    method: str
    ratio: float
    learning_rate: float
    rank: int
    table_bytes: int
    parameters: int
    table_error: float
    dev_accuracy: float
    dev_loss: float
    test_accuracy: float
    test_f1: float
    epoch: int
    seconds: float

    @property
    def case(self) -> Case:
        """The case measured."""
        return Case(self.set, self.model, self.start, self.seed)

    @property
    def step(self) -> Step:
        """The step done."""
        return Step(self.arm, self.method, self.ratio, self.learning_rate)


@dataclass(frozen=True)
class Cost:
    """What a sentence costs with one form of the table.

    Attributes:
        set: where sentences come from; all have its mean length.
        model: the classifier.
        method: form of the table.
        ratio: fraction of the table's bytes removed that was asked for.
        rank: components, 0 where there are none.
        length: tokens of a sentence.
        parameters: numbers in the whole model, codes and scales included.
        table_bytes: bytes of the table or of what replaces it.
        file_bytes: bytes that torch.save writes for the model's tensors.
        table_flops: operations of the embedding by formula (multiply-add 2, lookup 0).
        flops: of the whole network by formula: matrix products, and the table's.
        counted_flops: of the whole network by torch.utils.flop_counter, which sees matrix products only.
        latency_1: microseconds a sentence alone; median, one thread.
        latency_64: microseconds a sentence in a batch of 64.
    """

    set: str
    model: str
    method: str
    ratio: float
    rank: int
    length: int
    parameters: int
    table_bytes: int
    file_bytes: int
    table_flops: int
    flops: int
    counted_flops: int
    latency_1: float
    latency_64: float


@dataclass(frozen=True)
class Quantized:
    """A classifier of fastText.

    Attributes:
        set: training set.
        seed: of the dev texts and the training.
        ratio: fraction of the bytes of the arm "small"'s dense table that is removed; 0 before quantization.
        kept: rows of its table.
        table_bytes: bytes of its table: codes, norms and codebooks.
        file_bytes: bytes of the whole model as fastText writes it.
        dev_accuracy: on the dev texts.
        test_accuracy: on texts that chose nothing.
    """

    set: str
    seed: int
    ratio: float
    kept: int
    table_bytes: int
    file_bytes: int
    dev_accuracy: float
    test_accuracy: float


Row = TypeVar("Row", Measurement, Cost, Quantized)


class ResultFile(Generic[Row]):
    """Rows of one kind in a CSV file.

    Args:
        path: the file; made with the first row.
        kind: record of a row.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self._path, self._kind = path, kind

    def read(self) -> list[Row]:
        """All rows; a last line that a kill cut off is removed from the file."""
        if not self._path.exists():
            return []
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self._path, end)
        types = get_type_hints(self._kind)
        lines = csv.DictReader(io.StringIO(whole[:end].decode()))
        return [self._kind(**{name: types[name](value) for name, value in line.items()}) for line in lines]

    def append(self, row: Row) -> None:
        """Append a row in one write: a kill leaves whole lines, and several runs may share a file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self._path.open("xb", buffering=0) as file:
            file.write(_line(field.name for field in fields(self._kind)))
        values = asdict(row).values()
        with self._path.open("ab", buffering=0) as file:
            file.write(_line(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))


def _line(values: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
