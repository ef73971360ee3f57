"""examples/paper: every arm runs on tiny data, and its tables are those of the committed rows."""
# ruff: noqa: E402 - the scripts are found once their folder is on the path

from __future__ import annotations

import ast
import csv
import itertools
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import embcompress
from embcompress.choices import CLASSIFIER_SPLIT
from embcompress.training.records import CALR_RECIPE

EXAMPLES = Path(__file__).parent.parent / "examples"
PAPER = EXAMPLES / "paper"
sys.path.append(str(PAPER))

import ablations
import bench
import compression
import cost
import run
import schedules
import small
import spread
import tables
import typed
from results import Case, Cost, Measurement, ResultFile

WIDTH = 300
VOCABULARY = [f"w{i}" for i in range(170)]
LABELS = ("no", "so", "yes")
TEST_TEXT, DEV_TEXT = "W5 w6, w7", "w8 w9 w10!"
"""A test and a dev text that stand, in other letters and with other spaces, among earlier ones too."""


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def texts(count, seed):
    """Texts of eight words; a label has ten words of its own, of which each of its texts has three."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        own = [f"w{10 * (i % 3) + draw.randrange(10)}" for _ in range(3)]
        other = draw.sample(VOCABULARY[30:], 5)
        found.append((" ".join(draw.sample(own + other, 8)), LABELS[i % 3]))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets, one with a dev file, and vectors of most of their words."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("sst2", "trec6"):
        leaks = [(TEST_TEXT.lower().replace(",", " ,"), "no"), (DEV_TEXT.upper(), "yes")]
        write(folder / name / "train.csv", [*texts(90, 0), *texts(6, 0), *leaks])
        write(folder / name / "test.csv", [*texts(30, 1), (TEST_TEXT, "no")])
    write(folder / "sst2" / "dev.csv", [*texts(30, 2), (DEV_TEXT, "yes"), (TEST_TEXT, "no")])
    vectors = folder / "vectors" / "word2vec-googlenews-300d.sst-trec-snips.npy"
    vectors.parent.mkdir()
    np.save(vectors, np.random.default_rng(0).normal(0, 0.1, (150, WIDTH)).astype(np.float32))
    vectors.with_suffix(".vocab.txt").write_text("\n".join(VOCABULARY[:150]) + "\n")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of results that all arms of this file share, as they do when they are run."""
    return tmp_path_factory.mktemp("results")


def start(data, out, arm, *more):
    """Run an arm from word2vec; the rows of its file."""
    arguments = ["--data", data, "--out", out, "--arm", arm, "--start", "word2vec", *more]
    run.main([str(argument) for argument in arguments])
    return ResultFile(out / f"{arm}.csv", Cost if arm == "cost" else Measurement).read()


def check_rows(rows, dense_bytes, tokens):
    """Sizes are within what was asked and fit the rank; shares are shares; epochs are those there are."""
    for row in rows:
        assert row.table_bytes < (1 - row.ratio) * dense_bytes + 1  # which is rounded
        assert 0 <= row.dev_accuracy <= 1
        assert 0 <= row.test_accuracy <= 1
        assert 0 <= row.test_f1 <= 1
        assert 0 <= row.epoch <= bench.BEFORE + bench.AFTER
        if row.rank and row.method not in ("offline", "folded"):
            assert row.table_bytes == 4 * row.rank * (tokens + WIDTH)
            assert 0 < row.table_error < 1
        elif row.rank:
            assert row.table_bytes == 4 * row.rank * tokens


def shown(row):
    """A row as text, in which no number is NaN, without the seconds."""
    return str(replace(row, seconds=0.0))


