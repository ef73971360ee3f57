"""Training is stopped, killed and resumed with real signals: row 32 for long runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import assert_one_line, assert_refused, contents, run, succeed
from helpers.quick import quick
from helpers.weather import STILL, result, same, weather

import embcompress

ROOT = Path(embcompress.__file__).parents[1]
COMMANDS = ("train", "finetune", "compress")

# ---- Ctrl-C in a process of its own

OWN = """
import os
import signal
import time
from pathlib import Path

from torch import nn

class Waiting(nn.Module):
    '''Bag of words with dropout; its eighth step waits for a file named go, and heeds one named strike.'''

    def __init__(self, tokens, labels, padding):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 8, padding_idx=padding)
        self.drop = nn.Dropout(0.3)
        self.output = nn.Linear(8, labels)
        nn.init.zeros_(self.output.weight)  # whatever is learned is better than this start
        self.steps = 0

    def forward(self, tokens, lengths):
        self.steps += self.training
        while self.training and self.steps == 8 and not Path("go").exists():
            Path("waiting").touch()
            time.sleep(0.01)
        if self.training and self.steps == 8 and Path("strike").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return self.output(self.drop(self.embedding(tokens)).sum(1) / lengths[:, None])
"""
MODEL = ("--model", "waits_in_training:Waiting")
RECIPE = (
    *("--epochs", "4", "--batch-size", "10", "--learning-rate", "0.03", "--schedule", "constant"),
    *("--seed", "5"),
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: texts, and a module that waits until the file ``go`` exists."""
    weather(tmp_path / "train.csv")
    weather(tmp_path / "dev.csv", 18, 1)
    (tmp_path / "waits_in_training.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "waits_in_training", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def command_line(command, output, *more):
    """A run that lasts four epochs of six steps."""
    positional = {"train": ("train.csv",)}.get(command, ("dense.pt", "train.csv"))
    target = ("--rank", "6") if command == "compress" else ()
    return (command, *positional, "--dev", "dev.csv", "-o", output, *target, *MODEL, *RECIPE, *more)


def waiting_run(place, *args):
    """A process that has reached its eighth step and waits there."""
    threads = str(torch.get_num_threads())
    environment = {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "embcompress", *map(str, args)],
        env={**os.environ, **environment},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    came_to(place / "waiting", process)
    return process


def came_to(sign, process):
    """Wait for a file that the process makes."""
    while not sign.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def ended(process, place):
    """Let it go on; its exit code, stdout and stderr."""
    (place / "go").touch()
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def timeless(history):
    """Lines of a history without the seconds they took."""
    return [{**json.loads(line), "seconds": 0} for line in history.read_text().splitlines()]


@pytest.mark.parametrize("command", quick(COMMANDS, "train"))
def test_ctrl_c_and_resume(place, command):
    """Exit code 130 and a kept state; only the same command resumes it, exact to the bit."""
    (place / "go").touch()
    if command != "train":
        succeed(*command_line("train", "dense.pt"), *STILL, "-q")
    succeed(*command_line(command, "whole.pt", "--history", "whole.jsonl"), "-q")
    (place / "go").unlink()
    given = {path.name for path in place.iterdir()}

    args = command_line(command, "model.pt", "--history", "model.jsonl")
    process = waiting_run(place, *args)
    other = run(*command_line(command, "model.pt"), "-q", "--batch-size", "60")  # too few steps to wait
    assert other.exit_code == 1
    assert_one_line(other.stderr, "another run is writing the same output; wait for it")
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process, place)
    assert (code, out) == (130, "")
    *epochs, last = err.splitlines()
    assert [line[:8] for line in epochs] == ["epoch  0", "epoch  1"]
    says = re.fullmatch(
        r"Error: interrupted in epoch 2 of 4; the best so far \(epoch (\d), dev accuracy ([\d.]+)%\) is "
        r"model\.interrupted\.pt; go on with the same command and --resume",
        last,
    )
    assert says, last
    new = {path.name for path in place.iterdir()} - given - {"go", "waiting"}
    assert new == {"model.interrupted.pt", "model.pt.resume", "model.jsonl"}
    assert len(timeless(place / "model.jsonl")) == 2

    kept = result("evaluate", "model.interrupted.pt", "dev.csv", *MODEL)
    assert f"{kept['accuracy']:.2%}" == f"{says[2]}%"
    quietly = (*command_line(command, "model.pt"), "-q")
    unfinished = "an unfinished run waits in model.pt.resume; go on with --resume"
    assert_refused(place, *quietly, code=2, says=unfinished)
    for option, value, named in (("--seed", "6", "seed (5, now 6)"), ("--epochs", "9", "epochs (4, now 9)")):
        assert_refused(place, *quietly, "--resume", option, value, code=2, says=named)

    succeed(*args, "--resume", "-q")
    assert same(place / "model.pt", place / "whole.pt")
    assert timeless(place / "model.jsonl") == timeless(place / "whole.jsonl")
    new = {path.name for path in place.iterdir()} - given - {"go", "waiting"}
    assert new == {"model.pt", "model.jsonl"}


