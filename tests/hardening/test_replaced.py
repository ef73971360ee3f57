"""An input that another file replaces, or that is written to, while it is read."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from helpers.checkpoints import directory, table
from safetensors.numpy import save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.compression.sources import check_unchanged, hashed, stamps


def file(folder):
    save_file({"embedding.weight": table()}, folder / "m.safetensors")
    return folder / "m.safetensors", folder / "m.safetensors"


def torch_file(folder):
    torch.save({"embedding.weight": torch.from_numpy(table())}, folder / "m.pt")
    return folder / "m.pt", folder / "m.pt"


def model(folder):
    path = directory(folder / "model", [{"embedding.weight": table()}], vocab_size=64)
    return path, path / "model.safetensors"


def replace(weights):
    """Another file of the same size and times takes the name."""
    data, status = bytearray(weights.read_bytes()), weights.stat()
    data[-1] ^= 1
    other = weights.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(weights)


def rewrite(weights):
    """One byte is changed in place, and the times are put back."""
    status = weights.stat()
    with weights.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("make", [file, torch_file, model])
def test_row_63_what_is_hashed_is_what_was_read(tmp_path, make):
    """The name may lead elsewhere by then; that is noticed at the end."""
    path, weights = make(tmp_path)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with open_checkpoint(path) as source:
        replace(weights)
        before = stamps(source)
        with hashed(source) as digests:
            assert digests.result() == {weights.name: digest}
        with pytest.raises(embcompress.InputError, match="changed while it was read"):
            check_unchanged(source, before)


@pytest.mark.parametrize("change", [replace, rewrite])
@pytest.mark.parametrize("command", ["factorize", "expand"])
def test_row_63_size_and_time_may_be_the_same(tmp_path, change, command):
    """Nothing is published of a file that changed between its first and its last byte."""
    path, _ = file(tmp_path)
    small = embcompress.factorize(path, rank=4, output=tmp_path / "small.safetensors").output
    asked = []

    def progress(*_):
        if not asked:
            asked.append(change(path if command == "factorize" else small))

    def work():
        if command == "factorize":
            embcompress.factorize(path, rank=3, output=tmp_path / "out", progress=progress)
        else:
            embcompress.expand(small, output=tmp_path / "out", progress=progress)

    with pytest.raises(embcompress.InputError, match="changed while it was read"):
        work()
    assert asked
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "small.safetensors"}
