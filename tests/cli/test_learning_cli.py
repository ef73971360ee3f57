"""The terminal of train, finetune, evaluate and compress: options, screens, JSON, history and plots."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from helpers.checkpoints import assert_refused, run, succeed
from helpers.weather import QUICK, STILL, TABLE, record, result, same, tensors, train, weather
from matplotlib.image import imread

import embcompress
from embcompress.cli import cli
from embcompress.reports.plots import plot_history
from embcompress.training.records import CALR_RECIPE, FINETUNE_RECIPE, TRAIN_RECIPE, Epoch

COMMANDS = ("train", "finetune", "evaluate", "compress")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Texts and a dense DAN of them."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, count, seed in (("train", 60, 0), ("test", 30, 2)):
        weather(folder / f"{name}.csv", count, seed)
    train(folder / "dan.pt", folder / "train.csv")
    return folder


@pytest.fixture
def texts(shelf):
    return shelf / "train.csv"


@pytest.fixture
def dense(shelf, tmp_path):
    """A copy of the DAN, to be worked with."""
    return Path(shutil.copy(shelf / "dan.pt", tmp_path / "model.pt"))


def ways(dense, texts, output):
    """How each command is called, quickly, and where it writes."""
    return {
        "train": ("train", texts, "-o", output, "--arch", "dan", "--hidden", "4", *QUICK),
        "finetune": ("finetune", dense, texts, "-o", output, *QUICK),
        "compress": ("compress", dense, texts, "-o", output, "--rank", "3", *QUICK),
        "evaluate": ("evaluate", dense, texts),
    }


# ---- options


def called(monkeypatch, command, *options):
    """What the workflow is called with, by name; ``options`` go to the command line as they are."""

    class ReachedError(Exception):
        """Ends the command as soon as the workflow has its arguments."""

    def workflow(*args, **kwargs):
        positional = ("texts",) if command == "train" else ("path", "texts")
        raise ReachedError(dict(zip(positional, args, strict=True)) | kwargs)

    monkeypatch.setattr(embcompress, command, workflow, raising=False)
    fixed = {"train": ["t.csv", "-o", "o.pt"], "compress": ["m.pt", "t.csv", "--rank", "2"]}
    done = CliRunner().invoke(cli, [command, *fixed.get(command, ["m.pt", "t.csv"]), *options])
    assert isinstance(done.exception, ReachedError), done.output
    return SimpleNamespace(**done.exception.args[0])


def at(call, place):
    """The value at a dotted place of a call."""
    for name in place.split("."):
        call = getattr(call, name)
    return call


COLUMNS = {
    "--text-column": ("t", "texts.text_column", "t"),
    "--label-column": ("l", "texts.label_column", "l"),
    "--delimiter": (";", "texts.text_format.delimiter", ";"),
    "--text-format": ("jsonl", "texts.text_format.kind", "jsonl"),
    "--header": (None, "texts.text_format.header", True),
    "--no-header": (None, "texts.text_format.header", False),
    "--quoting": ("none", "texts.text_format.quoting", "none"),
    "--encoding": ("latin-1", "texts.text_format.encoding", "latin-1"),
}
MODEL, DEVICE = ("own:f", "factory", "own:f"), ("cpu", "session.device", "cpu")
RUN = {
    "--dev": ("d.csv", "texts.dev", Path("d.csv")),
    "--dev-share": ("0.3", "texts.dev_share", 0.3),
    "--epochs": ("7", "recipe.epochs", 7),
    "--batch-size": ("9", "recipe.batch_size", 9),
    "--optimizer": ("sgd", "recipe.optimizer", "sgd"),
    "--learning-rate": ("0.5", "recipe.learning_rate", 0.5),
    "--schedule": ("cosine", "recipe.schedule", "cosine"),
    "--weight-decay": ("0.01", "recipe.weight_decay", 0.01),
    "--clip": ("2", "recipe.clip", 2.0),
    "--patience": ("4", "recipe.patience", 4),
    "--seed": ("11", "recipe.seed", 11),
    "--device": DEVICE,
    "--mixed": (None, "session.mixed", True),
    "--no-mixed": (None, "session.mixed", False),
    "--history": ("h.jsonl", "session.history", Path("h.jsonl")),
    "--plot": ("p.png", "session.plot", Path("p.png")),
    "--resume": (None, "session.resume", True),
    "--force": (None, "session.force", True),
}
RETRAIN = {
    **COLUMNS,
    **RUN,
    "--model": MODEL,
    "--only-factors": (None, "recipe.only_factors", True),
    "--schedule-option": ("decay=0.5", "recipe.schedule_options", {"decay": 0.5}),
    "--output": ("out.pt", "output", Path("out.pt")),
}
OPTIONS = {
    "train": {
        **COLUMNS,
        **RUN,
        "--schedule-option": ("decay=0.5", "recipe.schedule_options", {"decay": 0.5}),
        "--output": ("out.pt", "output", Path("out.pt")),
        "--model": ("own:f", "new.factory", "own:f"),
        "--arch": ("dan", "new.arch", "dan"),
        "--vectors": ("v.npy", "new.vectors", Path("v.npy")),
        "--tokenizer": ("whitespace", "new.tokenizer", "whitespace"),
        "--dimension": ("5", "new.dimension", 5),
        "--hidden": ("6,5", "new.hidden", (6, 5)),
        "--dropout": ("0.2", "new.dropout", 0.2),
        "--bidirectional": (None, "new.bidirectional", True),
        "--min-count": ("2", "new.min_count", 2),
        "--max-tokens": ("3", "new.max_tokens", 3),
        "--max-length": ("2", "new.max_length", 2),
    },
    "finetune": RETRAIN,
    "evaluate": {**COLUMNS, "--model": MODEL, "--device": DEVICE},
    "compress": {
        **RETRAIN,
        "--rank": ("4", "rank", 4),
        "--ratio": ("0.5", "ratio", 0.5),
        "--energy": ("0.9", "energy", 0.9),
        "--max-error": ("0.1", "max_error", 0.1),
        "--max-size": ("2kB", "max_size", 2000),
        "--method": ("pq", "method", "pq"),
        "--dtype": ("float16", "dtype", "float16"),
        "--split-scale": ("even", "split_scale", "even"),
        "--key": ("x.weight", "keys", ("x.weight",)),
        "--test": ("e.csv", "test", Path("e.csv")),
        "--smoothing": ("0.25", "smoothing", 0.25),
        "--no-metric": (None, "metric", False),
    },
}
"""Command -> option -> (its value, where the workflow finds it, what it finds)."""


@pytest.mark.parametrize(("command", "option"), [(c, o) for c in OPTIONS for o in OPTIONS[c]])
def test_every_option_reaches_its_workflow(monkeypatch, command, option):
    """Given, it is found where the workflow looks; left out, something else is there."""
    value, place, expected = OPTIONS[command][option]
    given = called(monkeypatch, command, option, *([] if value is None else [value]))
    assert at(given, place) == expected
    assert at(called(monkeypatch, command), place) != expected


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_missing_above(command):
    """A new option gets its line in OPTIONS; those of the screen and of teachers have tests of their own."""
    names = {name for p in cli.commands[command].params for name in (*p.opts, *p.secondary_opts)}
    names = {name for name in names if name.startswith("--")}
    comparing = {"--teacher", "--texts", "--max-length"} if command == "evaluate" else set()
    assert names - {"--json", "--quiet", "--verbose"} - comparing == {*OPTIONS[command]}


def test_what_is_left_out_has_its_usual_value(monkeypatch):
    """Recipes are those of the workflows; the rate of one optimizer does not follow to another."""
    assert called(monkeypatch, "train").recipe == TRAIN_RECIPE
    for command in ("finetune", "compress"):
        assert called(monkeypatch, command).recipe == FINETUNE_RECIPE
        assert called(monkeypatch, command, "--optimizer", "sgd").recipe.learning_rate is None
        assert called(monkeypatch, command, "--schedule", "clr").recipe.learning_rate == 3e-3


@pytest.mark.parametrize("command", ["finetune", "compress"])
def test_calr_has_settings_of_its_own_to_retrain(monkeypatch, command):
    """What the user sets takes the place of one and leaves the others; a new classifier has the paper's."""
    assert called(monkeypatch, command, "--schedule", "calr").recipe == CALR_RECIPE
    given = ("--schedule", "calr", "--schedule-option", "decay=0.1", "--learning-rate", "0.01")
    changed = called(monkeypatch, command, *given).recipe
    assert changed.schedule_options == {**CALR_RECIPE.schedule_options, "decay": 0.1}
    assert (changed.learning_rate, changed.epochs) == (0.01, CALR_RECIPE.epochs)
    with_sgd = called(monkeypatch, command, "--schedule", "calr", "--optimizer", "sgd").recipe
    assert (with_sgd.learning_rate, with_sgd.schedule_options) == (None, CALR_RECIPE.schedule_options)
    assert called(monkeypatch, "train", "--schedule", "calr").recipe.schedule_options == {}