def test_a_second_ctrl_c_stops_at_once(place):
    """It ends in the middle of a step; nothing is kept, and the message says so."""
    before = contents(place)
    process = waiting_run(place, *command_line("train", "model.pt"))
    process.send_signal(signal.SIGINT)
    (place / "waiting").unlink()
    came_to(place / "waiting", process)  # it went on, so the first one was only noted
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Error: interrupted; no unfinished output was left"
    (place / "waiting").unlink()
    assert contents(place) == before


def test_force_begins_anew(place):
    """Files of an interrupted run are not used, and do not prevent a run from finishing."""
    (place / "go").touch()
    succeed(*command_line("train", "whole.pt"), "-q")
    (place / "model.pt.resume").write_bytes(b"of another run")
    succeed(*command_line("train", "model.pt"), "-q", "--force")
    assert same(place / "model.pt", place / "whole.pt")
    assert not (place / "model.pt.resume").exists()


def test_a_run_that_was_begun_anew_by_mistake_takes_nothing(place):
    """With --force, what an earlier run kept is renamed, and stays until a run is finished."""
    (place / "go").touch()
    succeed(*command_line("train", "whole.pt"), "-q")
    given = {path.name for path in place.iterdir()}
    (place / "strike").touch()
    kept = {}
    for more in ((), ("--force",)):
        assert run(*command_line("train", "model.pt"), "-q", *more).exit_code == 130
        kept[bool(more)] = {n: sha for n, sha in contents(place).items() if n.startswith("model.")}
    (place / "strike").unlink()
    assert {*kept[False]} == {"model.interrupted.pt", "model.pt.resume"}
    assert {*kept[False].values()} <= {*kept[True].values()}
    assert {*kept[False]} < {*kept[True]}
    succeed(*command_line("train", "model.pt"), "-q", "--resume")
    assert same(place / "model.pt", place / "whole.pt")
    assert {path.name for path in place.iterdir()} == {*given, "model.pt"}


def test_a_state_that_cannot_be_read_is_refused(place):
    """Exit code 3, and the remedy; the file stays."""
    (place / "model.pt.resume").write_bytes(b"of another run")
    args = (*command_line("train", "model.pt"), "-q", "--resume")
    assert_refused(place, *args, code=3, says="model.pt.resume: cannot be read")


def test_force_takes_the_kept_weights_away(place):
    """Next to a finished output they would look newer than it."""
    (place / "go").touch()
    (place / "model.pt.resume").write_bytes(b"of another run")
    (place / "model.interrupted.pt").write_bytes(b"of another run")
    succeed(*command_line("train", "model.pt"), "-q", "--force")
    assert not (place / "model.interrupted.pt").exists()


def test_leftovers_of_a_state_cut_short_are_swept(place):
    """A run killed while it saved its state leaves half of it in a staging place."""
    (place / "go").touch()
    for name in ("model.pt", "model.pt.resume", "model.interrupted.pt"):
        (place / f".{name}.embcompress").mkdir()
        (place / f".{name}.embcompress" / name).write_bytes(b"half")
    succeed(*command_line("train", "model.pt"), "-q")
    assert [path for path in place.iterdir() if path.name.endswith(".embcompress")] == []


@pytest.mark.parametrize("name", ["model.interrupted.pt", "model.interrupted.old.pt", "model.pt.resume"])
def test_row_62_what_a_run_keeps_takes_nobodys_place(place, name):
    """A folder of the user's is neither replaced nor removed, nor is an input of that name."""
    (place / name).mkdir()
    (place / name / "first.jpg").write_bytes(b"jpg")
    result = run(*command_line("train", "model.pt"), "-q", "--force")
    assert result.exit_code == 2
    assert f"{name}: is a directory, the output would be a file" in result.stderr
    assert (place / name / "first.jpg").exists()
