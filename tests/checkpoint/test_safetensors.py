"""The safetensors reader and writer, with the safetensors library as oracle, and rows 1–14 of BAD_INPUTS."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from helpers.checkpoints import (
    assert_corrupt,
    assert_refused,
    contents,
    entry,
    header,
    raw,
    run,
    stored,
    succeed,
    table,
)
from helpers.compressed_models import IDS, D, V, gpt2, low_rank
from helpers.refusals import refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import embcompress
from embcompress.checkpoint.base import Edit
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.storage.rawio import copy_range, read_exact

# Every dtype that the library writes from torch tensors, with its name in the header.
TORCH_TYPES = {kind: name for name, kind in safetensors.torch._TYPES.items()}
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

NO_EDIT = Edit(frozenset(), ())
RECORD = TableRecord(
    name="embedding.weight",
    shape=(64, 16),
    dtype="F32",
    method="svd",
    rank=4,
    stored_dtype="F32",
    bits=32,
    ratio=0.6875,
    relative_error=0.5,
    parts=("0.weight", "1.weight"),
)


@st.composite
def tensors(draw):
    """A tensor of any type and of up to three dimensions, empty and scalar ones included; any bits."""
    kind = draw(st.sampled_from(sorted(TORCH_TYPES, key=str)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    nbytes = int(np.prod(shape, dtype=int)) * kind.itemsize
    data = draw(st.binary(min_size=nbytes, max_size=nbytes))
    if kind == torch.bool:
        data = bytes(byte & 1 for byte in data)
    return (
        torch.frombuffer(bytearray(data or b"\0" * 16), dtype=torch.uint8)[:nbytes].view(kind).reshape(shape)
    )


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda text: text.isprintable() and text != "__metadata__"
)
files = st.dictionaries(names, tensors(), min_size=1, max_size=6)
texts = st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=12), max_size=3)


def replacing(name, *shape_of_new, dtype="F32", seed=1):
    """An edit that replaces ``name`` with ``X.0.weight``, and the new values."""
    values = np.random.default_rng(seed).standard_normal(shape_of_new).astype(np.float32)
    half = len(values) // 2
    new = NewTensor(
        f"{name}.new", DTYPES[dtype], values.shape, name, lambda: iter((values[:half], values[half:]))
    )
    return Edit(frozenset({name}), (new,)), values


# ---- reading


@settings(max_examples=60, deadline=None)
@given(held=files, metadata=texts)
def test_headers_say_what_the_library_wrote(tmp_path_factory, held, metadata):
    """Names, types, shapes and sizes are those the library stored, for every type torch has."""
    assume(held.keys().isdisjoint(metadata.values()))  # or they are aliases
    path = tmp_path_factory.mktemp("read") / "a.safetensors"
    safetensors.torch.save_file(held, path, metadata=metadata)
    with Safetensors.open(path) as checkpoint:
        assert {
            name: (info.dtype.name, info.shape, info.nbytes) for name, info in checkpoint.tensors.items()
        } == {
            name: (TORCH_TYPES[t.dtype], tuple(t.shape), t.numel() * t.itemsize) for name, t in held.items()
        }
        assert checkpoint.size == path.stat().st_size


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(FLOATS, key=str)),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5)),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_rows_are_the_values_the_library_reads(tmp_path_factory, kind, shape, seed, data):
    """Any block of rows of a table holds exactly the stored values, in float32 (float64 for F64)."""
    path = tmp_path_factory.mktemp("rows") / "a.safetensors"
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(kind)
    safetensors.torch.save_file({"pad": torch.zeros(3, dtype=torch.uint8), "t": values}, path)
    begin = data.draw(st.integers(0, shape[0]))
    end = data.draw(st.integers(begin, shape[0]))
    wide = torch.float64 if kind == torch.float64 else torch.float32
    with Safetensors.open(path) as checkpoint:
        found = checkpoint.rows("t", begin, end)
    np.testing.assert_array_equal(found, values[begin:end].to(wide).numpy(), strict=True)


def test_a_table_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    """Bytes that vanish after the header was checked are reported with the place, not read as zeros."""
    path = tmp_path / "a.safetensors"
    save_file({"t": table()}, path)
    with Safetensors.open(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 100)
        with refused(InputError, "100"):
            checkpoint.rows("t", 0, 64)


def test_a_file_is_recognized_by_its_header_whatever_its_suffix(tmp_path):
    """The suffix is trusted so that errors can be precise; without it the first bytes decide."""
    path = tmp_path / "weights"
    save_file({"t": table()}, path)
    assert Safetensors.recognizes(path)
    (tmp_path / "text").write_text("hello, this is no checkpoint")
    assert not Safetensors.recognizes(tmp_path / "text")
    assert not Safetensors.recognizes(tmp_path)


# ---- writing


@settings(max_examples=60, deadline=None)
@given(held=files, metadata=texts, data=st.data())
def test_what_is_not_edited_is_carried_byte_for_byte(tmp_path_factory, held, metadata, data):
    """After an edit the library finds the new tensor, every other one unchanged, and the same metadata."""
    assume(held.keys().isdisjoint(metadata.values()))  # or they are aliases
    folder = tmp_path_factory.mktemp("write")
    safetensors.torch.save_file(held, folder / "a.safetensors", metadata=metadata)
    victim = data.draw(st.sampled_from(sorted(held)))
    edit, values = replacing(victim, 5, 3)
    with Safetensors.open(folder / "a.safetensors") as checkpoint:
        checkpoint.write(folder / "b.safetensors", edit, None)
    before, after = stored(folder / "a.safetensors"), stored(folder / "b.safetensors")
    before.pop(victim)
    assert after.pop(f"{victim}.new") == ("F32", (5, 3), values.tobytes())
    assert after == before
    with safe_open(folder / "b.safetensors", framework="numpy") as written:
        assert (written.metadata() or {}) == metadata
    begin, entries = header(folder / "b.safetensors")
    entries.pop("__metadata__", None)
    for found in entries.values():
        unit = max(1, DTYPES[found["dtype"]].bits // 8)
        assert (begin + found["data_offsets"][0]) % min(unit, 8) == 0  # complex128 is two of 8 bytes


def test_tensors_are_aligned_even_where_the_input_was_not(tmp_path):
    """Every tensor begins at a multiple of its element size, so that readers can map it."""
    source = raw(
        tmp_path / "a.safetensors",
        {
            "bytes": entry("U8", [3], 0, 3),
            "doubles": entry("F64", [2], 3, 19),
            "half": entry("F16", [1], 19, 21),
            "words": entry("I32", [1], 21, 25),
        },
        bytes(range(25)),
    )
    with Safetensors.open(source) as checkpoint:
        checkpoint.write(tmp_path / "b.safetensors", NO_EDIT, None)
    begin, entries = header(tmp_path / "b.safetensors")
    offsets = {name: begin + found["data_offsets"][0] for name, found in entries.items()}
    assert offsets["doubles"] % 8 == offsets["words"] % 4 == offsets["half"] % 2 == 0
    assert stored(tmp_path / "b.safetensors") == stored(source)


def test_golden_bytes_of_a_small_file(tmp_path):
    """The layout on disk: length, compact JSON padded to 8 bytes, wide types before narrow ones."""
    source = raw(
        tmp_path / "a.safetensors",
        {
            "__metadata__": {"format": "pt"},
            "b": entry("U8", [2], 0, 2),
            "t": entry("F32", [1, 1], 2, 6),
        },
        b"\x07\x08\0\0\0\0",
    )
    one = np.ones((2, 1), np.float32)
    new = NewTensor("é", DTYPES["F16"], (2, 1), "t", lambda: iter([one]))
    with Safetensors.open(source) as checkpoint:
        checkpoint.write(tmp_path / "b.safetensors", Edit(frozenset({"t"}), (new,)), None)
    assert (tmp_path / "b.safetensors").read_bytes() == (
        b"\x90\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt"},'
        b'"\xc3\xa9":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
        b"    \x00\x3c\x00\x3c\x07\x08"
    )


def test_a_file_of_which_nothing_remains_is_still_valid(tmp_path):
    """Removing the only tensor leaves a file that the library reads as empty."""
    save_file({"t": table()}, tmp_path / "a.safetensors")
    with Safetensors.open(tmp_path / "a.safetensors") as checkpoint:
        checkpoint.write(tmp_path / "b.safetensors", Edit(frozenset({"t"}), ()), None)
    assert stored(tmp_path / "b.safetensors") == {}


def test_amending_changes_the_description_and_nothing_else(tmp_path):
    """A longer record fits in the room that was kept; data, other metadata and length stay."""
    save_file(
        {"embedding.weight": table(), "bias": table(1, 3)}, tmp_path / "a.safetensors", {"format": "pt"}
    )
    first = Description("0", {"a.safetensors": "0" * 64}, (RECORD,))
    second = replace(
        first,
        source={"a.safetensors": "f" * 64},
        tables=(replace(RECORD, relative_error=0.12345678901234567),),
    )
    path = tmp_path / "b.safetensors"
    with Safetensors.open(tmp_path / "a.safetensors") as checkpoint:
        checkpoint.write(path, NO_EDIT, first)
    before = path.read_bytes()
    begin, old = header(path)
    Safetensors.amend(path, second)
    after = path.read_bytes()
    assert len(after) == len(before)
    assert after[:8] + after[begin:] == before[:8] + before[begin:]
    new = header(path)[1]
    assert json.loads(new["__metadata__"].pop("embcompress")) != json.loads(
        old["__metadata__"].pop("embcompress")
    )
    assert new == old
    with Safetensors.open(path) as checkpoint:
        assert checkpoint.description == second


# ---- names that share memory, as safetensors.torch.save_model notes them


@pytest.fixture
def shared(tmp_path):
    """A file with one table under three names, one of them stored."""
    noted = {"wte": "head", "decoder.wte": "head", "format": "head", "about": "the head", "bias": "head"}
    path = tmp_path / "a.safetensors"
    save_file({"head": table(), "bias": table(1, 3)}, path, noted)
    with Safetensors.open(path) as checkpoint:
        yield checkpoint


def test_aliases_are_names_for_stored_tensors(shared):
    """They are read from the metadata and have the stored tensor's rows, but are not stored themselves."""
    assert shared.aliases == {"decoder.wte": "head", "wte": "head"}
    assert {n: (i.name, i.shape) for n, i in shared.tensors.items() if n != "bias"} == {
        n: (n, (64, 16)) for n in ("head", "wte", "decoder.wte")
    }
    np.testing.assert_array_equal(shared.rows("wte", 3, 9), table()[3:9])


