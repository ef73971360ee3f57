"""Standard output or standard error on a full disk: what stands is said, and nothing ends in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import table
from safetensors.numpy import save_file

import embcompress

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")

NO_ROOM = "Error: stdout: No space left on device"


def run(folder, *arguments, out=None, err=None):
    """The command line in a process of its own; exit code, stdout and stderr, empty where it is full."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "embcompress", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(embcompress.__file__).parents[1])},
            stdout=full if out == "full" else subprocess.PIPE,
            stderr=full if err == "full" else subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(full)
    return done.returncode, done.stdout or "", done.stderr or ""


@pytest.fixture
def folder(tmp_path):
    save_file({"embedding.weight": table()}, tmp_path / "m.safetensors")
    return tmp_path


FACTORIZE = ("factorize", "m.safetensors", "--rank", 4, "-o", "small.safetensors")


@pytest.mark.parametrize("arguments", [("--help",), ("factorize", "--help"), ("--version",)], ids=" ".join)
def test_row_64_help(tmp_path, arguments):
    """One line that names the stream."""
    assert run(tmp_path, *arguments, out="full") == (1, "", f"{NO_ROOM}\n")
    assert run(tmp_path, *arguments, out="full", err="full") == (1, "", "")


@pytest.mark.parametrize("more", [(), ("--json",), ("--quiet", "--json")], ids=" ".join)
def test_row_64_a_result_that_cannot_be_shown(folder, more):
    """The output stands, and the last line says so."""
    code, _, errors = run(folder, *FACTORIZE, *more, out="full")
    assert code == 1
    said = f"{NO_ROOM}, so the result is not shown; the output is complete: small.safetensors"
    assert errors.splitlines()[-1] == said
    assert "Traceback" not in errors
    assert (folder / "small.safetensors").exists()


def test_row_64_nothing_stands_after_a_dry_run(folder):
    """Nor is it said."""
    code, _, errors = run(folder, *FACTORIZE, "--dry-run", "-q", "--json", out="full")
    assert (code, errors) == (1, f"{NO_ROOM}, so the result is not shown\n")
    assert not (folder / "small.safetensors").exists()


def test_row_64_notes_that_cannot_be_shown(folder):
    """Progress and notes are not worth the output: it is written, and its result is shown."""
    code, result, _ = run(folder, *FACTORIZE, "-v", err="full")
    assert code == 0
    assert "wrote small.safetensors" in result
    code, result, _ = run(folder, *FACTORIZE, err="full")
    assert code == 2
    assert result.startswith("Error: small.safetensors: exists already")  # on the stream that works
    assert run(folder, *FACTORIZE, "--nonsense", err="full")[0] == 2


def test_row_64_neither_stream_works(folder):
    """The exit code is all that can be said."""
    assert run(folder, *FACTORIZE, out="full", err="full") == (1, "", "")
    assert (folder / "small.safetensors").exists()


def test_a_reader_that_is_gone(folder):
    """A closed pipe ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "embcompress", "report", folder / "m.safetensors"],
        env={**os.environ, "PYTHONPATH": str(Path(embcompress.__file__).parents[1])},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
