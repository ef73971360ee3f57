"""Torch files that are damaged, hostile or something else: each gives one line and exit code 3."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused
from torch import nn

from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.errors import InputError


def saved(path, value, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def rewritten(source, target):
    with TorchFile.open(source) as file:
        file.write(target, Edit(frozenset(), ()), None)


def model():
    return nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 3))


def refused(path) -> str:
    """The error of a refused file, which the command line shows too; nothing is changed or left behind."""
    before = path.read_bytes()
    assert TorchFile.recognizes(path)
    with pytest.raises(InputError) as caught:
        TorchFile.open(path).check_integrity()
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    said = str(caught.value)
    output = path.with_name("small.pt")
    assert_refused(path.parent, "factorize", path, "--rank", 1, "-o", output, code=3, says=said)
    return said


class Exploit:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["raw", "zip", "legacy"])
def test_row_15_pickle_that_runs_code(tmp_path, form):
    proof = tmp_path.parent / f"{tmp_path.name}-ran"
    value = {"w": torch.ones(2), "x": Exploit(f"touch {proof}")}
    path = tmp_path / "model.pt"
    if form == "raw":
        path.write_bytes(pickle.dumps(value["x"], protocol=2))
    else:
        saved(path, value, legacy=form == "legacy")
    assert f"holds {os.system.__module__}.system" in refused(path)
    assert not proof.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_row_16_whole_module(tmp_path, legacy):
    text = refused(saved(tmp_path / "model.pt", model(), legacy))
    assert "is a whole nn.Module, of class torch.nn.modules.container.Sequential, which is code" in text
    assert "torch.save(model.state_dict(), path)" in text


def test_row_17_foreign_objects_in_the_dict(tmp_path):
    value = {"args": argparse.ArgumentParser, "w": torch.ones(2)}
    assert "holds argparse.ArgumentParser under 'args'" in refused(saved(tmp_path / "model.pt", value))
    value = {"random": np.random.default_rng(0), "w": torch.ones(2)}
    assert "holds numpy.random._pickle.__generator_ctor under 'random'" in refused(
        saved(tmp_path / "model.pt", value)
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_row_18_truncated(tmp_path, legacy):
    path = saved(tmp_path / "model.pt", model().state_dict(), legacy)
    raw = path.read_bytes()
    for length in (1, 3, 15, 60, 300, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        refused(path)


def resaved(path, edit, method=zipfile.ZIP_STORED):
    """The archive with its records changed by ``edit(short name, bytes) -> [(name, bytes)]``."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records:
            for new_name, new_data in edit(name.partition("/")[2], data):
                archive.writestr(f"model/{new_name}", new_data)
    return path


def test_row_19_deflated(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.zeros(10_000)})
    assert "is compressed" in refused(resaved(path, lambda n, d: [(n, d)], zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("second", ["data.pkl", "DATA.PKL", "x/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_row_20_two_data_pkl(tmp_path, second):
    path = saved(tmp_path / "model.pt", {"w": torch.zeros(3)})
    path = resaved(path, lambda n, d: [(n, d), (second, d)] if n == "data.pkl" else [(n, d)])
    text = refused(path)
    assert "two records named" in text or "holds 2 pickles" in text


def test_row_21_bad_crc(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.full((100,), 7.0)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.full(100, 7.0, np.float32).tobytes()) + 40] ^= 1
    path.write_bytes(raw)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], torch.full((100,), 7.0)), (
        "torch loads it silently"
    )
    assert "record model/data/0 has CRC-32" in refused(path)


def test_row_22_tar_format(tmp_path):
    path = tmp_path / "model.pt"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "is a tar file" in refused(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>not found</html>", "is an HTML"),
        (b"\n  <html>", "is an HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n", "torch.save files do not"),
        (b"\x80\x02]q\x00.", "not one of torch.save"),
        (b"PK\x03\x04", "zip directory"),
    ],
)
def test_row_23_what_is_no_torch_file_is_called_by_its_name(tmp_path, content, what):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert what in refused(path)


@pytest.mark.parametrize("name", ["x" * 1025, "a\x1b[31mb", "a\nb", "a\0b"])
def test_row_14_hostile_tensor_names(tmp_path, name):
    assert "\x1b" not in refused(saved(tmp_path / "model.pt", {name: torch.ones(2)}))