@pytest.mark.parametrize("alias", ["\x1b[2J", "x" * 2000])
def test_names_that_cannot_be_shown_are_no_aliases(tmp_path, alias):
    """Metadata may hold any text; what cannot be a tensor's name is left there."""
    save_file({"head": table()}, tmp_path / "a.safetensors", {alias: "head"})
    with Safetensors.open(tmp_path / "a.safetensors") as checkpoint:
        assert (checkpoint.aliases, [*checkpoint.tensors]) == ({}, ["head"])


@pytest.mark.parametrize(
    ("removed", "stays", "noted"),
    [
        ((), "head", {"wte": "head", "decoder.wte": "head"}),
        (("wte",), "head", {"decoder.wte": "head"}),
        (("head",), "decoder.wte", {"wte": "decoder.wte"}),
        (("head", "decoder.wte"), "wte", {}),
        (("head", "decoder.wte", "wte"), None, {}),
    ],
)
def test_what_is_shared_is_stored_once_under_a_name_that_stays(shared, tmp_path, removed, stays, noted):
    """Removing a name drops only that name; the bytes go with the last one."""
    edit = Edit(frozenset(removed), ())
    shared.write(tmp_path / "b.safetensors", edit, None)
    assert shared.size_after(edit, None) == (tmp_path / "b.safetensors").stat().st_size
    written = stored(tmp_path / "b.safetensors")
    assert {*written} == {"bias", stays} - {None}
    if stays:
        assert written[stays] == ("F32", (64, 16), table().tobytes())
    metadata = header(tmp_path / "b.safetensors")[1]["__metadata__"]
    assert metadata == {"format": "head", "about": "the head", "bias": "head"} | noted


