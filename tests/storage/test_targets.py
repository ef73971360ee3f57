"""Row 62 of BAD_INPUTS: ``--force`` replaces what is ours, and nothing else."""

from __future__ import annotations

import os
import socket

import pytest
from helpers.checkpoints import assert_one_line, assert_refused, contents, directory, run, succeed, table
from helpers.mounts import with_mounts
from safetensors.numpy import save_file

from embcompress.errors import UsageError
from embcompress.storage.staging import staged
from embcompress.storage.targets import remove_tree

PHOTO = b"a photo"


@pytest.fixture
def model(tmp_path):
    return directory(tmp_path / "model", [{"embedding.weight": table()}], vocab_size=64)


@pytest.fixture
def small(model):
    """An earlier output."""
    succeed("factorize", model, "--rank", 4, "-o", model.with_name("small"))
    return model.with_name("small")


def forced(model, output):
    return ("factorize", model, "--rank", 2, "-o", output, "--force")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_row_62_special_files(tmp_path, kind):
    """They are no outputs of anybody."""
    save_file({"embedding.weight": table()}, tmp_path / "m.safetensors")
    place = tmp_path / "out.safetensors"
    if kind == "FIFO":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(place))
    elif os.geteuid():
        pytest.skip("devices are made by root")
    else:
        os.mknod(place, 0o600 | 0o20000, os.makedev(1, 3))
    before = place.lstat()
    result = run(*forced(tmp_path / "m.safetensors", place))
    assert result.exit_code == 2
    assert_one_line(result.stderr, f"out.safetensors: is a {kind}, which is never replaced")
    assert os.path.samestat(before, place.lstat())


def test_row_62_an_input_under_another_name(tmp_path):
    """A hard link is the input itself, for outputs and for pictures."""
    path = tmp_path / "m.safetensors"
    save_file({"embedding.weight": table()}, path)
    (tmp_path / "link.safetensors").hardlink_to(path)
    assert_refused(tmp_path, *forced(path, tmp_path / "link.safetensors"), code=2, says="is the input itself")
    (tmp_path / "link.png").hardlink_to(path)
    command = ("report", path, "--plot", tmp_path / "link.png", "--force")
    assert_refused(tmp_path, *command, code=2, says="is an input or the output")


def test_row_62_what_is_left_out_of_a_copy(tmp_path, model, small):
    """A dense model is replaced only if there is nothing in it that a copy would lose."""
    other = directory(tmp_path / "other", [{"embedding.weight": table()}], vocab_size=64)
    (other / "notes.txt").write_text("carried over")
    for name in ("second.bin", ".git/HEAD", "checkpoint-9/rng.pth"):
        stranger = other / name
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_bytes(PHOTO)
        says = f"other: holds {name.partition('/')[0]}"
        assert_refused(tmp_path, *forced(model, other), code=2, says=says)
        stranger.unlink()
        if stranger.parent != other:
            stranger.parent.rmdir()
    succeed(*forced(model, other))
    (small / ".git").mkdir()
    succeed(*forced(model, small))  # our record says whose it is
    (tmp_path / "empty").mkdir()
    succeed(*forced(model, tmp_path / "empty"))


def test_row_62_our_own_broken_output(model, small):
    """An output without its weights is still ours."""
    (small / "model.safetensors").unlink()
    succeed(*forced(model, small))


def test_row_62_files_beside_an_output(tmp_path):
    """What is published next to an output replaces regular files only, and no input."""
    target, mine = tmp_path / "m.onnx", tmp_path / "input"
    mine.write_bytes(PHOTO)
    target.write_bytes(b"old")

    def write():
        with staged(target, force=True, inputs=(mine,)) as stage:
            stage.write_bytes(b"new")
            stage.with_name("m.onnx.data").write_bytes(b"data")

    beside = tmp_path / "m.onnx.data"
    for make, says in (
        (beside.mkdir, "is a directory"),
        (lambda: os.mkfifo(beside), "is a FIFO"),
        (lambda: beside.symlink_to(mine), "is a symbolic link"),
        (lambda: beside.hardlink_to(mine), "is the input itself"),
    ):
        make()
        with pytest.raises(UsageError, match=says):
            write()
        assert target.read_bytes() == b"old"
        assert mine.read_bytes() == PHOTO
        beside.rmdir() if beside.is_dir() else beside.unlink()
    write()
    assert (target.read_bytes(), beside.read_bytes()) == (b"new", b"data")


def test_links_are_removed_not_followed(tmp_path):
    """What a link leads to stays."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/first.jpg").write_bytes(PHOTO)
    (tmp_path / "old/deep").mkdir(parents=True)
    (tmp_path / "old/deep/link").symlink_to(tmp_path / "photos")
    remove_tree(tmp_path / "old")
    assert contents(tmp_path).keys() == {"photos", "photos/first.jpg"}


MOUNTS = {
    "another device": ("mount -t tmpfs none small/in; echo photo > small/in/x", "small/in: is a mount point"),
    "a bind mount": ("mount --bind photos small/in", "small/in: is a mount point"),
    "the target": ("mount --bind photos small", "small: "),
    "a file": ("mount --bind photos/first.jpg small/config.json", "small/config.json: is a mount point"),
    "the input": ("mount --bind model small", "small: is the input itself"),
    "inside of the input": ("mount --bind model small", "small/new: lies inside the input"),
    "above the input": ("mount --bind . small", "small: holds the input"),
    "its staging place": ("mkdir .small.embcompress; mount --bind photos .small.embcompress",
                          ".small.embcompress: is a mount point"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOUNTS)
def test_row_62_mounts(tmp_path, model, small, case):
    """Nothing is removed through a mount, and an input is known behind one."""
    (small / "in").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/first.jpg").write_bytes(PHOTO)
    mounts, says = MOUNTS[case]
    before = contents(tmp_path)
    output = small / "new" if case.startswith("inside") else small
    done = with_mounts(tmp_path, mounts, "-m", "embcompress", *forced(model, output))
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, says)
    after = contents(tmp_path)
    after.pop(".small.embcompress", None)  # where it was mounted
    assert after == before


def test_a_mount_that_appears_meanwhile(tmp_path):
    """The last look is just before the replacement."""
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from embcompress.storage.staging import staged\n"
        "with staged(Path('old'), force=True) as stage:\n"
        "    stage.mkdir(); subprocess.run('mount --bind photos old/in', shell=True, check=True)\n"
    )
    (tmp_path / "old/in").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/first.jpg").write_bytes(PHOTO)
    before = contents(tmp_path)
    done = with_mounts(tmp_path, "true", "-c", code)
    assert "old/in: is a mount point" in done.stderr.splitlines()[-1]
    assert contents(tmp_path) == before
