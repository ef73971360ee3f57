"""Files made to harm: none runs code, writes outside, or takes memory beyond a bound.

Each test runs the real command line in processes of its own that may take only so much address space more
than Python with its modules does, and that note whatever they try to run, to connect to, or to write
elsewhere. A good input of the same kind must pass under the same bound, so that the bound is no accident.
What one format's own tests cover is not done again here; see BAD_INPUTS.md.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import onnx_models
from helpers.checkpoints import assert_one_line, contents, directory, entry, raw, table, write_index
from helpers.hostile import (
    COUNTING,
    MB,
    ONNX,
    ROOM,
    assert_good,
    assert_harmless,
    assert_plain,
    both,
    commands,
    needs_proc,
)
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from torch import _weights_only_unpickler

from embcompress.storage.protobuf import field, varint

pytestmark = needs_proc


# ---- pickles


def text(value: bytes) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value


def short(value: bytes) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value


def ways(module: str, name: str, argument: bytes) -> dict[str, bytes]:
    """Opcodes by which a pickle can name ``module.name`` and have it called, by the name of the way."""
    named = f"c{module}\n{name}\n".encode()
    stacked = short(module.encode()) + short(name.encode()) + b"\x93"
    given = text(argument)
    return {
        "GLOBAL": named,
        "REDUCE": named + given + b"\x85R",
        "INST": b"(" + given + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + named + given + b"o",
        "NEWOBJ": named + given + b"\x85\x81",
        "NEWOBJ_EX": named + given + b"\x85}\x92",
        "STACK_GLOBAL": stacked + given + b"\x85R",
        "STACK_GLOBAL of texts": text(module.encode()) + text(name.encode()) + b"\x93" + given + b"\x85R",
        "BUILD of a class": named + given + b"b",
        "BUILD by __setstate__": b"ccollections\nOrderedDict\n)R}"
        + text(b"__setstate__")
        + named
        + b"s"
        + b"b",
        "EXT1": b"\x82\x01" + given + b"\x85R",
        "EXT2": b"\x83\x01\x01" + given + b"\x85R",
        "EXT4": b"\x84\x01\0\0\0" + given + b"\x85R",
        "PERSID": f"P{module}.{name}\n".encode(),
        "BINPERSID": named + given + b"\x86Q",
        "storage of a kind": b"(" + text(b"storage") + named + text(b"0") + text(b"cpu") + b"K\x01tQ",
        "tensor of a type": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + named + named + b")}tR",
        "wrapper of a class": b"ctorch._utils\n_rebuild_wrapper_subclass\n(" + named + b"tR",
        "memo": named + b"q\0" + given + b"\x85q\x01" + b"00" + b"h\0h\x01R",
    }


CODE = (
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec"),
    *("__builtin__.eval", "builtins.getattr", "builtins.__import__", "builtins.open", "pathlib.Path"),
    *("importlib.import_module", "runpy.run_path", "ctypes.CDLL", "operator.attrgetter", "shutil.rmtree"),
    *("functools.partial", "copyreg._reconstructor", "pickle.loads", "_pickle.loads", "dill.loads"),
    *("torch.load", "torch.serialization.load", "torch.hub.load", "torch.jit.load", "numpy.load"),
    *("torch.utils.data.DataLoader", "webbrowser.open", "code.interact", "timeit.timeit", "pip.main"),
    # Reached through what is allowed: attributes of modules, functions and classes.
    *("torch._utils.os.system", "torch._utils._rebuild_tensor_v2.__globals__"),
    *("collections.OrderedDict.__init__", "embcompress.workflows.factorize"),
)
"""Names that run code, or lead to code, once they are looked up or called."""


def good_archive(beside: object = None) -> dict[str, bytes]:
    """The records of a file of torch.save with a table, and a text MARKER and ``beside`` beside it."""
    buffer = io.BytesIO()
    weights = {"embedding.weight": torch.from_numpy(table(8, 4))}
    torch.save({**weights, "x": "MARKER", **({} if beside is None else {"beside": beside})}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_marker(path: Path, records: Mapping[str, bytes], inner: bytes) -> Path:
    """The archive with ``inner`` in its pickle instead of the text MARKER."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data.replace(text(b"MARKER"), inner))
    return path


def legacy(path: Path, pickled: bytes) -> Path:
    """The format from before torch 1.6, with the given pickle and no storage."""
    first = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    path.write_bytes(first + pickle.dumps({"little_endian": True}, protocol=2) + pickled + b"\x80\x02].")
    return path


FULL = pytest.mark.parametrize(
    "full", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"]
)


@FULL
def test_row_47_every_way_of_a_pickle_to_code(tmp_path, full):
    """Every opcode that names or calls a function is refused in each container; nothing is looked up."""
    canary = tmp_path / "ran"
    records = good_archive()
    jobs = []
    for number, path in enumerate(CODE):
        every = ways(*path.rsplit(".", 1), f"touch {canary}".encode())
        thorough = full or number < 2
        for way in every if thorough else ("REDUCE", "STACK_GLOBAL", "BUILD of a class"):
            whole = b"\x80\x02}" + text(b"x") + every[way] + b"s."
            name = f"{number}-{way}"
            files = [with_marker(tmp_path / f"{name}.pt", records, every[way])]
            if thorough:
                (tmp_path / f"{name}-raw.pt").write_bytes(whole)
                files += [tmp_path / f"{name}-raw.pt", legacy(tmp_path / f"{name}-old.pt", whole)]
            jobs += [("report", file) for file in files]
    assert len(jobs) >= (1900 if full else 200)
    assert_harmless(tmp_path, jobs)
    assert not canary.exists()
    assert_good(tmp_path, with_marker(tmp_path / "good.pt", records, text(b"MARKER")))