def test_aliases_of_new_tensors_are_noted(shared, tmp_path):
    """A tensor may replace an alias; its other names are noted like the old ones."""
    values = table(5, 3)
    new = NewTensor("wte.0", DTYPES["F32"], (5, 3), "wte", lambda: iter([values]))
    edit = Edit(frozenset({"wte", "head", "decoder.wte"}), (new,), {"head.0": "wte.0"})
    shared.write(tmp_path / "b.safetensors", edit, None)
    with Safetensors.open(tmp_path / "b.safetensors") as written:
        assert written.aliases == {"head.0": "wte.0"}
        np.testing.assert_array_equal(written.rows("head.0", 0, 5), values)
    assert {*stored(tmp_path / "b.safetensors")} == {"wte.0", "bias"}


def test_a_model_saved_by_save_model_is_factorized_loaded_and_expanded(tmp_path):
    """GPT-2 is stored under its head's name alone, and is its token table all the same."""
    torch.manual_seed(0)
    model = gpt2().eval()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(model, path)
    assert "transformer.wte.weight" not in stored(path), "or nothing is shared"
    result = embcompress.factorize(path, rank=6, output=tmp_path / "small.safetensors")
    (found,) = result.tables
    assert (found.name, found.ties) == ("transformer.wte.weight", ("lm_head.weight",))
    saved = 4 * (V * D - 6 * (V + D))
    assert path.stat().st_size - result.output.stat().st_size > saved - 2000, "the table was stored once"

    expected = low_rank(model, ["transformer.wte.weight"])
    with torch.no_grad():
        loaded = embcompress.load(gpt2(), result.output).eval()
        torch.testing.assert_close(loaded(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)
        dense = embcompress.expand(result.output, output=tmp_path / "dense.safetensors").output
        fresh = gpt2().eval()
        assert isinstance(fresh, transformers.GPT2LMHeadModel)
        safetensors.torch.load_model(fresh, dense, strict=True)
        torch.testing.assert_close(fresh(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=1e-5)
    assert header(dense)[1]["__metadata__"] == {"lm_head.weight": "transformer.wte.weight"}
    assert {*stored(dense)} ^ {*stored(path)} == {"transformer.wte.weight", "lm_head.weight"}


def test_a_copy_without_the_kernel_gives_the_same_bytes(tmp_path, monkeypatch):
    """Where copy_file_range cannot cross file systems, a buffer copies the same."""
    save_file({"t": table(), "big": table(500, 40), "tail": table(1, 7)}, tmp_path / "a.safetensors")
    edit, _ = replacing("t", 4, 2)

    def cannot(*_args, **_options):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with Safetensors.open(tmp_path / "a.safetensors") as checkpoint:
        checkpoint.write(tmp_path / "kernel.safetensors", edit, None)
        monkeypatch.setattr(os, "copy_file_range", cannot)
        checkpoint.write(tmp_path / "buffer.safetensors", edit, None)
    kernel = (tmp_path / "kernel.safetensors").read_bytes()
    assert (tmp_path / "buffer.safetensors").read_bytes() == kernel


@pytest.mark.parametrize("in_kernel", [True, False])
def test_an_input_that_ends_while_it_is_copied_is_an_error(tmp_path, monkeypatch, in_kernel):
    """Neither way of copying turns missing bytes into an endless loop or a short output."""
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    (tmp_path / "source").write_bytes(b"0123456789")
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        refused(InputError, "10", "3"),
    ):
        copy_range(source.fileno(), 4, 9, target.fileno())


def test_a_copy_error_of_the_disk_is_not_taken_for_a_missing_feature(tmp_path):
    """Only errors that mean "cannot be done in the kernel" lead to the buffer; others are raised."""
    (tmp_path / "source").write_bytes(b"0123456789")
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "source").open("rb") as not_writable,
        pytest.raises(OSError, match="Bad file descriptor"),
    ):
        copy_range(source.fileno(), 0, 5, not_writable.fileno())