def test_the_rates_of_calr_halve_from_epoch_to_epoch(dense, texts, tmp_path):
    """As finetune takes them without a word, from 3e-3, with 54 texts in two steps of 50 and 4."""
    found = result("finetune", dense, texts, "-o", tmp_path / "tuned.pt", "--schedule", "calr")
    rates = [epoch["learning_rate"] for epoch in found["epochs"][1:]]
    assert rates == pytest.approx([3e-3, 1.5e-3, 0.75e-3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--dimension", "5"), {"dimension": 5}),
        (("--hidden", "6,7"), {"hidden": [6, 7]}),
        (("--dropout", "0.25"), {"dropout": 0.25}),
        (("--arch", "lstm", "--hidden", "6", "--bidirectional"), {"name": "lstm", "bidirectional": True}),
        (("--max-length", "2"), {"max_length": 2}),
        (("--tokenizer", "whitespace"), {"rule": "whitespace"}),
        (("--max-tokens", "3"), {"tokens": 5}),
        (("--min-count", "1000000"), {"tokens": 2}),
        ((), {"name": "dan", "hidden": [4], "dropout": 0.4, "max_length": 256, "rule": "words"}),
    ],
)
def test_a_new_classifier_is_what_was_asked_for(tmp_path, texts, options, expected):
    """The record says it and the tensors have its shapes."""
    path = tmp_path / "new.pt"
    succeed("train", texts, "-o", path, "--arch", "dan", "--hidden", "4", *STILL, *options)
    about = record(path)
    vocabulary = about["tokenizer"]["vocabulary"]
    flat = {**about, **about["architecture"], **about["tokenizer"], "tokens": len(vocabulary)}
    assert {name: flat[name] for name in expected} == expected
    assert tensors(path)[TABLE].shape == (len(vocabulary), flat["dimension"])