@FULL
def test_row_48_every_name_that_torch_allows(tmp_path, full):
    """Each name is read as data or refused, however it is named or called."""
    canary = tmp_path / "ran"
    records = good_archive()
    allowed = sorted(_weights_only_unpickler._get_allowed_globals())
    assert len(allowed) > 100
    allowed = allowed if full else allowed[::3]
    jobs = []
    for number, path in enumerate(allowed):
        every = ways(*path.rsplit(".", 1), f"touch {canary}".encode())
        for way in every if full else (("GLOBAL", "REDUCE")[number % 2],):
            jobs.append(("report", with_marker(tmp_path / f"{number}-{way}.pt", records, every[way])))
    before = contents(tmp_path)
    ended = commands(tmp_path, ROOM, jobs)
    assert contents(tmp_path) == before
    for job, end in zip(jobs, ended, strict=True):
        assert end.code in (0, 3), (job, end)
        if end.code:
            assert_one_line(end.stderr, "")
        assert_plain(end.stdout + end.stderr)
    assert sum(end.code == 0 for end in ended) > 20


@FULL
def test_row_48_a_pickle_of_empty_objects(tmp_path, full):
    """An opcode is a byte and makes an object: 350 bytes at most each, ten million of them at most."""
    count = 100_000 if full else 30_000
    jobs = []
    for number, opcode in enumerate((b"\x8f", b"]", b"}", b"(", b"cbuiltins\nset\n", b"]r\0\0\0\0")):
        jobs.append(("report", legacy(tmp_path / f"{number}.pt", b"\x80\x02(" + opcode * count + b"t.")))
    assert_harmless(tmp_path, jobs, room=ROOM + 350 * count)


@FULL
def test_row_81_every_way_of_a_pickle_to_code_where_only_weights_are_taken(tmp_path, full):
    """What names or calls a function is dropped or refused; the copy is weights alone."""
    canary = tmp_path / "ran"
    records = good_archive()
    jobs, copies = [], []
    for number, path in enumerate(CODE if full else CODE[:2]):
        every = ways(*path.rsplit(".", 1), f"touch {canary}".encode())
        for way, code in every.items():
            file = with_marker(tmp_path / f"{number}-{way}.pt", records, code)
            copies.append(tmp_path / f"{number}-{way}-small.pt")
            jobs.append(("factorize", file, "--weights-only", "--rank", 2, "-o", copies[-1]))
    ended = commands(tmp_path, ROOM, jobs)
    for job, copy, end in zip(jobs, copies, ended, strict=True):
        assert end.code in (0, 3), (job, end)
        assert copy.exists() == (end.code == 0)
        if end.code:
            assert_one_line(end.stderr, "")
        else:
            found = torch.load(copy, weights_only=True)
            assert found.keys() - {"x"} == {"embedding.0.weight", "embedding.1.weight"}
        assert_plain(end.stdout + end.stderr)
    assert 5 <= sum(end.code == 0 for end in ended) < len(ended)
    assert not canary.exists()


def opcodes_4(count: int) -> dict[str, bytes]:
    """What opcodes of protocols 3 to 5 could make many objects of, in a list."""
    head = b"\x80\x04ccollections\ndeque\nq\0cevil\nX\nq\1("
    each = {
        "frozensets": b"(\x91", "memoized": b"]\x94", "bytearrays": b"\x96" + bytes(8), "made": b"h\0)R",
        "with state": b"h\0)R}b", "with items": b"h\0)RNa", "with entries": b"h\0)RNNs",
        "foreign": b"h\1)\x81", "foreign by name": b"h\1)}\x92", "names": b"h\1", "mappings": b"h\1)RNNs",
    }  # fmt: skip
    return {name: head + code * count + b"t." for name, code in each.items()}


CLAIMS = {
    "frame": b"\x95" + b"\xff" * 8, "text": b"\x8d" + b"\xff" * 7 + b"\x7f", "bytes": b"\x8e" + b"\xff" * 8,
    "short bytes": b"C\xff", "bytes of 4 GB": b"B\xff\xff\xff\xff", "bytearray": b"\x96" + b"\xff" * 8,
    "integer": b"\x8b\xff\xff\xff\x7f", "a name with a line break": short(b"a\nb") + short(b"c") + b"\x93",
    "a name of an escape": short(b"\x1b[2J") + short(b"c") + b"\x93", "buffers": b"\x97\x98",
    "elements of elements": b"(" * 5000 + b"K\1" + b"\x91" * 5000,
    "sets of sets": b"\x8f(" * 3000 + b"\x90" * 3000,
    "mappings as keys": b"}cevil\nX\n)RNNsNs", "mappings in sets": b"\x8f(cevil\nX\n)RNNs\x90",
    "mappings in keys": b"}cevil\nX\n)RNNs\x85Ns",
    "names of names": (b"cevil\nX\n" + b")R" * 5000), "states of states": b"cevil\nX\n" * 900 + b"b" * 899,
    "itself": b"cevil\nX\n(]q\0h\0tRq\1h\1a", "texts that multiply": b"(" + text(b"a" * 4000) + b"q\0" + (
        b"c_codecs\nencode\n(h\0" + text(b"latin1") + b"tR") * 50 + b"t",
    "keys that multiply": b"}K\1" + b"q\0h\0\x86" * 60 + b"Ns",
    "long names": b"}" + text(b"k" * 2_000_000) + b"(" + b"cevil\nX\n" * 20_000 + b"ts",
    "texts of mappings": b"cevil\nX\n)R" + b"q\0h\0h\0s" * 3000,
}  # fmt: skip