def test_progress_of_a_copy_adds_up(tmp_path):
    """The steps reported to a progress bar sum to the number of bytes copied."""
    (tmp_path / "source").write_bytes(bytes(9 << 20))
    steps = []
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        copy_range(source.fileno(), 1, (9 << 20) - 1, target.fileno(), steps.append)
    assert sum(steps) == (9 << 20) - 1
    assert len(steps) > 1


def test_reading_nothing_reads_nothing(tmp_path):
    """An empty array is filled without touching the file."""
    (tmp_path / "source").write_bytes(b"")
    with (tmp_path / "source").open("rb") as source:
        read_exact(source.fileno(), 0, np.empty((0, 4), np.float32), "source")


# ---- rows 1–14 of BAD_INPUTS: what a stranger's file can be


GOOD = table().tobytes()
EMBEDDING = entry("F32", [64, 16], 0, len(GOOD))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_row_01_empty_file(path):
    """An empty file is named as such."""
    path.write_bytes(b"")
    assert_corrupt(path, "0 bytes")


def test_row_01_a_few_bytes(path):
    """A file too short for its own length field is refused with its size."""
    path.write_bytes(b"\x08\0\0")
    assert_corrupt(path, "3 bytes")


def test_row_02_git_lfs_pointer(path):
    """The message for a git-lfs pointer says how to get the file."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4096\n")
    assert_corrupt(path, "git lfs pull")


def test_row_03_header_length_of_2_to_the_63(path):
    """An absurd header length is refused before anything of that size is read."""
    raw(path, {"embedding.weight": EMBEDDING}, GOOD, length=1 << 63)
    assert_corrupt(path, "9,223,372,036,854,775,808")


def test_row_04_header_beyond_the_end(path):
    """A header longer than the file is refused with both lengths."""
    raw(path, {"embedding.weight": EMBEDDING}, GOOD, length=90_000)
    assert_corrupt(path, "header length 90,000, but the file has 4,")


def test_row_05_legitimate_header_over_100_mb(path):
    """A header longer than the format's own limit is refused with the limit and a remedy."""
    raw(path, {"embedding.weight": EMBEDDING}, length=100_000_001)
    os.truncate(path, 100_000_009)  # sparse: it takes no room on the disk
    assert_corrupt(path, "limit 100,000,000")


