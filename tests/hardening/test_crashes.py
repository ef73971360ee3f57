"""Row 32 of BAD_INPUTS: a full disk, a failing one, a kill or Ctrl-C at any operation on files.

Whatever happens, the input is intact, the output is absent, old or complete, and the next run ends as
if nothing had been and leaves nothing beside its output. ``make test-slow`` strikes at every operation,
``make test`` at some.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import distilling
from helpers.checkpoints import assert_one_line, contents, directory, succeed, table
from helpers.crashing import DEEDS, listing, strikes
from helpers.quick import quick
from helpers.weather import STILL, train, weather
from safetensors.numpy import save_file

TABLE = "embedding.weight"
SMALL = ("--arch", "dan", "--hidden", "24", "--dimension", "8", "--dropout", "0.1")
RECIPE = ("--epochs", "2", "--batch-size", "10", "--learning-rate", "0.03", "--schedule", "constant")


# ---- commands: what is run, its target's name, and what may stand there already


def factorize_file(folder, suffix=".safetensors"):
    path = folder / f"model{suffix}"
    state = {TABLE: table(), "rest": table(20, 20, seed=1)}
    if suffix == ".pt":
        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    else:
        save_file(state, path)
    return ("factorize", path, "--rank", 4), f"output{suffix}"


def factorize_torch(folder):
    return factorize_file(folder, ".pt")


def factorize_shards(folder):
    shards = [{TABLE: table(), "norm": table(1, 16)[0]}, {"rest": table(20, 20, seed=1)}]
    path = directory(folder / "model", shards, vocab_size=64)
    return ("factorize", path, "--rank", 4), "output"


def expand_shards(folder):
    command, _ = factorize_shards(folder)
    succeed(*command, "-o", folder / "small")
    return ("expand", folder / "small"), "output"


def factorize_vectors(folder):
    path = folder / "vectors.vec"
    rows = "".join(f"t{i} {' '.join(map(str, row))}\n" for i, row in enumerate(table()))
    path.write_text(f"64 16\n{rows}")
    return ("factorize", path, "--rank", 4), "output.safetensors"


def expand_vectors(folder):
    command, _ = factorize_vectors(folder)
    succeed(*command, "-o", folder / "small.safetensors")
    return ("expand", folder / "small.safetensors"), "output.vec"


def train_classifier(folder):
    return ("train", weather(folder / "texts.csv"), *SMALL, *RECIPE), "output.pt"


def finetune_classifier(folder):
    dense = train(folder / "dense.pt", weather(folder / "texts.csv"), *STILL)
    succeed("factorize", dense, "--rank", 3, "-o", folder / "small.pt")
    return ("finetune", folder / "small.pt", folder / "texts.csv", *RECIPE), "output.pt"


def compress_classifier(folder):
    dense = train(folder / "dense.pt", weather(folder / "texts.csv"), *STILL)
    return ("compress", dense, folder / "texts.csv", "--rank", 3, *RECIPE), "output.pt"


def distil_directory(folder):
    texts = (f"w{i} w{i + 1} w{i + 2}" for i in range(70))
    return distilling.command(folder, texts, "--epochs", "2", "-q"), "output"


COMMANDS = {
    made.__name__: made
    for made in (
        *(factorize_file, factorize_torch, factorize_shards, expand_shards),
        *(factorize_vectors, expand_vectors),
        *(train_classifier, finetune_classifier, compress_classifier, distil_directory),
    )
}


def older(folder, name, command):
    """An earlier output, which differs from what ``command`` writes."""
    old = folder / f"old-{name}"
    if command[0] == "expand" and (folder / "model").is_dir():
        return shutil.copytree(folder / "model", old)
    if command[0] == "expand":
        return shutil.copy(folder / "vectors.vec", old)
    other = [3 if part == 4 else part for part in command]
    if command[0] in ("train", "finetune", "compress", "distil"):
        other = [*command, "--seed", "7"]
    succeed(*other, "-o", old)
    return old


def check(tmp_path, made, deeds, *, over, stride=1):
    """Strike a command; return its exit codes, each with the names of the files that were left."""
    (tmp_path / "place").mkdir()
    command, name = COMMANDS[made](tmp_path)
    target = tmp_path / "place" / name
    old = older(tmp_path, name, command) if over else None
    inputs = contents(tmp_path)
    before = {path.removeprefix("old-"): sha for path, sha in hashes(old).items()} if old else {}
    whole, pairs = strikes(deeds, command, target, old=old, stride=stride)
    assert whole.code == 0, whole.errors
    done = whole.files
    assert done != before
    ends = set()
    for moment, (struck, mended) in enumerate(pairs):
        where = f"struck at operation {moment * stride}: {struck.errors}"
        mine = {path: sha for path, sha in struck.files.items() if path.split("/")[0] == name}
        aside = {
            path.partition("/replaced/")[2]: sha for path, sha in struck.files.items() if "/replaced/" in path
        }
        if not mine and aside and struck.deed == "SIGKILL":
            assert {f"{name}/{path}": sha for path, sha in aside.items()} == before, where
            ends.add((struck.code, "aside"))
        else:
            assert mine in ({}, before, done), where
            assert mine or not before, where
            ends.add((struck.code, "new" if mine == done else "old" if mine else "none"))
        assert_ended_well(struck, name, where)
        assert (mended.code, mended.files) == (0, done), f"{where}\n{mended.errors}"
    assert not pairs[-1][0].struck
    assert {path: sha for path, sha in contents(tmp_path).items() if path in inputs} == inputs
    return ends, len(pairs) - 1


def assert_ended_well(run, name, where):
    """The exit code is the documented one, and unless the command was killed no file is left behind."""
    stem = name.partition(".")[0]
    kept = {f"{name}.resume", f"{stem}.interrupted{Path(name).suffix}"}
    codes = {"SIGKILL": {-signal.SIGKILL, 0}, "SIGINT": {130, 0}}.get(run.deed, {1, 0})
    assert run.code in codes, where
    if run.deed in ("ENOSPC", "EIO") and run.code:
        last = run.errors.splitlines()[-1]
        assert last.startswith("Error: "), where
        assert os.strerror({"ENOSPC": 28, "EIO": 5}[run.deed]) in last, where
        assert "Traceback" not in run.errors
    if run.deed == "SIGINT":
        beside = {path.split("/")[0] for path in run.files} - {name}
        assert beside <= kept, where


def hashes(path):
    return {p: sha for p, sha in listing(path.parent).items() if p.split("/")[0] == path.name}


QUICK = {"factorize_file": 1, "factorize_torch": 2, "factorize_shards": 3, "expand_shards": 3,
         "expand_vectors": 1, "train_classifier": 11}  # fmt: skip
"""How far apart the strikes of ``make test`` are: about a dozen for each command."""


@pytest.mark.parametrize("made", quick(QUICK.keys(), "factorize_file", "train_classifier"))
def test_row_32_now_and_then(tmp_path, made):
    """Struck at some operations, over an older output, by each fault in turn."""
    ends, count = check(tmp_path, made, DEEDS, over=True, stride=QUICK[made])
    print(f"{made}: {count} operations, {sorted(ends)}")
    assert count >= 8
    assert {code for code, _ in ends} >= {-signal.SIGKILL, 1, 130}
    assert {end for _, end in ends} >= {"old", "new"}


STRIDES = {"compress_classifier": 7, "distil_directory": 97}
"""How far apart those of ``make test-slow`` are where a run takes seconds; at every operation elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("made", COMMANDS)
@pytest.mark.parametrize("over", [False, True], ids=["new", "over"])
@pytest.mark.parametrize("deed", DEEDS)
def test_row_32_anywhere(tmp_path, made, over, deed):
    """Struck at every operation."""
    ends, count = check(tmp_path, made, [deed], over=over, stride=STRIDES.get(made, 1))
    print(f"\n{made} {deed} {'over' if over else 'new'}: {count} operations, {sorted(ends)}")
    assert {end for _, end in ends} >= {"new", "old" if over else "none"}