@FULL
@pytest.mark.parametrize("option", [(), ("--weights-only",)], ids=["as it is", "weights only"])
def test_row_82_pickles_of_protocol_4_that_claim_or_multiply(tmp_path, full, option):
    """Each is read or refused in one line, in memory that its size allows."""
    count = 100_000 if full else 3_000
    jobs = []
    for name, pickled in opcodes_4(count).items():
        jobs.append(("report", legacy(tmp_path / f"{name}.pt", pickled), *option))
    assert_harmless(tmp_path, jobs, room=ROOM + 5 * 350 * count)
    jobs = []
    for number, code in enumerate(CLAIMS.values()):
        if full or number % 2 == len(option):
            jobs.append(("report", legacy(tmp_path / f"{number}.pt", b"\x80\x05" + code + b"."), *option))
        if full or number % 2 != len(option):
            jobs.append(("report", with_marker(tmp_path / f"{number}-x.pt", good_archive(), code), *option))
    before = contents(tmp_path)
    for job, end in zip(jobs, commands(tmp_path, ROOM, jobs), strict=True):
        assert end.code in (0, 3), (job, end)
        assert "out of memory" not in end.stderr, job
        assert_plain(end.stdout + end.stderr)
    assert contents(tmp_path) == before


def with_long_paths() -> dict[str, object]:
    """What stands beside the weights, and has paths that would take far more than the file."""
    many: object = {number: [] for number in range(3_000)}
    deep, doubled = many, frozenset([1])
    for _ in range(100):
        deep = {"k" * 2_000: deep}
    for _ in range(60):
        doubled = frozenset([(doubled, (doubled,))])
    return {
        "a long key": {"k" * MB: many},
        "many keys": deep,
        "sets in a key": {doubled: 1},
        "sets in keys": {(1, doubled): {(2, doubled): 3}},
    }


@pytest.mark.parametrize("option", [(), ("--weights-only",)], ids=["as it is", "weights only"])
def test_row_119_paths_that_are_longer_than_the_file(tmp_path, option):
    """The file is compressed, and its copy verified, in memory that its size allows."""
    jobs: list[Sequence[object]] = []
    for name, beside in with_long_paths().items():
        foreign = b"cevil\nX\n)R" if option else b"N"
        file = with_marker(tmp_path / f"{name}.pt", good_archive(beside), foreign)
        copy = tmp_path / f"{name}-small.pt"
        jobs += [("factorize", file, "--rank", 2, *option, "-o", copy), ("verify", copy, "--against", file)]
    for job, end in zip(jobs, commands(tmp_path, ROOM, jobs), strict=True):
        assert end.code == 0, (job, end)


# ---- zip


@dataclass(frozen=True)
class Member:
    """A record of a zip, however wrong; None means the correct value."""

    name: str
    data: bytes
    local: str | None = None
    method: int = 0
    size: int | None = None
    stated: int | None = None
    offset: int | None = None


def zip_of(path: Path, members: Sequence[Member]) -> Path:
    """A zip of exactly these members; sizes and offsets beyond 32 bits go into a zip64 field."""
    out, directory = bytearray(), bytearray()
    for member in members:
        name, local = member.name.encode(), (member.local or member.name).encode()
        size = len(member.data) if member.size is None else member.size
        stored = len(member.data) if member.stated is None else member.stated
        offset = len(out) if member.offset is None else member.offset
        wide = struct.pack("<2H3Q", 1, 24, size, stored, offset) if max(size, stored, offset) >> 32 else b""
        size, stored, offset = (0xFFFFFFFF if wide else value for value in (size, stored, offset))
        fields = (0x800, member.method, 0, 33, zlib.crc32(member.data))
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, *fields, stored, size, len(local), 0)
        out += local + member.data
        places = (len(name), len(wide), 0, 0, 0, 0, offset)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 20, *fields, stored, size, *places)
        directory += name + wide
    count = len(members)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(out), 0)
    path.write_bytes(out + directory + end)
    return path


def members(**changes: Any) -> list[Member]:
    """The members of a good file, with ``changes`` to that of its pickle."""
    return [
        Member(name, data, **(changes if name.endswith("data.pkl") else {}))
        for name, data in good_archive().items()
    ]


def deflated(count: int) -> bytes:
    """A gigabyte for each ``count`` of zeros, as a megabyte."""
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(MB)
    return b"".join(packer.compress(zeros) for _ in range(1024 * count)) + packer.flush()


def test_row_49_zip_tricks(tmp_path):
    """Zips that are ambiguous, expand, or lead elsewhere are refused before they are read."""
    bomb = deflated(1)
    pickled = next(member.data for member in members() if member.name.endswith("data.pkl"))
    cases = {
        "named otherwise where it begins": members(local="archive/evil.pkl"),
        "named shorter where it begins": members(local="x"),
        "exabytes": members(size=1 << 60, stated=1 << 60),
        "all of 64 bits": members(size=(1 << 64) - 1, stated=(1 << 64) - 1),
        "far away": members(offset=1 << 62),
        "bomb": [Member(m.name, bomb, None, 8, 1 << 30) if m.data == pickled else m for m in members()],
        "bomb said to be stored": [
            Member(m.name, bomb, None, 0, 1 << 30) if m.data == pickled else m for m in members()
        ],
        "bzip2": members(method=12),
        "zstandard": members(method=93),
        "one upon another": [replace(member, offset=0) for member in members()],
        "second pickle in another folder": [*members(), Member("other/data.pkl", pickled)],
        "second pickle above": [*members(), Member("archive/../../data.pkl", pickled)],
        "second pickle behind a NUL": [*members(), Member("archive/data.pkl\0x", pickled)],
        "twice": [*members(), *members()],
    }
    paths = [zip_of(tmp_path / f"{number}.pt", held) for number, held in enumerate(cases.values())]
    assert_harmless(tmp_path, (job for path in paths for job in both(path)))
    assert_good(tmp_path, zip_of(tmp_path / "good.pt", members()))