def test_row_06_truncated_data(path):
    """A truncated download is refused with the bytes that are there and those described."""
    raw(path, {"embedding.weight": EMBEDDING}, GOOD[:-1])
    assert_corrupt(path, "4,095 bytes of data, the header describes 4,096")


def test_row_07_trailing_bytes(path):
    """Bytes that belong to no tensor are refused, not dropped."""
    raw(path, {"embedding.weight": EMBEDDING}, GOOD + b"!")
    assert_corrupt(path, "4,097 bytes of data, the header describes 4,096")


@pytest.mark.parametrize(
    ("start", "says"), [(4092, "overlaps the tensor before it"), (4100, "leaves a hole before it")]
)
def test_row_08_overlapping_or_holed_offsets(path, start, says):
    """Tensors must lie one after another; the first that does not is named with its offset."""
    raw(
        path,
        {"embedding.weight": EMBEDDING, "bias": entry("F32", [2], start, start + 8)},
        GOOD + bytes(start + 8 - len(GOOD)),
    )
    assert_corrupt(path, says)
    assert_corrupt(path, f"bias begins at byte {start:,}")


def test_row_09_duplicate_keys(path):
    """A name that occurs twice is refused, since readers differ in which one they use."""
    one = json.dumps(EMBEDDING)
    raw(path, f'{{"embedding.weight":{one},"embedding.weight":{one}}}'.encode(), GOOD)
    assert_corrupt(path, "key embedding.weight appears twice")


