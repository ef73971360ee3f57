"""Arm 5: the path as a user types it: train, factorize, retrain with CALR and without.

    embcompress train train.csv --arch dan -o model.pt
    embcompress factorize model.pt --ratio 0.98 -o small.pt
    embcompress finetune small.pt train.csv --schedule calr -o tuned.pt

Seed 0 chooses how it is retrained, by texts that are held out of the training texts: none of them is learned
from or chooses an epoch. For each set it is chosen by the two others, and judged by test texts of the other
seeds.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench import Bench, csv_of, drawn, read_rows, table_bytes, training, without
from results import Case, Measurement, Step

import embcompress

NAME = "typed"
RATIOS = (0.9, 0.98)
FRESH = "fresh"
"""The start that is typed: no vectors."""
CHOOSING = "held out: "
"""First part of the name of a method that is measured on held-out texts."""
_DRAW = 77
"""Added to the seed that draws dev texts, so that others are held out."""


@dataclass(frozen=True)
class Setting:
    """How a classifier is factorized and retrained.

    Attributes:
        split: where the singular values go.
        schedule: of the learning rate.
        rate: the highest learning rate.
        epochs: of retraining.
        decay, window: of CALR, 0 without it.
        weights: of the rows, as ``factorize --weights`` takes them.
    """

    split: str
    schedule: str
    rate: float
    epochs: int
    decay: float = 0.0
    window: int = 0
    weights: str = "none"

    @property
    def method(self) -> str:
        """Everything but the rate, in words."""
        words = [f"S {self.split}", self.schedule, f"{self.epochs} epochs"]
        words += [f"decay {self.decay:g}, window {self.window}"] if self.decay else []
        words += [f"weights {self.weights}"] if self.weights != "none" else []
        return ", ".join(words)

    def step(self, ratio: float, prefix: str = "") -> Step:
        """The step that measures it."""
        return Step(NAME, prefix + self.method, ratio, self.rate)

    @property
    def recipe(self) -> embcompress.Recipe:
        """How it is retrained, but for the seed."""
        options = {"decay": self.decay, "window": self.window} if self.decay else {}
        return embcompress.Recipe(
            epochs=self.epochs,
            learning_rate=self.rate,
            schedule=self.schedule,
            schedule_options=options,
        )


FIRST = Setting("left", "calr", 3e-3, 3, 0.1, 5)
"""What ``factorize`` and ``finetune --schedule calr`` did before any of this was measured."""
DEFAULT = Setting("even", "calr", 3e-3, 3, 0.5, 3)
"""What they do now: the one with CALR that loses least on the held-out texts of all three sets."""
WEIGHTED = replace(DEFAULT, weights="auto")
"""The same with rows weighted by how frequent the classifier's vocabulary shows its tokens to be."""
SETTINGS = (
    FIRST,
    Setting("left", "linear", 3e-3, 3),
    DEFAULT,
    WEIGHTED,
    Setting("even", "linear", 3e-3, 3),
    Setting("right", "calr", 1e-3, 3, 0.1, 3),
    Setting("right", "calr", 1e-3, 3, 0.5, 3),
    Setting("right", "linear", 1e-3, 3),
)
"""What is chosen from."""
_SETTING_OF = {setting.method: setting for setting in SETTINGS}


def steps(case: Case, earlier: Collection[Measurement]) -> Iterator[Step]:
    """With seed 0 all settings on held-out texts; with others the chosen ones on test texts."""
    if case.seed == 0:
        yield Step(NAME, f"{CHOOSING}dense")
        for ratio, setting in itertools.product(RATIOS, SETTINGS):
            yield setting.step(ratio, CHOOSING)
        return
    yield Step(NAME, "dense")
    for setting, ratio in itertools.product(judged(case.set, earlier), RATIOS):
        yield setting.step(ratio)


def judged(texts: str, earlier: Collection[Measurement]) -> Iterable[Setting]:
    """What meets the test texts of a set: what the others choose, the same without CALR, and the defaults."""
    plain = [one for one in SETTINGS if one.weights == "none"]
    with_calr = chosen(texts, earlier, [one for one in plain if one.schedule == "calr"])
    others = [one for one in plain if one.schedule != "calr" and one.split == with_calr.split]
    return dict.fromkeys((with_calr, chosen(texts, earlier, others), DEFAULT, WEIGHTED, FIRST))


def chosen(texts: str, earlier: Collection[Measurement], offered: Iterable[Setting]) -> Setting:
    """The setting that loses least on the held-out texts of all sets but one."""
    losses = held_out_losses(texts, earlier)
    return min(offered, key=lambda setting: sum(losses[setting].values()))


def held_out_losses(texts: str, rows: Iterable[Measurement]) -> dict[Setting, dict[float, float]]:
    """Points lost on the held-out texts of all sets but one, by setting and ratio.

    They are the means over the cases in which every setting was measured at both ratios; nothing if there
    are none.
    """
    rows = [row for row in rows if row.set != texts and row.method.startswith(CHOOSING)]
    dense = {row.case: row.test_accuracy for row in rows if row.method == f"{CHOOSING}dense"}
    measured = {(row.case, row.step): row.test_accuracy for row in rows}
    asked = [setting.step(ratio, CHOOSING) for setting in SETTINGS for ratio in RATIOS]
    whole = [case for case in dense if all((case, step) in measured for step in asked)]
    if not whole:
        return {}
    return {
        setting: {
            ratio: 100
            * statistics.fmean(dense[c] - measured[c, setting.step(ratio, CHOOSING)] for c in whole)
            for ratio in RATIOS
        }
        for setting in SETTINGS
    }


def measure(step: Step, bench: Bench) -> Measurement:
    """Do a step."""
    used = held_out(bench) if step.method.startswith(CHOOSING) else bench
    model, method = dense(used), step.method.removeprefix(CHOOSING)
    if method == "dense":
        return used.row(step, model, table_bytes=table_bytes(model))
    setting = _SETTING_OF[method]
    with used.scratch() as folder:
        small = embcompress.factorize(
            model,
            ratio=step.ratio,
            split_scale=setting.split,
            weights=setting.weights,
            output=Path(folder, "small.safetensors"),
        )
        tuned = embcompress.finetune(
            small.output,
            used.texts,
            output=Path(folder, "tuned.safetensors"),
            recipe=replace(setting.recipe, seed=used.case.seed),
            session=used.session,
        )
        return used.table_row(step, tuned.output, small, **training(tuned))


def dense(bench: Bench) -> Path:
    """The dense classifier, trained as ``train`` does without a word."""
    path = bench.folder / "typed.safetensors"
    if not path.exists():  # it appears whole or not at all
        new = replace(bench.new, max_length=embcompress.NewClassifier.max_length)
        recipe = embcompress.Recipe(seed=bench.case.seed)
        embcompress.train(bench.texts, output=path, new=new, recipe=recipe, session=bench.session)
    return path


def held_out(bench: Bench) -> Bench:
    """The same case with a tenth of its training texts in the place of its test texts."""
    found = copy.copy(bench)
    found.folder = bench.folder / "held-out"
    found.folder.mkdir(exist_ok=True)
    rows = read_rows(bench.texts.train)
    held = drawn(rows, bench.case.seed + _DRAW)
    train, found.test = found.folder / "train.csv", found.folder / "test.csv"
    train.write_text(csv_of(without(rows, held)), encoding="utf-8")
    found.test.write_text(csv_of(held), encoding="utf-8")
    found.texts = replace(bench.texts, train=train)
    return found