FULL = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
place, size, *command = sys.argv[1:]
if libc.unshare(0x00020000) or libc.mount(b"none", place.encode(), b"tmpfs", 0, f"size={size}".encode()):
    sys.exit(77)
done = subprocess.run([sys.executable, "-m", "embcompress", *command], capture_output=True, text=True)
print(done.returncode, sorted(os.listdir(place)))
sys.stderr.write(done.stderr)
"""


FILLED = (("factorize_file", "4k"), ("factorize_torch", "8k"), ("factorize_shards", "16k"))
EVERY = [*itertools.product(*map(dict.fromkeys, zip(*FILLED, strict=True)))]


@pytest.mark.parametrize(
    ("made", "size"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in FILLED)) for case in EVERY],
)
def test_row_31_a_disk_that_is_really_full(tmp_path, made, size):
    """On a file system with few free pages nothing is left, whether space is checked first or runs out."""
    command, name = COMMANDS[made](tmp_path)
    (tmp_path / "place").mkdir()
    before = contents(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FULL,
            str(tmp_path / "place"),
            size,
            *map(str, command),
            "-o",
            tmp_path / "place" / name,
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("mounting needs root")
    if done.stdout.startswith("0"):
        assert size != "4k"
        assert done.stdout.strip() == f"0 ['{name}']"
    else:
        assert done.stdout.strip() == "1 []", done.stderr
        assert_one_line(done.stderr, name)
    assert contents(tmp_path) == before