@pytest.mark.parametrize(
    "shape",
    [[-64, -16], [64, -16], [1 << 63, 2], [1 << 62, 1 << 62, 0], [64.0, 16], [True, 1024], "64x16", None],
    ids=str,
)
def test_row_10_negative_or_overflowing_shape(path, shape):
    """Only lists of sizes whose product stays below 2^63 are shapes."""
    raw(
        path,
        {
            "embedding.weight": EMBEDDING,
            "bad": {"dtype": "F32", "shape": shape, "data_offsets": [len(GOOD), len(GOOD)]},
        },
        GOOD,
    )
    assert_corrupt(path, "tensor bad: ")


@pytest.mark.parametrize("offsets", [[0], [4096, 0], [0, -1], [0, 4095], [0, 1 << 64], {}], ids=str)
def test_row_10_offsets_that_do_not_fit_the_shape(path, offsets):
    """Offsets must span exactly the bytes of the shape."""
    raw(path, {"embedding.weight": {**EMBEDDING, "data_offsets": offsets}}, GOOD)
    assert_corrupt(path, "tensor embedding.weight: ")


@pytest.mark.parametrize("dtype", ["F7", "f32", "", None, ["F32"], "\x1b[31mF32"], ids=repr)
def test_row_11_unknown_dtype(path, dtype):
    """A type with no known size is refused with the list of those that have one."""
    raw(path, {"embedding.weight": {**EMBEDDING, "dtype": dtype}}, GOOD)
    assert_corrupt(path, "unknown dtype")


def test_row_11_sub_byte_elements_that_fill_no_byte(path):
    """Three elements of four bits do not fill whole bytes."""
    raw(path, {"embedding.weight": EMBEDDING, "q": entry("F4", [3], 4096, 4098)}, GOOD + b"\0\0")
    assert_corrupt(path, "3 elements of 4 bits")


def test_row_11_sub_byte_tensors_are_carried(path):
    """Packed four- and six-bit tensors that fill their bytes are carried as they are."""
    packed = bytes(range(3 + 4))
    raw(
        path,
        {
            "embedding.weight": EMBEDDING,
            "six": entry("F6_E2M3", [4], 4096, 4099),
            "four": entry("F4", [2, 4], 4099, 4103),
        },
        GOOD + packed,
    )
    succeed("factorize", path, "--rank", 4)
    output = path.with_name("model-svd-rank-4.safetensors")
    begin, entries = header(output)
    data = output.read_bytes()[begin:]
    found = {name: data[slice(*entries[name]["data_offsets"])] for name in ("six", "four")}
    assert found == {"six": packed[:3], "four": packed[3:]}


@pytest.mark.parametrize(
    "metadata", [{"format": 1}, {"format": None}, ["pt"], "pt", {"x": {"y": "z"}}], ids=str
)
def test_row_12_metadata_that_is_not_strings(path, metadata):
    """Metadata other than text is refused, since it could not be copied."""
    raw(path, {"__metadata__": metadata, "embedding.weight": EMBEDDING}, GOOD)
    assert_corrupt(path, "__metadata__ must map text to text")


@pytest.mark.parametrize("where", ["key", "value"])
def test_row_12_metadata_that_cannot_be_encoded(path, where):
    """Half of a surrogate pair, which JSON can escape but UTF-8 cannot hold, is refused."""
    held = '{"\\ud800":"x"}' if where == "key" else '{"x":"\\ud800"}'
    raw(path, f'{{"__metadata__":{held},"embedding.weight":{json.dumps(EMBEDDING)}}}'.encode(), GOOD)
    assert_corrupt(path, "surrogates not allowed")


def test_row_12_a_record_of_ours_that_cannot_be_read(path):
    """A broken embcompress record is refused rather than ignored."""
    raw(path, {"__metadata__": {"embcompress": "{}"}, "embedding.weight": EMBEDDING}, GOOD)
    assert_corrupt(path, "the embcompress record cannot be read")


def test_row_12_a_record_of_a_newer_layout(path):
    """A file from a later version is refused with both layouts, not misread."""
    text = json.dumps({"layout": 99, "version": "9", "source": {}, "tables": []})
    raw(path, {"__metadata__": {"embcompress": text}, "embedding.weight": EMBEDDING}, GOOD)
    assert_corrupt(path, "layout 99, this version reads up to 1")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
