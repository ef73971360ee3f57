"""Only regular files are opened by name, and small ones up to their limit."""

from __future__ import annotations

import os
import socket

import pytest

from embcompress.errors import InputError
from embcompress.storage.regular import check_small, first_bytes, open_regular, opened, read_limited

ZERO = "/dev/zero"


@pytest.fixture(params=["pipe", "socket", "device", "link to a device", "directory"])
def odd(request, tmp_path):
    """A path of something that is no regular file, and the word that messages have for it."""
    path = tmp_path / "config.json"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                os.chdir(tmp_path)  # names of sockets are short
                server.bind(path.name)
        case "device":
            return type(path)(ZERO), "a device"
        case "link to a device":
            path.symlink_to(ZERO)
            return path, "a device"
        case "directory":
            path.mkdir()
    return path, f"a {request.param}"


@pytest.mark.parametrize(
    "read",
    [open_regular, opened, lambda path: read_limited(path, 10), lambda path: check_small(path, 10)],
    ids=["open_regular", "opened", "read_limited", "check_small"],
)
def test_what_is_no_regular_file_is_refused_at_once(odd, read, monkeypatch, tmp_path):
    """Nothing waits for a writer, and nothing is read of a device."""
    path, kind = odd
    monkeypatch.chdir(tmp_path)
    held = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match=f"is {kind}, expected a regular file") as caught:
        read(path)
    assert caught.value.remedy
    assert len(os.listdir("/proc/self/fd")) == held


def test_it_has_no_first_bytes(odd):
    """So that no format recognizes it."""
    assert first_bytes(odd[0], 4) == b""


def test_a_name_that_becomes_a_pipe_after_the_check_does_not_block(tmp_path, monkeypatch):
    """The descriptor is asked again."""
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda _: regular)
    with pytest.raises(InputError, match="is a pipe"):
        open_regular(tmp_path / "pipe")


def test_the_limit_itself_is_allowed_and_one_byte_more_is_not(tmp_path):
    """The message has the value and the limit."""
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 1000)
    assert read_limited(path, 1000) == b"x" * 1000
    check_small(path, 1000)
    for read in (read_limited, check_small):
        with pytest.raises(InputError, match=r"config.json: 1,000 bytes, limit 999; make it shorter"):
            read(path, 999, "make it shorter")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs a file that states no size")
def test_a_file_that_states_no_size_is_limited_too(tmp_path):
    """Those of /proc are regular, and of 0 bytes by their status."""
    path = tmp_path / "config.json"
    path.symlink_to("/proc/self/maps")
    assert path.stat().st_size == 0
    with pytest.raises(InputError, match=r"bytes, limit 10"):
        read_limited(path, 10)


def test_a_sparse_file_of_a_terabyte_is_refused_before_it_is_read(tmp_path):
    """Its length is taken from its status."""
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes"):
        read_limited(path, 1 << 20)


def test_a_link_to_a_regular_file_is_followed(tmp_path):
    """Download caches consist of such links."""
    (tmp_path / "blob").write_bytes(b"content")
    (tmp_path / "file").symlink_to("blob")
    assert read_limited(tmp_path / "file", 10) == b"content"
    assert first_bytes(tmp_path / "file", 3) == b"con"
