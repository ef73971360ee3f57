"""Outputs are as private as their inputs, whatever writes them."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from helpers.checkpoints import directory, succeed, table
from helpers.weather import STILL, train, weather
from safetensors.numpy import save_file

from embcompress.storage.permissions import permissions_of, restrict

TABLE = "embedding.weight"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def safetensors_file(folder):
    save_file({TABLE: table()}, folder / "m.safetensors")
    return folder / "m.safetensors"


def torch_file(folder):
    torch.save({TABLE: torch.from_numpy(table())}, folder / "m.pt")
    return folder / "m.pt"


def word_vectors(folder):
    rows = "".join(f"t{i} {' '.join(map(str, row))}\n" for i, row in enumerate(table()))
    (folder / "m.vec").write_text(f"64 16\n{rows}")
    return folder / "m.vec"


@pytest.mark.parametrize("make", [safetensors_file, torch_file, word_vectors])
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o644, 0o666, 0o444])
def test_files(tmp_path, make, bits):
    """The bits of the input under the umask; the owner may write."""
    path = make(tmp_path)
    path.chmod(bits)
    small = tmp_path / f"small{path.suffix.replace('.vec', '.safetensors')}"
    dense = tmp_path / f"dense{path.suffix}"
    succeed("factorize", path, "--rank", 4, "-o", small)
    succeed("expand", small, "-o", dense)
    wanted = (bits | 0o200) & ~0o022
    assert (mode(small), mode(dense)) == (wanted, wanted)


def test_the_umask_applies_too(tmp_path):
    """A user who shares nothing shares no output of a shared input."""
    path = safetensors_file(tmp_path)
    path.chmod(0o644)
    os.umask(0o077)
    succeed("factorize", path, "--rank", 4, "-o", tmp_path / "small.safetensors")
    assert mode(tmp_path / "small.safetensors") == 0o600


def test_onnx_with_its_data(tmp_path):
    """The data file too, and both as the more private of the input's two files."""
    pytest.importorskip("onnx")
    from helpers.onnx_models import model, outside

    path = outside(tmp_path / "m.onnx", model())
    (data,) = (file for file in tmp_path.iterdir() if file != path)
    data.chmod(0o600)
    succeed("factorize", path, "--rank", 4, "-o", tmp_path / "s.onnx")
    assert (mode(tmp_path / "s.onnx"), mode(tmp_path / "s.onnx.data")) == (0o600, 0o600)


def test_a_directory(tmp_path):
    """Each file as the one of its name, new ones as the weights, and folders too."""
    shards = [{TABLE: table()}, {"rest": table(20, 20, seed=1)}]
    path = directory(tmp_path / "model", shards, vocab_size=64)
    (path / "deep").mkdir()
    (path / "deep/merges.txt").write_text("x")
    for name in path.glob("*.safetensors"):
        name.chmod(0o600)
    (path / "config.json").chmod(0o640)
    (path / "deep").chmod(0o700)
    path.chmod(0o750)
    small = tmp_path / "small"
    succeed("factorize", path, "--rank", 4, "-o", small)
    found = {str(p.relative_to(small)): mode(p) for p in small.rglob("*")}
    weights = {p.name: 0o600 for p in path.glob("*.safetensors")}
    assert found == {
        **weights,
        "README.md": 0o600,
        "config.json": 0o640,
        "deep": 0o700,
        "deep/merges.txt": 0o644,
        "model.safetensors.index.json": 0o644,
        "tokenizer.json": 0o644,
    }
    assert mode(small) == 0o750


def test_training_runs(tmp_path, monkeypatch):
    """The output of a run, its state and its best weights so far."""
    from embcompress.runs import unfinished
    from embcompress.training import snapshots

    dense = train(tmp_path / "dense.pt", weather(tmp_path / "texts.csv"), *STILL)
    dense.chmod(0o600)
    modes = []
    monkeypatch.setattr(snapshots, "_PAUSE", 0.0)
    monkeypatch.setattr(snapshots, "_TIMES", 0.0)
    forget = unfinished.discard

    def look(path):
        modes.extend([mode(path)] if path.exists() else [])
        forget(path)

    monkeypatch.setattr(unfinished, "discard", look)
    succeed("finetune", dense, tmp_path / "texts.csv", "-o", tmp_path / "tuned.pt", "--epochs", "2")
    assert modes == [0o600]
    assert mode(tmp_path / "tuned.pt") == 0o600


def test_what_is_being_written_is_private(tmp_path):
    """Nobody else looks into a staging directory."""
    from embcompress.storage.staging import staged

    with staged(tmp_path / "small.pt", force=False) as place:
        place.write_bytes(b"x")
        assert mode(place.parent) == 0o700


def test_bits_are_only_taken_away(tmp_path):
    """The mask never adds any but what the owner needs to have."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o640)
    restrict(path, 0o777)
    assert mode(path) == 0o640
    restrict(path, 0o004)
    assert mode(path) == 0o600
    assert permissions_of([]) == 0o777
    assert permissions_of([path]) == 0o600