def test_row_13_deeply_nested_json(path, opening):
    """Nesting that would exhaust the stack is an error like any other."""
    raw(path, b'{"a":' + opening * 200_000)
    assert_corrupt(path, "nested too deep")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", '{"é":1}'.encode("latin-1"), "{}".encode("utf-16-le")],
    ids=repr,
)
def test_row_13_headers_that_are_no_utf_8_json_object(path, text):
    """A header is a JSON object in UTF-8 and nothing else."""
    raw(path, text, GOOD)
    assert_corrupt(path, "the header is n")


@pytest.mark.parametrize("held", [[], "F32", None, {"dtype": "F32", "shape": [1]}], ids=str)
def test_row_13_entries_that_describe_no_tensor(path, held):
    """Each entry is an object with dtype, shape and offsets."""
    raw(path, {"embedding.weight": EMBEDDING, "odd": held}, GOOD)
    assert_corrupt(path, "tensor odd: ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("\x1b[2Jgone", r"\x1b[2J"),
        ("two\nlines", r"two\nlines"),
        ("right\u202eleft", r"\u202e"),
        ("\ud800", "surrogates not allowed"),
        ("x" * 1_000_000, "1,000,000 characters"),
    ],
    ids=["escape", "newline", "bidi", "surrogate", "1MB"],
)
def test_row_14_hostile_names(path, name, says):
    """A name that would control the terminal or flood it is refused, shown escaped."""
    raw(path, {"embedding.weight": EMBEDDING, name: entry("F32", [0], 4096, 4096)}, GOOD)
    assert_corrupt(path, says)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../b", "[/bold]embed", "C:\\x"])
def test_row_14_names_that_look_like_paths_are_only_names(tmp_path, name):
    """A tensor's name is no path and no markup: it is carried, and shown as it is."""
    path = tmp_path / "deep" / "down" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file({name: table(3, 3), "embedding.weight": table()}, path)
    before = contents(tmp_path)
    succeed("factorize", path, "--rank", 4)
    output = path.with_name("model-svd-rank-4.safetensors")
    assert stored(output)[name] == stored(path)[name]
    assert {*contents(tmp_path)} - {*before} == {str(output.relative_to(tmp_path))}
    save_file({f"{name}.embedding.weight": table()}, path)
    assert f"{name}.embedding" in run("report", path).stdout


def test_no_command_takes_what_does_not_exist_or_is_no_checkpoint(tmp_path):
    """A missing path and a pipe are usage errors; a text file is an unknown format."""
    assert_refused(tmp_path, "report", tmp_path / "nowhere", code=2, says="does not exist")
    os.mkfifo(tmp_path / "pipe")
    result = run("report", tmp_path / "pipe")
    assert (result.exit_code, "is not a regular file" in result.stderr) == (2, True)
    (tmp_path / "pipe").unlink()
    (tmp_path / "notes.txt").write_text("some notes, and more of them")
    assert_corrupt(tmp_path / "notes.txt", "is not a known checkpoint")


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_the_written_factors_are_those_of_numpys_svd(tmp_path, path, dtype):
    """The product of the factors, read by the library, is the best approximation of its rank."""
    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    dense = torch.from_numpy(table(200, 24)).to(kind)
    safetensors.torch.save_file({"embedding.weight": dense, "rest": torch.arange(5)}, path)
    succeed("factorize", path, "--rank", 6, "-o", tmp_path / "small.safetensors")
    written = safetensors.torch.load_file(tmp_path / "small.safetensors")
    assert {*written} == {"embedding.0.weight", "embedding.1.weight", "rest"}
    left, right = written["embedding.0.weight"], written["embedding.1.weight"]
    assert (left.dtype, tuple(left.shape), tuple(right.shape)) == (kind, (200, 6), (24, 6))
    exact = dense.double().numpy()
    u, s, vh = np.linalg.svd(exact, full_matrices=False)
    best = np.linalg.norm((u[:, :6] * s[:6]) @ vh[:6] - exact)
    error = np.linalg.norm(left.double().numpy() @ right.double().numpy().T - exact)
    assert error == pytest.approx(best, rel=1e-5 if kind in {torch.float64, torch.float32} else 1e-3)
