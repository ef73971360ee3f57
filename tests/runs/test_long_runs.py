"""Long runs that are killed at random moments end with the same result, and memory does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import distilling
from helpers.checkpoints import contents, succeed
from helpers.sequence_models import bert as labelling_bert
from helpers.sequence_models import saved
from helpers.weather import STILL, train, weather

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path

import torch
import transformers

import embcompress.reports.comparison_terminal, embcompress.reports.learning_terminal
import embcompress.workflows.distil, embcompress.workflows.finetune
from embcompress.cli import cli
from embcompress.training import snapshots

command, target, kills, seed = json.loads(sys.argv[1])
snapshots._PAUSE = snapshots._TIMES = 0.0  # a state is saved whenever it may be
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # torch imports much when the first one is made
state = Path(target + ".resume")


def start():
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        try:
            cli([*command, "-o", target, "-q", *["--resume"] * state.exists()])
        except SystemExit as end:
            os._exit(end.code or 0)
        finally:
            os._exit(99)
    return child


rng = random.Random(seed)
began = time.monotonic()
whole = os.waitpid(start(), 0)[1]  # how long a run takes that is not killed
took = time.monotonic() - began
os.rename(target, target + "-whole")
killed = resumed = 0
longest = took
while killed < kills:
    child = start()
    resumed += state.exists()
    time.sleep(rng.uniform(0.05, longest))
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    killed += code != 0
    if os.path.exists(target):  # it was quicker, or killed when it was done: begin again, and kill earlier
        os.rename(target, f"{target}-{killed}-{len(os.listdir(state.parent))}")
        longest = max(longest * 0.8, took / 5)
code = os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1])
print(json.dumps([whole, code, killed, resumed]))
"""


def finetune_file(folder):
    dense = train(folder / "dense.pt", weather(folder / "texts.csv", 300), *STILL, arch="lstm")
    succeed("factorize", dense, "--rank", 3, "-o", folder / "small.pt")
    return (
        "finetune",
        folder / "small.pt",
        folder / "texts.csv",
        "--epochs",
        "12",
        "--batch-size",
        "5",
    ), ".pt"


def finetune_directory(folder):
    saved(folder / "model", labelling_bert())
    succeed("factorize", folder / "model", "--rank", 6, "-o", folder / "small")
    options = ("--epochs", "10", "--batch-size", "8", "--learning-rate", "0.001")
    return ("finetune", folder / "small", weather(folder / "texts.csv", 240), *options), ""


def distil(folder):
    texts = (f"w{i % 90} w{i // 90} w{i % 7}" for i in range(1200))
    return distilling.command(folder, texts, "--epochs", "4"), ""


COMMANDS = {made.__name__: made for made in (finetune_file, finetune_directory, distil)}


@pytest.mark.parametrize("made", COMMANDS)
def test_killed_twenty_times_it_ends_the_same(tmp_path, made):
    """Killed after random times and resumed, a run writes the same bytes as one that was not killed."""
    command, suffix = COMMANDS[made](tmp_path)
    (tmp_path / "place").mkdir()
    target = tmp_path / "place" / f"output{suffix}"
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps([[*map(str, command)], str(target), 20, 0])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, code, killed, resumed = json.loads(done.stdout)
    assert (whole, code, killed) == (0, 0, 20)
    assert resumed > 5, "most kills must come where there is something to go on from"
    assert {path: sha for path, sha in contents(tmp_path).items() if path in before} == before
    ends = [path for path in (tmp_path / "place").iterdir() if path.name.startswith("output")]
    assert len(ends) > 1
    expected = whole_of(tmp_path / "place" / f"output{suffix}-whole")
    assert all(whole_of(path) == expected for path in ends), "a run ended otherwise"
    assert {path.name.partition("-")[0] for path in (tmp_path / "place").iterdir()} == {target.name}


def whole_of(path):
    return contents(path) if path.is_dir() else path.read_bytes()


GROWTH = """
import json, os, sys
import embcompress
from embcompress import DistilRecipe, Recipe, Session
from embcompress.training.records import Watcher
from embcompress.training.recovery import DistilWatcher

what, arguments = json.loads(sys.argv[1])
sizes = []


def step(*_):
    with open("/proc/self/statm") as file:
        sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


kind = DistilWatcher if what == "distil" else Watcher
watcher = type("Log", (kind,), {"step": step})()
if what == "distil":
    recipe = DistilRecipe(epochs=2, batch_size=16, learning_rate=1e-3)
    embcompress.distil(*arguments[:3], output=arguments[3], recipe=recipe, watcher=watcher)
else:
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=1e-3)
    embcompress.finetune(*arguments[:2], output=arguments[2], recipe=recipe, session=Session(watcher=watcher))
print(json.dumps(sizes))
"""


@pytest.mark.parametrize("what", ["finetune", "distil"])
def test_memory_does_not_grow(tmp_path, what):
    """Memory grows by no more than a few pages after the first quarter of the steps."""
    if what == "distil":
        distil(tmp_path)
        texts = [f"w{i % 90} w{i // 90} w{i % 7}" for i in range(3000)]
        (tmp_path / "texts.txt").write_text("\n".join(texts))
        arguments = [tmp_path / name for name in ("small", "model", "texts.txt", "output")]
    else:
        finetune_directory(tmp_path)
        arguments = [tmp_path / "small", weather(tmp_path / "texts.csv", 3000), tmp_path / "output"]
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, json.dumps([what, [*map(str, arguments)]])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert len(sizes) > 300
    early, late = max(sizes[: len(sizes) // 4]), max(sizes[-len(sizes) // 4 :])
    assert late - early < 16 << 20, f"{early:,} bytes early, {late:,} late"