class TestScripts:
    """What holds of the scripts whatever they measure."""

    @pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda p: p.name)
    def test_examples_use_public_names_only(self, path):
        """What they import from embcompress, or name of it, is in its ``__all__``."""
        used = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embcompress"):
                assert node.module == "embcompress"
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("embcompress.") for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "embcompress" else set()
        assert used <= {*embcompress.__all__}

    @pytest.mark.parametrize("name", ["run", "tables"])
    def test_help_loads_neither_torch_nor_matplotlib(self, name):
        program = (
            "import runpy, sys\n"
            "sys.path.insert(0, sys.argv[1]); sys.argv = ['it', '--help']\n"
            f"try: runpy.run_path(sys.path[0] + '/{name}.py', run_name='__main__')\n"
            "except SystemExit as stop: assert stop.code == 0\n"
            "assert not {'torch', 'numpy', 'matplotlib'} & {*sys.modules}"
        )
        done = subprocess.run([sys.executable, "-c", program, PAPER], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "usage:" in done.stdout


class TestTexts:
    """Which texts are learned from."""

    @pytest.mark.parametrize("name", ["sst2", "trec6"])
    def test_no_text_stands_in_two_parts(self, data, name):
        """However it is written; and nothing else is lost."""
        parts = bench.parted(data / name, 0)
        keys = {part: {tuple(bench.words(row["text"])) for row in rows} for part, rows in parts.items()}
        assert tuple(bench.words(TEST_TEXT)) in keys["test.csv"]
        for one, other in itertools.combinations(keys.values(), 2):
            assert not one & other
        read = [row for file in (data / name).iterdir() for row in bench.read_rows(file)]
        assert set.union(*keys.values()) == {tuple(bench.words(row["text"])) for row in read}

    def test_another_seed_holds_out_other_texts(self, data):
        """About a tenth, where there is no dev file; a dev file is the same for all seeds."""
        one, other = (bench.parted(data / "trec6", seed) for seed in (0, 1))
        assert one["dev.csv"] != other["dev.csv"]
        assert 8 <= len({row["text"] for row in one["dev.csv"]}) <= 10
        assert bench.parted(data / "sst2", 0) == bench.parted(data / "sst2", 1)


class TestCompression:
    """Arm 1."""

    @pytest.fixture
    def rows(self, data, out):
        return start(data, out, "compression", "--set", "trec6", "--model", "dan", "--seeds", "1")

    def test_every_method_is_measured_once(self, rows):
        """With a table within the size, and learned from what can be learned."""
        case = Case("trec6", "dan", "word2vec", 0)
        assert [row.step for row in rows] == compression.steps(case, ())
        assert {row.case for row in rows} == {case}
        (dense,) = (row for row in rows if row.method == "dense")
        tokens = dense.table_bytes // (4 * WIDTH)
        check_rows(rows, dense.table_bytes, tokens)
        assert dense.test_accuracy > 0.6  # of three labels
        by_method = {row.method: row for row in rows}
        assert by_method["int8"].table_bytes == tokens * (WIDTH + 2)
        assert by_method["int4"].table_bytes == tokens * (WIDTH // 2 + 2)
        assert 0 < by_method["int8"].table_error < by_method["int4"].table_error < 0.2
        for method in ("svd", "online-calr", "recommended"):
            errors = [row.table_error for row in sorted(rows, key=lambda r: r.ratio) if row.method == method]
            assert len(errors) > 3
            assert errors == sorted(errors)

    def test_a_second_run_measures_what_is_missing(self, rows, data, out):
        """A line that a kill cut off is measured again, to the same figures; all else stays."""
        path = out / "compression.csv"
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        again = start(data, out, "compression", "--set", "trec6", "--model", "dan", "--seeds", "1")
        assert [shown(row) for row in again] == [shown(row) for row in rows]
        before = path.read_bytes()
        start(data, out, "compression", "--set", "trec6", "--model", "dan", "--seeds", "1")
        assert path.read_bytes() == before

    def test_tables_and_pictures_hold_every_method(self, rows, out):
        text = (out / "tables.md").read_text()
        for row in rows:
            assert f"| trec6, dan, {row.method}" in text
        assert (out / "compression-word2vec.png").stat().st_size > 10_000

    @pytest.mark.slow
    def test_the_start_minilm(self, data, out):
        """The table of a sentence encoder with its own tokenizer, dense and narrow."""
        case = Case("trec6", "dan", "minilm", 0)
        found = bench.Bench(case, data, out / "cache")
        matrix, tokens = compression.pretrained(found)
        assert matrix.shape == (len(tokens), 384) == (30522, 384)
        assert tokens[101] == "[CLS]"
        step = next(step for step in compression.steps(case, ()) if step.method == "offline")
        row = compression.measure(step, found)
        assert (row.rank, row.table_bytes) == (38, 4 * 38 * 30522)


class TestSchedules:
    """Arm 2."""

    def test_every_pair_is_tuned_on_seed_0_and_measured_on_all(self, data, out, monkeypatch):
        """Each of the ten at all rates (here two), the other seed at the one that was best on dev."""
        for module in (schedules, spread):
            monkeypatch.setattr(module, "GRID", (1.0, 10.0))
        rows = start(data, out, "schedules", "--set", "trec6", "--model", "dan", "--seeds", "2")
        first, second = ([row for row in rows if row.seed == seed] for seed in (0, 1))
        assert len({row.step for row in first}) == len(first) == 2 * len(schedules.PAIRS)
        assert len(second) == len(schedules.PAIRS)
        for row in second:
            tried = [other for other in first if other.method == row.method]
            best = max(tried, key=lambda other: (other.dev_accuracy, -other.dev_loss))
            assert row.learning_rate == best.learning_rate
        assert len(spread.at_chosen_rates(rows)) == 2 * len(schedules.PAIRS)
        assert "retrain sgd calr" in (out / "tables.md").read_text()
        assert (out / "schedules.png").stat().st_size > 10_000

    def test_training_from_scratch(self, data, out):
        """On one set and network, all epochs before compression, with nothing compressed."""
        case = Case("sst2", "lstm", "word2vec", 0)
        steps = [s for s in schedules.steps(case, ()) if s.method.startswith(schedules.SCRATCH)]
        assert len(steps) == 4 * len(schedules.PAIRS)
        step = next(step for step in steps if step.method == "scratch adam cosine")
        row = schedules.measure(step, bench.Bench(case, data, out / "cache"))
        assert row.rank == 0
        assert row.table_error == 0
        assert row.table_bytes % (4 * WIDTH) == 0


@pytest.mark.slow
class TestAblations:
    """Arm 3."""

    @pytest.mark.parametrize("model", ["dan", "lstm"])
    def test_every_change_is_measured(self, data, out, model):
        rows = start(data, out, "ablations", "--set", "trec6", "--model", model, "--seeds", "1")
        rows = [row for row in rows if row.model == model]
        assert [row.step for row in rows] == ablations.steps(rows[0].case, ())
        tokens = next(row.table_bytes // (4 * row.rank) for row in rows if row.method == "folded")
        check_rows(rows, 4 * tokens * WIDTH, tokens)
        assert len({row.rank for row in rows}) == 1
        assert f"trec6, {model}" in (out / "tables.md").read_text()

    def test_the_networks_of_the_ablations_are_the_same_functions(self, data, out, tmp_path):
        """Folded, or token by token, a factorized classifier scores texts as it did before."""
        for model in ("dan", "lstm"):
            dense = bench.Bench(Case("trec6", model, "word2vec", 0), data, out / "cache").early
            small = tmp_path / f"{model}.safetensors"
            embcompress.factorize(dense, ratio=0.9, output=small)
            folded = ablations.folded(dense, small, tmp_path / f"{model}-folded.safetensors")
            forms = [cost.module(model, dense, small), cost.module(model, folded)]
            if model == "dan":
                forms.append(cost.module(model, dense, small, bag=False))
            tokens, lengths = torch.tensor([[5, 9, 7, 8], [4, 6, 0, 0]]), torch.tensor([4, 2])
            with torch.no_grad():
                first, *others = (form(tokens, lengths) for form in forms)
            assert first.std() > 0
            for other in others:
                torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
class TestTyped:
    """The path as typed."""

    def test_the_other_set_chooses_and_test_texts_judge(self, data, out, monkeypatch):
        """Seed 0 measures all settings on held-out texts, seed 1 the best of the other set, here of two."""
        without = {split: typed.Setting(split, "linear", 3e-3, 3) for split in ("left", "even")}
        monkeypatch.setattr(typed, "SETTINGS", (typed.FIRST, typed.DEFAULT, *without.values()))
        monkeypatch.setattr(typed, "RATIOS", (0.9,))
        more = ("--set", "sst2", "trec6", "--model", "dan", "--seeds", "2", "--start", typed.FRESH)
        rows = start(data, out, "typed", *more)
        rows = [replace(row, method=row.method.replace("held out: ", "")) for row in rows]
        accuracy = {(row.set, row.seed, row.method): row.test_accuracy for row in rows}
        names = [setting.method for setting in typed.SETTINGS]
        for texts, other in itertools.permutations(("sst2", "trec6")):
            assert {m for s, seed, m in accuracy if (s, seed) == (texts, 0)} == {"dense", *names}
            first, second = (accuracy[other, 0, name] for name in names[:2])
            best = typed.DEFAULT if second > first else typed.FIRST
            measured = (best, without[best.split], typed.DEFAULT, typed.WEIGHTED, typed.FIRST)
            expected = ["dense", *dict.fromkeys(setting.method for setting in measured)]
            assert [m for s, seed, m in accuracy if (s, seed) == (texts, 1)] == expected
            judged = [row for row in rows if (row.set, row.seed) == (texts, 1)]
            check_rows(judged, judged[0].table_bytes, judged[0].table_bytes // (4 * WIDTH))
        assert f"| {names[1]}, 0.003 |" in (out / "tables.md").read_text()

    @pytest.mark.parametrize("name", ["sst2", "trec6"])
    def test_what_is_held_out_is_not_learned_from(self, data, out, name):
        """It takes the place of the test texts; the dev texts are the same, and nothing else is lost."""
        whole = bench.Bench(Case(name, "dan", typed.FRESH, 0), data, out / "cache")
        part = typed.held_out(whole)
        train, test, both = (
            {tuple(bench.words(row["text"])) for row in bench.read_rows(path)}
            for path in (part.texts.train, part.test, whole.texts.train)
        )
        assert test
        assert not train & test
        assert train | test == both
        assert part.texts.dev == whole.texts.dev
        assert whole.test.parent == whole.folder

    def test_the_defaults_are_what_the_commands_do(self):
        """The setting that is called the default is that of factorize and finetune."""
        assert typed.DEFAULT.recipe == CALR_RECIPE
        assert typed.DEFAULT.split == CLASSIFIER_SPLIT
        assert typed.DEFAULT.weights == "none"


class TestCost:
    """Arm 4."""

    @pytest.mark.parametrize("model", ["dan", "lstm"])
    def test_every_form_is_measured(self, data, out, model):
        """Operations by formula are those that PyTorch counts; a smaller table makes a smaller file."""
        found = bench.Bench(Case("trec6", model, "word2vec", 0), data, out / "cache")
        rows = cost.measure(found, passes=3)
        forms = ["svd", "token by token", "folded"] if model == "dan" else ["svd", "folded"]
        assert [row.method for row in rows] == ["dense", *forms, *forms, "int8"]
        dense, *others = rows
        for row in rows:
            assert row.latency_1 > 0
            assert row.latency_64 > 0
            assert row.file_bytes > row.table_bytes
            if row.method != "int8":
                assert row.flops == row.counted_flops
        for row in others:
            assert row.table_bytes <= (1 - row.ratio) * dense.table_bytes
            assert row.file_bytes < dense.file_bytes
        file = ResultFile(out / "cost.csv", Cost)
        for row in rows:
            file.append(row)
        tables.render(out)
        assert f"| trec6, {model}, folded 98% (rank " in (out / "tables.md").read_text()

    @pytest.mark.parametrize("model", ["dan", "lstm"])
    def test_the_timed_network_answers_as_the_classifier(self, data, out, model):
        """What is timed is what embcompress made: the modules in plain PyTorch predict the same labels."""
        found = bench.Bench(Case("trec6", model, "word2vec", 0), data, out / "cache")
        record = bench.opened(found.final)[1]
        number = {token: i for i, token in enumerate(record["tokenizer"]["vocabulary"])}
        network, answers = cost.module(model, found.final), []
        for row in bench.read_rows(found.test):
            ids = [number.get(word, number["<unk>"]) for word in bench.words(row["text"])]
            with torch.no_grad():
                scores = network(torch.tensor([ids]), torch.tensor([len(ids)]))
            answers.append(record["labels"][int(scores.argmax())] == row["label"])
        assert sum(answers) / len(answers) == embcompress.evaluate(found.final, found.test).accuracy


@pytest.mark.slow
class TestSmall:
    """Arm 5."""

    def test_every_method_is_measured(self, data, out, monkeypatch):
        """Within its bytes, which are more here: of a tiny table nothing is left at the ratios of the arm."""
        left_out = ("lplr", "svd", "compress after 8 epochs")
        plan = {method: (0.9,) for method in small.PLAN if method not in left_out}
        monkeypatch.setattr(small, "PLAN", plan)
        rows = start(data, out, "small", "--set", "trec6", "--model", "dan", "--seeds", "1")
        case = Case("trec6", "dan", "word2vec", 0)
        assert [row.step for row in rows] == small.steps(case, ())
        dense, *others = rows
        assert {*small.PLAN} < {*small.MEANINGS}
        for row in others:
            assert row.table_bytes <= (1 - row.ratio) * dense.table_bytes
            assert (row.seconds > 0) == (row.method == "compress" or row.method.endswith("retrained"))
        by_method = {row.method: row for row in rows}
        # Errors of what moves no score are larger, since they do not count.
        assert by_method["pq"].table_error > by_method["pq, all alike"].table_error
        assert by_method["pq"].test_accuracy >= dense.test_accuracy - 0.1
        assert "| pq, 90.00% |" in (out / "tables.md").read_text()
        again = start(
            data, out, "small", "--set", "trec6", "--model", "dan", "--seeds", "1", "--method", "pq"
        )
        assert [shown(row) for row in again] == [shown(row) for row in rows]


class TestCommittedResults:
    """The rows in examples/paper/results."""

    def test_they_give_the_committed_tables(self, tmp_path):
        for path in (PAPER / "results").glob("*.csv"):
            shutil.copy(path, tmp_path)
        tables.main(["--results", str(tmp_path)])
        assert (tmp_path / "tables.md").read_text() == (PAPER / "results" / "tables.md").read_text()
        pictures = {path.name for path in tmp_path.glob("*.png")}
        assert pictures == {path.name for path in (PAPER / "results").glob("*.png")}

    def test_the_rows_measured_again_are_whole(self):
        """Every step of five seeds of one set with both networks, once each."""
        rows = ResultFile(PAPER / "results" / "again" / "compression.csv", Measurement).read()
        cases = [Case("trec6", model, "word2vec", seed) for model in ("dan", "lstm") for seed in range(5)]
        expected = [(case, step) for case in cases for step in compression.steps(case, ())]
        assert [(row.case, row.step) for row in rows] == expected

    def test_tables_need_no_matplotlib(self, tmp_path, monkeypatch, capsys):
        """Without it there are no pictures, and a line says so."""
        shutil.copy(PAPER / "results" / "compression.csv", tmp_path)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        tables.main(["--results", str(tmp_path)])
        assert {path.name for path in tmp_path.iterdir()} == {"compression.csv", "tables.md"}
        assert "embcompress[plot]" in capsys.readouterr().out