def test_row_49_records_that_lead_elsewhere(tmp_path):
    """Records are never extracted, whatever their names; a copy holds those of torch.save alone."""
    names = ("archive/../../evil", "../evil", "/etc/evil", "C:\\evil", "archive\\..\\evil", "\\\\server\\x")
    names += (
        "archive/NUL",
        "archive/\x1b[2J",
        "archive/\u202e",
        "archive/a\nb",
        "~/evil",
        "archive/" + "x" * 9999,
    )
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    clean = {member.name.removeprefix("archive/") for member in members()}
    for number, name in enumerate(names):
        zip_of(folder / f"{number}.pt", [*members(), Member(name, b"evil")])
    jobs = [
        ("factorize", folder / f"{i}.pt", "--rank", 2, "-o", folder / f"o{i}.pt") for i in range(len(names))
    ]
    for number, end in enumerate(commands(folder, ROOM, jobs)):
        assert end.code == 0, end
        assert_plain(end.stdout + end.stderr)
        with zipfile.ZipFile(folder / f"o{number}.pt") as archive:
            assert {name.partition("/")[2] for name in archive.namelist()} <= clean | {"data/1"}
    assert [*tmp_path.iterdir()] == [tmp_path / "deep"]
    assert [*folder.parent.iterdir()] == [folder]


# ---- safetensors, directories and their JSON; word vectors