@pytest.mark.parametrize(
    "options",
    [
        *(("--epochs", "2"), ("--batch-size", "7"), ("--optimizer", "rmsprop"), ("--learning-rate", "0.02")),
        *(("--schedule", "linear"), ("--schedule", "calr", "--schedule-option", "decay=0.5")),
        *(("--weight-decay", "0.1"), ("--clip", "0.01"), ("--seed", "3"), ("--mixed",)),
    ],
)
def test_every_setting_of_the_recipe_changes_what_is_learned(tmp_path, dense, texts, options):
    """Another value, other weights; the same command again, the same weights."""
    outputs = [tmp_path / f"{i}.pt" for i in range(3)]
    for output, more in zip(outputs, ((), (), options), strict=True):
        succeed("finetune", dense, texts, "-o", output, *QUICK, *more)
    assert same(outputs[0], outputs[1])
    assert not same(outputs[0], outputs[2])


# ---- screens


@pytest.mark.parametrize("command", COMMANDS)
def test_a_person_reads_what_was_done(dense, texts, command):
    """Epochs on stderr, the outcome on stdout with the place that was written."""
    output = dense.with_stem("out")
    done = succeed(*ways(dense, texts, output)[command])
    found = result(*ways(dense, texts, dense.with_stem("again"))[command])
    assert "\x1b" not in done.output
    if command == "evaluate":
        expected = [f"accuracy {found['accuracy']:.2%}", f"{found['macro_f1']:.4f}", "1 cold", "3 wet"]
    elif command == "compress":
        accuracies = (found[step]["accuracy"] for step in ("before", "without_training", "after"))
        expected = ["rank 3", *(f"{accuracy:.2%}" for accuracy in accuracies)]
        found = found["tuned"]
    else:
        expected = [f"{found['tokens']} tokens, 3 labels", f"dev accuracy {found['dev_accuracy']:.2%}"]
        expected.append(f"epoch {found['best']} of 3")
    if command == "finetune":
        expected.append(f"({found['epochs'][0]['dev_accuracy']:.2%} before)")
    for text in expected:
        assert text in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    for line, epoch in zip(lines, found.get("epochs", ()), strict=True):
        assert f"{epoch['dev_accuracy']:.2%}" in line
        assert f"loss {epoch['dev_loss']:.4f}" in line
    assert command == "evaluate" or f"wrote {output}" in done.stdout


def test_the_confusion_is_printed_up_to_a_dozen_labels(tmp_path):
    """More would not fit a terminal; JSON always has it."""
    for count in (12, 13):
        texts = weather(
            tmp_path / f"{count}.csv", 60, signs={f"label{i}": [f"sign{i}"] for i in range(count)}
        )
        model = tmp_path / f"{count}.pt"
        succeed("train", texts, "-o", model, "--arch", "dan", "--hidden", "4", *STILL)
        assert ("predicted as" in succeed("evaluate", model, texts).stdout) == (count == 12)
        assert len(result("evaluate", model, texts)["confusion"]) == count


