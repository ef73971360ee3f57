"""Row 32 of BAD_INPUTS, from below: the disk under the input fails at each read.

``test_crashes.py`` makes Python's calls fail. Here the C library's do, so that reads by zipfile, NumPy, torch
and safetensors fail too. One line names the file that cannot be read, and no output is left.
"""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch
from helpers.checkpoints import directory, succeed, table
from helpers.failing_reads import library, runs
from safetensors.numpy import save_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("gcc") is None, reason="needs a C compiler on Linux"
    ),
]
TABLE = "embedding.weight"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory):
    return library(tmp_path_factory.mktemp("library"))


def safetensors_file(folder):
    save_file({TABLE: table(), "rest": table(20, 20, seed=1)}, folder / "model.safetensors")
    return "model.safetensors"


def torch_file(folder):
    torch.save({TABLE: torch.from_numpy(table()), "rest": torch.ones(20, 20)}, folder / "model.pt")
    return "model.pt"


def legacy_file(folder):
    state = {TABLE: torch.from_numpy(table())}
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)
    return "model.pt"


def shards(folder):
    directory(folder / "model", [{TABLE: table()}, {"rest": table(20, 20, seed=1)}], vocab_size=64)
    return "model"


def vectors(folder):
    lines = [f"word{i} " + " ".join(f"{x:.4f}" for x in row) for i, row in enumerate(table())]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    return "vectors.txt"


def counts(folder):
    np.save(folder / "counts.npy", np.arange(64))
    return safetensors_file(folder)


@pytest.mark.parametrize("make", [safetensors_file, torch_file, legacy_file, shards, vectors, counts])
@pytest.mark.parametrize("command", ["report", "factorize", "expand", "verify"])
def test_reads_that_fail(preloaded, tmp_path, make, command):
    """Every run but the last has one line, which names a file of the input, and leaves nothing."""
    folder = tmp_path / "input"
    folder.mkdir()
    path = folder / make(folder)
    if command in ("expand", "verify"):
        suffix = ".safetensors" if make is vectors else path.suffix
        succeed("factorize", path, "--ratio", 0.4, "-o", folder / f"small{suffix}")
        path = folder / f"small{suffix}"
    arguments = [command, path]
    if command == "factorize":
        arguments += ["--ratio", 0.4]
    if command == "factorize" and make is counts:
        arguments += ["--weights", folder / "counts.npy"]
    output = tmp_path / "outputs" / "output"
    if make is vectors:
        output = output.with_suffix(".txt" if command == "expand" else ".safetensors")
    elif make is not shards:
        output = output.with_suffix(path.suffix)
    output.parent.mkdir()
    *failed, whole = runs(
        preloaded, folder, arguments, output if command in ("factorize", "expand") else None
    )
    assert whole[0] == 0, whole
    assert len(failed) >= 4
    for code, errors, stands in failed:
        *notes, last = errors.splitlines()
        assert code == 1, errors
        assert not stands
        assert last.startswith(f"Error: {folder}"), errors
        assert last.endswith(": Input/output error"), errors
        assert all(note.startswith("note: ") for note in notes), errors
    assert {*output.parent.iterdir()} <= {output}