class Shell:
    """An object whose pickle runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("shape", "stop"),
    [
        ((1 << 62, 1), 1 << 62),
        ((1 << 31, 1 << 31), 1 << 64),
        ((1 << 62, 1 << 62, 0), 0),
        ((1 << 20, 1 << 22), 1 << 44),
        ((1 << 40, 1), 1 << 42),
        ((10**4299,), 4),
        ((1 << 62,) * 1000, 4),
    ],
    ids=lambda value: str(value)[:40],
)
def test_row_50_headers_that_claim_terabytes(tmp_path, shape, stop):
    """No more memory is allocated than the file has bytes."""
    path = raw(tmp_path / "m.safetensors", {"embedding.weight": entry("F32", shape, 0, stop)}, bytes(4))
    assert_harmless(tmp_path, both(path))


def test_row_50_a_file_that_is_as_long_as_it_claims_and_holds_nothing(tmp_path):
    """Two terabytes of a hole are read a block at a time."""
    path = tmp_path / "m.safetensors"
    header = {
        "embedding.weight": entry("F32", (1 << 30, 512), 0, 1 << 41),
        "b": entry("F32", (4, 1), 1 << 41, (1 << 41) + 16),
    }
    raw(path, header)
    try:
        os.truncate(path, path.stat().st_size + (1 << 41) + 16)
    except OSError:
        pytest.skip("no file can be that long here")
    (end,) = commands(tmp_path, ROOM, [("report", path, "--key", "b")])
    assert end.code == 0, end


def npy(header: str, version: int = 1, claimed: int | None = None) -> bytes:
    """The beginning of a .npy file, however wrong."""
    width = 2 if version == 1 else 4
    length = len(header) if claimed is None else claimed
    return b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(width, "little") + header.encode()


def test_row_50_word_vectors_that_claim_more_than_there_is(tmp_path):
    """Headers of gigabytes, of expressions and of objects; a trillion vectors; a number that is too long."""
    fields = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
    headers = {
        "a": npy(fields.format("'<f4'", (1 << 62, 2))),
        "b": npy(fields.format("'<f4'", (1 << 63, 1 << 63))),
        "c": npy(fields.format("'|O'", (2, 2))) + pickle.dumps(Shell(f"touch {tmp_path / 'ran'}")),
        "d": npy(fields.format("'<f4'", "__import__('os').system('touch ran')")),
        "e": npy(fields.format("'<f4'", "(9**9**9, 2)")),
        "f": npy(fields.format("'<f4'", "(" * 5000)),
        "g": npy(fields.format("'<f4'", (2, 2)), 2, (1 << 32) - 1),
        "h": npy(fields.format("[('a', '<f4', (1 << 40,))]", (2, 2))),
    }
    for name, data in headers.items():
        (tmp_path / f"{name}.npy").write_bytes(data)
        (tmp_path / f"{name}.vocab.txt").write_text("a\nb\n")
    os.truncate(tmp_path / "g.npy", 5 << 30)  # a hole: what is claimed could be read
    for number, line in enumerate(
        ("999999999999 300", "999999999999999999 65536", "9" * 200 + " 2", "2 65537")
    ):
        (tmp_path / f"{number}.bin").write_bytes(line.encode() + b"\na " + bytes(1200))
        (tmp_path / f"{number}.txt").write_bytes(line.encode() + b"\na 0.5 0.5\n")
    files = sorted(file for file in tmp_path.iterdir() if not file.name.endswith(".vocab.txt"))
    sizes = {file: file.stat().st_size for file in tmp_path.iterdir()}
    jobs = [job for file in files for job in both(file)]
    for job, end in zip(jobs, commands(tmp_path, ROOM, jobs), strict=True):
        assert end.code == 3, (job, end)
        assert_one_line(end.stderr, "")
    assert {file: file.stat().st_size for file in tmp_path.iterdir()} == sizes


def test_row_50_good_files_of_the_same_kinds(tmp_path):
    """They pass within the same memory."""
    save_file({"embedding.weight": table()}, tmp_path / "m.safetensors")
    assert_good(
        tmp_path,
        tmp_path / "m.safetensors",
        directory(tmp_path / "model", [{"embed_tokens.weight": table()}]),
    )


def test_row_51_a_few_rows_without_end(tmp_path):
    """The matrix of columns × columns that is made of a table does not outgrow the file."""
    for columns in (8193, 100_000, 3_000_000):
        path = tmp_path / f"{columns}.safetensors"
        raw(path, {"embedding.weight": entry("F32", (4, columns), 0, 16 * columns)}, bytes(16 * columns))
        for end in assert_harmless(tmp_path, both(path), codes=(2,)):
            assert f"{columns:,} numbers, limit 8,192" in end.stderr


SHARDS = (
    *("../m.safetensors", "..\\m.safetensors", "/m.safetensors", "\\m.safetensors", "C:\\m.safetensors"),
    *(
        "C:m.safetensors",
        "\\\\server\\share\\m.safetensors",
        "//server/m.safetensors",
        "a/../../m.safetensors",
    ),
    *("con.safetensors", "NUL.safetensors", "Com1.safetensors", "aux .safetensors", "m.safetensors."),
    *(
        "m.safetensors ",
        "m.safetensors:stream",
        "~/m.safetensors",
        "$HOME/m.safetensors",
        "%TEMP%/m.safetensors",
    ),
    *("file:///m.safetensors", "http://host/m.safetensors", "*.safetensors", ".m.safetensors"),
)


def test_row_52_shards_that_leave_the_directory_on_some_platform(tmp_path):
    """By the rules of all platforms at once: a directory is copied between machines."""
    save_file({"a.weight": table()}, tmp_path / "m.safetensors")
    jobs = []
    for number, shard in enumerate(SHARDS):
        path = directory(tmp_path / str(number), [{"a.weight": table()}, {"b.weight": table()}])
        write_index(path, {"a.weight": shard})
        save_file({"a.weight": table()}, path / shard.replace("/", "_"))
        jobs += both(path)
    for job, end in zip(jobs, assert_harmless(tmp_path, jobs), strict=True):
        assert "leads out of the directory" in end.stderr, job


DEEP = "[" * 200_000
DIGITS = "9" * 1_000_000


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (DEEP, 3),
        ('{"a":' * 200_000, 3),
        (f'{{"vocab_size": {DIGITS}}}', 3),
        (f'{{"vocab_size": -{DIGITS}}}', 3),
        (f'"{DIGITS}"', 3),
        ('{"vocab_size": 1e999999999, "hidden_size": NaN, "tie_word_embeddings": Infinity}', 0),
        (f'{{"vocab_size": {10**4299}, "model_type": ["opt"], "architectures": {{}}}}', 0),
        ('{"model_type": {}, "text_config": [], "architectures": [[]], "classifier": 5}', 0),
        (f'{{"quantization_config": {{"quant_method": "embcompress", "layout": {10**4299}}}}}', 3),
        ('{"quantization_config": {"quant_method": "\\u001b[2J"}}', 2),
        ('{"quantization_config": {"quant_method": ["embcompress"]}}', 2),
    ],
    ids=lambda value: str(value)[:40],
)
def test_row_53_configurations_that_are_bombs(tmp_path, config, code):
    """The parser limits depth and digits, and values of any kind are only values."""
    path = directory(tmp_path / "model", [{"model.embed_tokens.weight": table()}])
    (path / "config.json").write_text(config)
    job = ("factorize", path, "--rank", 1, "--dry-run")
    if code:
        assert_harmless(tmp_path, [job], codes=(code,))
    else:
        (end,) = commands(tmp_path, ROOM, [job])
        assert end.code == 0, end
        assert_plain(end.stdout + end.stderr)


@pytest.mark.parametrize("what", ["[],", "{},", '"x":0,'])
@pytest.mark.parametrize("place", ["config.json", "model.safetensors"])
def test_row_53_memory_grows_with_the_text_of_json(tmp_path, what, place):
    """32 bytes at most for each byte of text, and text is limited: 64 MB, and 100 MB of a header."""
    size = 2 * MB
    path = directory(tmp_path / "model", [{"model.embed_tokens.weight": table()}])
    parts = what * (size // len(what))
    if ":" in what:
        parts = "".join(f'"{number:x}":0,' for number in range(size // 9))
    held = f'{{"a":{{{parts}"y":0}}}}' if ":" in what else f'{{"a":[{parts}0]}}'
    if place == "config.json":
        (path / place).write_text(held)
    else:
        raw(path / place, held.encode())
    room = ROOM + 32 * len(held)
    (end,) = commands(tmp_path, room, [("report", path)])
    assert end.code == (0 if place == "config.json" else 3), end


# ---- names that are shown


ESCAPES = {
    "screen": "\x1b[2J",
    "link": "\x1b]8;;http://evil\x07here",
    "bell": "\x07",
    "backspaces": "safe\b\b\b\bevil",
    "bidi": "\u202egnp.exe",
    "isolate": "\u2066x\u2069",
    "lines": "a\nError: all is well",
    "return": "a\rError: all is well",
    "C1": "\x9b2J",
    "markup": "[link=http://evil]x[/link][blink]",
    "page": "<img src=x onerror=alert(1)>|`x`",
    "nothing": "\u200b\ufeff",
}
SOME_ESCAPES = pytest.mark.parametrize(
    "escape",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("screen", "bidi", "markup", "page")))
        for name in ESCAPES
    ],
)


@SOME_ESCAPES
def test_row_54_names_of_tensors(tmp_path, escape):
    """Names that would control a terminal are refused, others are shown unchanged; in JSON too."""
    name = f"model.{ESCAPES[escape]}.embed_tokens.weight"
    path = directory(tmp_path / "model", [{"norm.weight": table(1, 4)[0]}])
    save_file({name: table()}, path / "model.safetensors")
    torch.save({name: torch.from_numpy(table())}, tmp_path / "m.pt")
    files = (path, path / "model.safetensors", tmp_path / "m.pt")
    options = ((), ("--curve",), ("--json",))
    jobs = [("report", file, *more) for file in files for more in options]
    jobs += [("factorize", file, "--rank", 1, "--dry-run", "-v") for file in files]
    if not name.isprintable():
        assert_harmless(tmp_path, jobs)
        return
    for job, end in zip(jobs, commands(tmp_path, ROOM, jobs), strict=True):
        assert end.code == 0, (job, end)
        assert_plain(end.stdout + end.stderr)


@SOME_ESCAPES
def test_row_54_names_of_files_and_entries_of_records(tmp_path, escape):
    """Notes, errors and results show them escaped; a model card made of them holds no markup of theirs."""
    evil = ESCAPES[escape]
    file = evil.replace("/", "_")
    path = directory(tmp_path / "model", [{"model.embed_tokens.weight": table()}])
    (path / f"{file}.h5").write_bytes(b"dense")
    named = tmp_path / f"{file}-named"
    shutil.copytree(path, named)
    small = tmp_path / "small"
    jobs = [
        ("factorize", path, "--rank", 2, "-o", small),
        ("report", named),
        ("report", tmp_path / f"{file}.pt"),
    ]
    jobs += [
        ("factorize", named, "--rank", 2, "-o", tmp_path / "small-named"),
        ("report", path, "--key", evil),
    ]
    ended = commands(tmp_path, ROOM, jobs)
    assert [end.code for end in ended] == [0, 0, 2, 0, 2]
    config = json.loads((small / "config.json").read_text())
    record = config["quantization_config"]
    record |= {"version": f"1{evil}", "command": f"x{evil}\n```\n<b>"}
    record["tables"][0] |= {"weighting": evil, "weighted_error": 0.5}
    (small / "config.json").write_text(json.dumps(config))
    jobs = [("report", small), ("report", small, "--json"), ("expand", small, "-o", tmp_path / "dense")]
    jobs += [("factorize", small, "--rank", 2), ("report", small, "--against", path)]
    ended += commands(tmp_path, ROOM, jobs)
    for end in ended:
        assert_plain(end.stdout + end.stderr)
        assert isinstance(end.code, int), end
    for card in (tmp_path / "small-named/README.md", tmp_path / "dense/README.md"):
        if card.exists():
            written = card.read_text()
            assert_plain(written)
            assert written.count("```") in (0, 2)
            # The comments around the section are ours; in a block of code nothing is markup.
            shown = re.sub(
                r"```.*?```|<!-- embcompress: \w+ -->|^base_model: .*$", "", written, flags=re.S | re.M
            )
            assert "<" not in shown


# ---- ONNX


def onnx_file(path: Path, **changes: Any) -> Path:
    """A model whose table has the given ``dims``, ``external`` data or further ``nodes``."""
    made = onnx_models.model()
    tensor = made.graph.initializer[0]
    if "dims" in changes:
        tensor.dims[:] = changes["dims"]
    if "external" in changes:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in changes["external"].items():
            tensor.external_data.add(key=key, value=value)
    made.graph.node.extend(changes.get("nodes", ()))
    path.write_bytes(made.SerializeToString())
    return path


def test_row_55_data_of_onnx_models_that_lie_elsewhere(tmp_path):
    """Refused by the rules of all platforms, for impossible sizes, and for text that is not a number."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(bytes(4 * onnx_models.V * onnx_models.D))
    (tmp_path / "secret").write_bytes((folder / "w.bin").read_bytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    places = ("../secret", "w.bin/../../secret", "link", str(tmp_path / "secret"), "..\\secret", "C:secret")
    places += (
        "\\\\server\\x",
        "//server/x",
        "NUL",
        "con",
        "w.bin:x",
        "w.bin\0x",
        "file:///etc/passwd",
        "~/x",
    )
    places += ("$HOME", "x" * 5000, "é" * 200, "\x1b[2J", "", ".", "..", "/")
    cases = [{"location": place} for place in places]
    for entries in (
        {"offset": "-1"}, {"length": "-5"}, {"offset": "1"}, {"offset": "1", "length": str(1 << 62)},
        {"offset": "9" * 4300, "length": "9" * 4300},
        {"offset": "-" + "9" * 4299, "length": "-" + "9" * 4299},
        {"length": "9" * 5000}, {"offset": "1e3"}, {"length": "0x10"},
    ):  # fmt: skip
        cases.append({"location": "w.bin", **entries})
    paths = [onnx_file(folder / f"{i}.onnx", external=case) for i, case in enumerate(cases)]
    assert_harmless(tmp_path, (job for path in paths for job in both(path)), modules=ONNX)
    assert_good(folder, onnx_file(folder / "good.onnx", external={"location": "w.bin"}), modules=ONNX)


def test_row_56_onnx_models_that_claim_or_nest_without_end(tmp_path):
    """Shapes, lengths and depth are compared with limits before anything is multiplied or parsed."""
    most = (1 << 63) - 1
    shapes = ([1 << 62, 1 << 62], [1 << 40, 32], [most, most], [-1, -1], [1 << 62] * 300, [1 << 62] * 100_000)
    paths = [
        onnx_file(tmp_path / f"{i}.onnx", dims=dims) for i, dims in enumerate((*shapes, [0, most], [1] * 65))
    ]
    inner = onnx_models.GATHER.SerializeToString()
    for _ in range(60):  # a node holds an attribute, which holds a graph, which holds a node
        inner = field(4, b"If") + field(5, field(1, b"then_branch") + field(6, field(1, inner)))
    made = onnx_models.model().graph.SerializeToString() + field(1, inner)
    (tmp_path / "deep.onnx").write_bytes(b"\x08\x08" + field(7, made))
    paths.append(tmp_path / "deep.onnx")
    head = b"\x08\x08"
    for number, data in enumerate((
        b"\x3a" + b"\xff" * 9 + b"\x7f",  # a graph of 2^63 bytes
        b"\x3a\xff\xff\xff\xff\x0f",  # one of 4 GB
        b"\x0b" * 100_000,  # groups in groups
        b"\x3a\x00\x3a\x00",  # two graphs
        b"\x00" * 100,  # fields of number 0
    )):  # fmt: skip
        (tmp_path / f"bytes{number}.onnx").write_bytes(head + data)
        paths.append(tmp_path / f"bytes{number}.onnx")
    assert_harmless(tmp_path, (job for path in paths for job in both(path)), modules=ONNX)
    assert_good(tmp_path, onnx_file(tmp_path / "good.onnx"), modules=ONNX)


def test_row_111_constants_of_onnx_models_that_lie(tmp_path):
    """A matrix in a node is checked like any other: sizes, names, data in other files, fields that repeat."""
    large = (1 << 40, 1 << 22, 501)
    values = onnx_models.low_rank()
    tensor = helper.make_tensor("v", TensorProto.FLOAT, values.shape, values.tobytes(), raw=True)
    whole = tensor.SerializeToString()
    dims = [b"".join(field(1, bytes(varint(size))) for size in (rows, 32)) for rows in large]
    beside = TensorProto(dims=[500, 32], data_type=1, data_location=TensorProto.EXTERNAL)
    beside.external_data.add(key="location", value="../secret")
    tensors = {
        "good": whole,
        "cut": whole[:-4],
        "twice": whole + field(9, values.tobytes()),
        "beside": beside.SerializeToString(),
        **{f"dims{i}": field(9, values.tobytes()) + b"\x10\x01" + each for i, each in enumerate(dims)},
    }
    attributes = {name: (field(1, b"value") + b"\xa0\x01\x04" + field(5, t),) for name, t in tensors.items()}
    (good,) = attributes["good"]
    attributes |= {
        "two": (good, good),
        "two tensors": (good + field(5, whole),),
        "number": (field(1, b"value") + b"\xa0\x01\x02" + field(5, whole),),
        "bad text": (good + field(1, b"\xff"),),
    }
    nodes = {
        name: field(2, b"E") + field(4, b"Constant") + b"".join(field(5, each) for each in several)
        for name, several in attributes.items()
    }
    nodes |= {
        "bad name": field(2, b"\xff\xfe") + field(4, b"Constant") + field(5, good),
        "taken": field(2, b"other") + field(4, b"Constant") + field(5, good),
        "unnamed": field(2, b"") + field(4, b"Constant") + field(5, good),
        "nothing": field(4, b"Constant") + field(5, good),
        "long": field(2, b"x" * 100_000) + field(4, b"Constant") + field(5, good),
    }
    made = onnx_models.model([helper.make_node("Gather", ["E", "ids"], ["rows"])])
    del made.graph.initializer[0]
    paths = []
    for name, node in nodes.items():
        graph = field(1, node) + made.graph.SerializeToString()
        head = made.__class__(ir_version=8, opset_import=made.opset_import).SerializeToString()
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(head + field(7, graph))
    good_one = paths.pop(0)
    assert_harmless(tmp_path, (job for path in paths for job in both(path)), codes=(2, 3), modules=ONNX)
    assert_good(tmp_path, good_one, modules=ONNX)


# ---- tokenizers


WORDS = {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, "unk_token": "[UNK]"}
TOKENIZERS = {
    "no model": {"model": None},
    "no such unknown": {"model": {**WORDS, "vocab": {"a": 0}}},
    "ids without end": {"model": {**WORDS, "vocab": {"[UNK]": 0, "a": 4_000_000_000}}},
    "negative ids": {"model": {**WORDS, "vocab": {"[UNK]": 0, "a": -1}}},
    "merges of nothing": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
    "no pieces": {"model": {"type": "Unigram", "vocab": [], "unk_id": 5}},
    "half an expression": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed", "invert": False}
    },
    "half a map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a map beyond its end": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}},
    "a map that leads out": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "a template of nothing": {
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [], "special_tokens": {},
        }
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "escapes": {"model": {**WORDS, "vocab": {"\x1b[2J": 0}, "unk_token": "\x1b[2J"}},
    "a library of its own": {"model": {"type": "\x1b[2J", "module": "os", "class": "system"}},
}  # fmt: skip