def test_a_tensor_name_must_be_text(tmp_path):
    assert "not text" in refused(saved(tmp_path / "model.pt", {3: torch.ones(2)}))


def test_torchscript_is_refused(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2)})
    assert "TorchScript" in refused(
        resaved(path, lambda n, d: [(n, d), *([("constants.pkl", b"")] * (n == "version"))])
    )


def test_big_endian_files_are_refused(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2)})
    assert "byte order is 'big'" in refused(
        resaved(path, lambda n, d: [(n, b"big" if n == "byteorder" else d)])
    )


def test_a_missing_storage_is_refused(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2)})
    assert "storage 0 are missing" in refused(resaved(path, lambda n, d: [(n, d)] * (n != "data/0")))


def test_a_storage_of_the_wrong_size_is_refused(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2)})
    text = refused(resaved(path, lambda n, d: [(n, d + b"1234" if n == "data/0" else d)]))
    assert "has 12 bytes, its 2 elements need 8" in text


def test_a_zip_of_something_else_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme", "hello")
    assert "without data.pkl" in refused(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    assert "holds no dict of tensors" in refused(
        saved(tmp_path / "model.pt", {"epoch": 3, "list": [torch.ones(1)]})
    )


SHAPE = b"K\x05K\x07\x86"  # (5, 7) as it is pickled


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        (b"K\x06K\x07\x86", "ends at byte 168"),
        (b"J\xff\xff\xff\xffK\x07\x86", "non-negative"),
        (b"\x8a\x08\0\0\0\0\0\0\0\x40\x8a\x08\0\0\0\0\0\0\0\x40\x86", "has shape"),
        (b"\x8a\x20" + b"\1" * 32 + b"K\x07\x86", "has shape"),
        (b"K\x05\x85", "has shape"),
        (b"K\x05\x88\x86", "non-negative"),
        (b"N", "non-negative"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_impossible_shapes_are_refused(tmp_path, shape, what, legacy):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(5, 7)}, legacy)
    if legacy:
        path.write_bytes(path.read_bytes().replace(SHAPE, shape))
    else:
        path = resaved(path, lambda n, d: [(n, d.replace(SHAPE, shape))])
    assert what in refused(path)


def test_legacy_storage_lengths_are_checked(tmp_path):
    """A length that is negative, huge or not the announced one is refused."""
    path = saved(tmp_path / "model.pt", {"w": torch.ones(5, 7)}, legacy=True)
    raw = path.read_bytes()
    at = len(raw) - 4 * 35 - 8
    for length in (-1, 34, 1 << 62):
        path.write_bytes(raw[:at] + length.to_bytes(8, "little", signed=True) + raw[at + 8 :])
        assert "storage" in refused(path)


def test_recognizing_goes_by_content_where_the_suffix_says_nothing(tmp_path):
    for name, legacy in (("a", False), ("b", True)):
        assert TorchFile.recognizes(saved(tmp_path / name, {"w": torch.ones(1)}, legacy))
    (tmp_path / "text").write_bytes(b"hello")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    (tmp_path / "half").write_bytes((tmp_path / "a").read_bytes()[:100])
    for name in ("text", "zip", "half", "missing"):
        assert not TorchFile.recognizes(tmp_path / name)
    (tmp_path / "folder.pt").mkdir()
    assert not TorchFile.recognizes(tmp_path / "folder.pt")


def test_random_damage_to_the_pickle_gives_an_input_error_or_a_file_torch_takes(tmp_path):
    """Each byte of a small checkpoint's pickle is changed once; what we still rewrite, torch loads."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2, 3), "p": nn.Parameter(torch.ones(2))}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        size = len(archive.read("archive/data.pkl"))
    random = np.random.default_rng(0)
    taken = 0
    for position in range(size):
        path = tmp_path / "model.pt"
        path.write_bytes(buffer.getvalue())
        new = bytes([int(random.integers(256))])
        resaved(path, lambda n, d, p=position, b=new: [(n, d[:p] + b + d[p + 1 :] if n == "data.pkl" else d)])
        try:
            rewritten(path, tmp_path / "out.pt")
        except InputError:
            continue
        torch.load(tmp_path / "out.pt", weights_only=True, map_location="cpu")
        (tmp_path / "out.pt").unlink()
        taken += 1
    assert 0 < taken < size