TRAINED = {
    *("source", "output", "classifier", "labels", "tokens", "pretrained", "train_texts", "dev_texts"),
    *("epochs", "best", "dev_accuracy", "size", "notes"),
}
MEASURED = {
    *("path", "texts", "size", "count", "accuracy", "macro_f1", "labels", "confusion", "notes"),
}
FIELDS = {
    "train": TRAINED,
    "finetune": TRAINED,
    "evaluate": MEASURED,
    "compress": {"factorized", "tuned", "before", "without_training", "after", "notes"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object_and_all_else_is_on_stderr(dense, texts, command):
    """Its fields are a contract; epochs and stages do not get between."""
    done = succeed(*ways(dense, texts, dense.with_stem("out"))[command], "--json", "-v")
    found = json.loads(done.stdout)
    assert {*found} == FIELDS[command]
    if command == "compress":
        assert {*found["tuned"]} == TRAINED
        assert {*found["after"]} == {*found["before"]} == {*found["without_training"]} == MEASURED
    else:
        assert found["size"] == (dense if command == "evaluate" else dense.with_stem("out")).stat().st_size


def test_notes_go_to_stderr(dense, texts):
    """With and without --json, where they are a field as well; -q keeps them back."""
    args = ("finetune", dense, texts, "-o", dense.with_stem("out"), *STILL, "--force")
    (note,) = json.loads(succeed(*args, "--json", "-q").stdout)["notes"]
    assert "improved nothing on dev" in note
    for more in ((), ("--json",)):
        done = succeed(*args, *more)
        assert f"note: {note}" in done.stderr.splitlines()
        assert "note: " not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_prints_nothing(dense, texts, command):
    """-q leaves both streams empty when all went well, and with --json only stderr."""
    done = run(*ways(dense, texts, dense.with_stem("out"))[command], "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    done = run(*ways(dense, texts, dense.with_stem("again"))[command], "-q", "--json")
    assert {*json.loads(done.stdout)} == FIELDS[command]
    assert done.stderr == ""


# ---- history and plots


@pytest.mark.parametrize("command", ["train", "finetune", "compress"])
def test_the_history_has_a_line_an_epoch(dense, texts, command):
    """Each is the JSON object of that epoch in the result, the state before training among them."""
    history = dense.with_name("history.jsonl")
    found = result(*ways(dense, texts, dense.with_stem("out"))[command], "--history", history)
    epochs = (found["tuned"] if command == "compress" else found)["epochs"]
    assert [json.loads(line) for line in history.read_text().splitlines()] == epochs
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2, 3]
    assert epochs[0]["loss"] is epochs[0]["learning_rate"] is None


def test_the_plot_is_a_picture_of_the_run(dense, texts):
    """A PNG with lines of three colours on white; another run is another picture, the same run the same."""
    pictures = []
    for i, more in enumerate(((), (), ("--epochs", "5"))):
        path = dense.with_name(f"{i}.png")
        succeed(*ways(dense, texts, dense.with_stem(f"out{i}"))["finetune"], "--plot", path, *more)
        pictures.append(imread(path))
    first = pictures[0]
    assert first.shape[0] > 400
    assert first.shape[1] > 800
    pixels = (first.reshape(-1, first.shape[-1])[:, :3] * 255).round().astype(int)
    white, blue, orange = (255, 255, 255), (31, 119, 180), (255, 127, 14)
    assert {white, blue, orange} <= {*map(tuple, pixels)}
    assert (first == pictures[1]).all()
    assert (first != pictures[2]).any()


def test_the_plot_shows_each_figure(tmp_path):
    """Another loss, dev loss or dev accuracy is another picture; other seconds are not."""
    start, end = Epoch(0, None, 1.0, 0.3, None, 0.1), Epoch(1, 0.9, 0.8, 0.6, 0.01, 0.1)
    plot_history((start, end), tmp_path / "run.png")
    first, changed = imread(tmp_path / "run.png"), set()
    for name in ("loss", "dev_loss", "dev_accuracy", "seconds"):
        plot_history((start, replace(end, **{name: 0.5})), tmp_path / "run.png")
        if (imread(tmp_path / "run.png") != first).any():
            changed.add(name)
    assert changed == {"loss", "dev_loss", "dev_accuracy"}


@pytest.mark.parametrize(("suffix", "begins"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plots_can_be_vectors(dense, texts, suffix, begins):
    """SVG and PDF by the suffix."""
    path = dense.with_name(f"plot{suffix}")
    succeed(*ways(dense, texts, dense.with_stem("out"))["finetune"], "--plot", path)
    assert path.read_bytes().startswith(begins)


def test_a_plot_without_matplotlib_is_refused_before_the_work(monkeypatch, dense, texts):
    """The remedy names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    args = (*ways(dense, texts, dense.with_stem("out"))["finetune"], "--plot", dense.with_name("p.png"))
    assert_refused(dense.parent, *args, code=2, says="pip install 'embcompress[plot]'")
