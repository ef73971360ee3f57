"""The zip reader and writer, with the standard library and torch's reader as oracles."""

from __future__ import annotations

import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers.refusals import refused as refused_with
from hypothesis import given, settings
from hypothesis import strategies as st

from embcompress.errors import InputError
from embcompress.storage import zipstore
from embcompress.storage.zipstore import Extent, ZipWriter, check_record, pieces, read_directory


def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_directory(fd, "model.pt")
    finally:
        os.close(fd)


def write(path, records):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        writer = ZipWriter(fd)
        for name, data in records.items():
            writer.add(name, len(data), [data[:3], data[3:]])
        writer.finish()
    finally:
        os.close(fd)


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("model.pt: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(path, *records, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, data)


@settings(max_examples=40, deadline=None)
@given(
    records=st.dictionaries(
        st.from_regex(r"a/[a-z]{1,80}", fullmatch=True), st.binary(max_size=200), max_size=6
    )
)
def test_what_is_written_is_read_by_the_standard_library_and_by_us(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    write(path, records)
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == records
        assert archive.testzip() is None
    raw = path.read_bytes()
    extents = read(path)
    assert {name: raw[e.offset : e.offset + e.size] for name, e in extents.items()} == records
    assert all(extent.offset % 64 == 0 for extent in extents.values())


def test_torch_reads_the_records_and_finds_them_aligned(tmp_path):
    write(
        tmp_path / "a.zip",
        {"archive/data/0": b"\1" * 100, "archive/version": b"3\n", "archive/data.pkl": b"N."},
    )
    reader = torch._C.PyTorchFileReader(str(tmp_path / "a.zip"))
    assert reader.get_record("data/0") == b"\1" * 100
    assert reader.get_record_offset("data/0") % 64 == 0


def test_our_places_are_those_torch_finds(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.arange(5.0), "b": torch.arange(7)}, path)
    extents = read(path)
    reader = torch._C.PyTorchFileReader(str(path))
    for key in ("data/0", "data/1", "data.pkl"):
        assert extents[f"model/{key}"].offset == reader.get_record_offset(key)


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("1.zip", "2.zip"):
        write(tmp_path / name, {"a/x": b"123456"})
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_copied_records_keep_their_bytes_and_checksum(tmp_path):
    write(tmp_path / "a.zip", {"a/x": b"12345", "a/y": b"y" * 1000})
    extents = read(tmp_path / "a.zip")
    source = os.open(tmp_path / "a.zip", os.O_RDONLY)
    target = os.open(tmp_path / "b.zip", os.O_RDWR | os.O_CREAT)
    writer = ZipWriter(target)
    writer.copy("b/y", source, extents["a/y"])
    writer.finish()
    os.close(source)
    os.close(target)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.read("b/y") == b"y" * 1000


def test_resuming_replaces_the_last_record_only(tmp_path):
    write(tmp_path / "a.zip", {"a/x": b"12345", "a/y": b"y" * 1000})
    records = dict(read(tmp_path / "a.zip"))
    del records["a/y"]
    fd = os.open(tmp_path / "a.zip", os.O_RDWR)
    writer = ZipWriter.resume(fd, records)
    writer.add("a/z", 2, [b"zz"])
    writer.finish()
    os.close(fd)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == {"a/x": b"12345", "a/z": b"zz"}


@pytest.mark.parametrize(("threshold", "value"), [("ZIP64_SIZE", 60), ("ZIP64_COUNT", 2)])
def test_zip64_fields_are_read_by_the_standard_library_and_torch(tmp_path, monkeypatch, threshold, value):
    """With the limits lowered, every size, offset and count takes its 64-bit form."""
    monkeypatch.setattr(zipstore, threshold, value)
    records = {"a/version": b"3\n", "a/data.pkl": b"N.", "a/data/0": b"0" * 200, "a/data/1": b"1" * 10}
    write(tmp_path / "a.zip", records)
    assert b"PK\x06\x06" in (tmp_path / "a.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == records
    assert {name: e.size for name, e in read(tmp_path / "a.zip").items()} == {
        n: len(d) for n, d in records.items()
    }
    reader = torch._C.PyTorchFileReader(str(tmp_path / "a.zip"))
    assert reader.get_record("data/0") == b"0" * 200
    assert reader.get_record("data/1") == b"1" * 10


def test_a_record_beyond_four_gigabytes_is_found_again(tmp_path):
    """The file is sparse: a hole of 5 GB stands for the first record."""
    hole = 5 << 30
    path = tmp_path / "big.zip"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    writer = ZipWriter(fd)
    header = writer._begin("a/data/0", hole, 0)
    os.lseek(fd, hole, os.SEEK_CUR)
    writer._written.append(zipstore._Written(b"a/data/0", header, hole, 0))
    writer.add("a/version", 2, [b"3\n"])
    writer.finish()
    os.close(fd)
    extents = read(path)
    assert extents["a/data/0"].size == hole
    assert extents["a/version"].offset > hole
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a/version") == b"3\n"
    assert torch._C.PyTorchFileReader(str(path)).get_record("version") == b"3\n"


def test_row_18_truncated_zip(tmp_path):
    """A zip cut anywhere, even by one byte, is refused."""
    write(tmp_path / "a.zip", {"a/x": b"12345", "a/y": b"y" * 100})
    raw = (tmp_path / "a.zip").read_bytes()
    for length in (4, 30, 100, len(raw) // 2, len(raw) - 1):
        (tmp_path / "cut.zip").write_bytes(raw[:length])
        assert "zip directory" in refused(tmp_path / "cut.zip")


def test_row_19_deflated_bomb(tmp_path):
    stored(tmp_path / "a.zip", ("a/data.pkl", b"\0" * 1_000_000), method=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(tmp_path / "a.zip")


def test_row_19_bomb_that_says_it_is_stored(tmp_path):
    """The directory calls the record stored, yet gives it two different sizes."""
    stored(tmp_path / "a.zip", ("a/data.pkl", b"\0" * 100))
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    central = raw.index(b"PK\1\2")
    raw[central + 24 : central + 28] = struct.pack("<I", 1 << 30)
    (tmp_path / "a.zip").write_bytes(raw)
    assert "is compressed" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize("second", ["a/data.pkl", "a/DATA.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_row_20_two_records_of_one_name(tmp_path, second):
    """Torch's reader ignores case, so a spelling in capitals is a double too."""
    stored(tmp_path / "a.zip", ("a/data.pkl", b"1"), (second, b"2"))
    assert "two records named" in refused(tmp_path / "a.zip")


def test_row_21_bad_crc(tmp_path):
    write(tmp_path / "a.zip", {"a/x": b"12345"})
    extent = read(tmp_path / "a.zip")["a/x"]
    fd = os.open(tmp_path / "a.zip", os.O_RDWR)
    seen: list[int] = []
    check_record(fd, "a/x", extent, "model.pt", seen.append)
    assert seen == [5]
    os.pwrite(fd, b"?", extent.offset + 2)
    with refused_with(InputError, "a/x has CRC-32"):
        check_record(fd, "a/x", extent, "model.pt")
    os.close(fd)


def test_archives_without_checksums_are_taken_as_such(tmp_path):
    """Torch can be told to write none, and then writes zero for all."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.arange(9.0), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert {extent.crc for extent in read(tmp_path / "a.pt").values()} == {None}


def test_pieces_of_a_file_that_ends_early_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    with refused_with(InputError, "2"):
        list(pieces(fd, Extent(2, 5, None), "model.pt"))
    os.close(fd)


def patched(path, signature, offset, layout, value):
    raw = bytearray(path.read_bytes())
    at = raw.rindex(signature) + offset
    raw[at : at + struct.calcsize(layout)] = struct.pack(layout, value)
    path.write_bytes(raw)


def test_overlapping_records_are_refused(tmp_path):
    stored(tmp_path / "a.zip", ("a/x", b"x" * 100), ("a/y", b"y" * 100))
    patched(tmp_path / "a.zip", b"PK\1\2", 42, "<I", 0)
    assert "begins at byte 0" in refused(tmp_path / "a.zip")


def test_a_record_outside_the_file_is_refused(tmp_path):
    stored(tmp_path / "a.zip", ("a/x", b"x" * 100))
    for field in (20, 24):
        patched(tmp_path / "a.zip", b"PK\1\2", field, "<I", 1 << 30)
    assert "ends at byte 1,073,74" in refused(tmp_path / "a.zip")


def test_a_directory_that_points_at_no_record_is_refused(tmp_path):
    stored(tmp_path / "a.zip", ("a/x", b"x" * 100), ("a/y", b"y" * 100))
    patched(tmp_path / "a.zip", b"PK\1\2", 42, "<I", 140)
    assert "no record begins at byte 140" in refused(tmp_path / "a.zip")


def test_encrypted_records_are_refused(tmp_path):
    stored(tmp_path / "a.zip", ("a/x", b"x" * 100))
    patched(tmp_path / "a.zip", b"PK\1\2", 8, "<H", 1)
    assert "encrypted" in refused(tmp_path / "a.zip")


def test_bytes_before_the_first_record_are_refused(tmp_path):
    stored(tmp_path / "a.zip", ("a/x", b"x" * 100))
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + (tmp_path / "a.zip").read_bytes())
    assert "begins at byte 10" in refused(tmp_path / "a.zip")


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    stored(tmp_path / "a.zip", *((f"a/{i}", b"") for i in range(50)))
    assert len(read(tmp_path / "a.zip")) == 50
    monkeypatch.setattr(zipstore, "DIRECTORY_LIMIT", 1000)
    assert "limit 1,000" in refused(tmp_path / "a.zip")


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), patch=st.binary(min_size=1, max_size=8))
def test_damaged_archives_give_an_input_error_or_records_inside_the_file(tmp_path_factory, position, patch):
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    write(path, {"a/x": b"12345", "a/y": b"y" * 30})
    raw = bytearray(path.read_bytes())
    at = len(raw) - 1 - position % 220  # the directory, where damage matters
    raw[at : at + len(patch)] = patch
    path.write_bytes(raw)
    try:
        extents = read(path)
    except InputError:
        return
    assert all(0 < e.offset <= e.offset + e.size <= len(raw) for e in extents.values())


def test_arrays_of_any_shape_are_written(tmp_path):
    fd = os.open(tmp_path / "a.zip", os.O_RDWR | os.O_CREAT)
    writer = ZipWriter(fd)
    blocks = [np.arange(6, dtype="<f4").reshape(2, 3), np.zeros((0, 3), "<f4"), np.ones((1, 3), "<f4")]
    writer.add("a/x", 36, blocks)
    writer.add("a/empty", 0, [np.zeros(0, "<f4")])
    writer.finish()
    os.close(fd)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert np.frombuffer(archive.read("a/x"), "<f4").tolist() == [0, 1, 2, 3, 4, 5, 1, 1, 1]
        assert archive.read("a/empty") == b""