def test_row_57_tokenizers_that_are_broken(tmp_path):
    """However the library that reads them fails, there is one of our errors, and nothing is run."""
    good = {"version": "1.0", "model": WORDS, "pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "corpus.txt").write_text("a b\nb c\n" * 20)
    jobs = []
    for number, changes in enumerate([{}, *TOKENIZERS.values()]):
        path = directory(tmp_path / str(number), [{"model.embed_tokens.weight": table()}], vocab_size=64)
        (path / "tokenizer.json").write_text(json.dumps({**good, **changes}))
        jobs.append(("report", path, "--corpus", tmp_path / "corpus.txt"))
    before = contents(tmp_path)
    first, *others = commands(tmp_path, 8 * ROOM, jobs, COUNTING)
    assert first.code == 0, first
    for name, end in zip(TOKENIZERS, others, strict=True):
        assert end.code in (0, 2, 3), (name, end)
        if end.code:
            # Where its Rust code panics, the library itself has printed so before.
            assert_one_line(end.stderr.splitlines()[-1], "")
        assert_plain(end.stdout)
    assert contents(tmp_path) == before


def _many(count, made):
    return "[" + ",".join(map(made, range(count))) + "]"


def _scores(made):
    scored = _many(64, lambda i: f'["t{i}",{made(i)}]')
    return f'{{"model":{{"vocab":{scored}}}}}'


def _tokens(model="", behind=""):
    """64 whole words, with more members of the model, and behind it."""
    words = ",".join(f'"t{37 * i % 64}":{i}' for i in range(64))
    return f'{{"model":{{"vocab":{{{words}}}{model}}}{behind}}}'


LIES = {
    "infinite scores": _scores(lambda i: "-1e999" if i % 2 else "NaN"),
    "scores like 1e300": _scores(lambda i: f"-1e{300 + i % 8}"),
    "scores of all digits": _scores(lambda _: "-" + "9" * 400),
    "a list like no other": '{"model":{"vocab":[["t",0,0],["u"]]}}',
    "ids without end": '{"model":{"vocab":{"a":4000000000000}}}',
    "added before the begin": _tokens(behind=',"added_tokens":[{"id":-2,"content":"x"}]'),
    "added of other types": _tokens(behind=',"added_tokens":[{"id":[1],"content":"x"}]'),
    "no list of added": _tokens(behind=',"added_tokens":7'),
    "merges of other types": _tokens(',"merges":[1,null,["t1"],["t1",2],"t1","t 1"]'),
    "endless merges": _tokens(f',"merges":{_many(200_000, lambda _: "[]")}'),
    "merges of megabytes": _tokens(f',"merges":["{"t" * (1 << 20)} {"u" * (1 << 20)}"]'),
    "tokens of megabytes": '{"model":{"vocab":{"' + "[" * (1 << 20) + '":0,"' + "<" * (1 << 20) + '":1}}}',
    "a tower of processors": _tokens(behind=',"post_processor":' + '{"processors":[' * 400 + "]}" * 400),
    "a template of thousands": _tokens(
        behind=',"post_processor":{"single":'
        + _many(60_000, '{{"SpecialToken":{{"id":"s{}"}}}}'.format)
        + "}"
    ),
    "a template of other types": _tokens(
        behind=',"post_processor":{"single":[{"SpecialToken":{"id":[1]}},{"SpecialToken":7},null],"cls":[[1]]}'
    ),
    "no depth": "[" * 200_000,
    "code": '{"model":{"type":"os.system","vocab":{"$(touch x)":0},"class":"subprocess.Popen"}}',
}
"""Texts of a tokenizer.json that are no vocabulary of the table, or one that nobody has."""


def test_row_123_vocabularies_that_lie(tmp_path):
    """A run that does not ask for the vocabulary ends well, and one that does is refused at most."""
    jobs = []
    for number, text in enumerate(LIES.values()):
        path = directory(tmp_path / str(number), [{"model.embed_tokens.weight": table()}], vocab_size=64)
        (path / "tokenizer.json").write_text(text)
        pair = ("factorize", path, "--method", "lplr", "--ratio", 0.5, "--dry-run")
        jobs += [pair, (*pair, "--weights", "auto")]
    before = contents(tmp_path)
    ended = commands(tmp_path, ROOM, jobs)
    for name, usual, asked in zip(LIES, ended[::2], ended[1::2], strict=True):
        assert usual.code == 0, (name, usual)
        assert asked.code in (0, 3), (name, asked)
        if asked.code:
            assert_one_line(asked.stderr, "")
            assert "; so all rows count alike" in usual.stderr
        assert "out of memory" not in usual.stderr
        assert_plain(usual.stderr)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", '{"chat_template":"' + "<[" * (1 << 20) + '","eos_token":[[7]]}'),
        ("tokenizer_config.json", '{"chat_template":[[{}]],"bos_token":{"content":{}}}'),
        ("tokenizer_config.json", "{"),
        ("chat_template.jinja", "<|" * (1 << 21) + "{% import os %}\xff"),
    ],
)
def test_row_124_settings_of_tokenizers_that_lie(tmp_path, name, text):
    """What stands beside the vocabulary is read as plain text, in little memory; nothing in it runs."""
    path = directory(tmp_path / "m", [{"model.embed_tokens.weight": table()}], vocab_size=64)
    (path / "tokenizer.json").write_text(_tokens())
    (path / name).write_bytes(text.encode("latin-1"))
    pair = ("factorize", path, "--method", "lplr", "--ratio", 0.5, "--dry-run")
    usual, asked = commands(tmp_path, ROOM, [pair, (*pair, "--weights", "auto")])
    assert usual.code == 0, usual
    assert asked.code == (3 if text == "{" else 0), asked
