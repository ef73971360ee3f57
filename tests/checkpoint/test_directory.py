"""Hugging Face directories: what is carried, rewritten and left out, and rows 25–30 of BAD_INPUTS."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import (
    assert_refused,
    contents,
    directory,
    entry,
    raw,
    run,
    stored,
    succeed,
    table,
    write_index,
)
from safetensors.numpy import load_file, save_file

TABLE = "model.embed_tokens.weight"
GUARD = ("F32", (0,), b"")


def shards():
    """A model in three shards: the table, an untouched one, and one with the norm and a bias."""
    return [
        {TABLE: table(96, 16), "model.layers.0.weight": table(16, 16, seed=1)},
        {"model.layers.1.weight": table(16, 16, seed=2)},
        {"model.norm.weight": table(1, 16, seed=3)[0], "lm_head.weight": table(96, 16, seed=4)},
    ]


@pytest.fixture
def model(tmp_path):
    return directory(tmp_path / "model", shards(), vocab_size=96, torch_dtype="float32")


def every_tensor(path):
    """Name -> tensor over all shards, read by the library; no name twice."""
    parts = [stored(file) for file in sorted(path.glob("*.safetensors"))]
    merged = {name: value for part in parts for name, value in part.items()}
    assert len(merged) == sum(map(len, parts))
    return merged


# ---- what is written


def test_the_index_says_what_the_shards_hold(tmp_path, model):
    """weight_map, total_size and total_parameters of the output are those of its shards."""
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    index = json.loads((tmp_path / "small/model.safetensors.index.json").read_text())
    held = {name: file.name for file in (tmp_path / "small").glob("*.safetensors") for name in stored(file)}
    tensors = every_tensor(tmp_path / "small")
    assert index["weight_map"] == held
    assert index["metadata"] == {
        "total_size": sum(len(data) for _, _, data in tensors.values()),
        "total_parameters": sum(len(data) // 4 for _, _, data in tensors.values()),
    }


def test_other_metadata_of_the_index_is_kept(tmp_path, model):
    """Entries of other writers stay in the index, and no new ones are added."""
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "metadata": {"note": "käse"}}))
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    written = json.loads((tmp_path / "small" / path.name).read_text())["metadata"]
    assert written.keys() == {"note", "total_size"}
    assert written["note"] == "käse"


def test_only_the_shard_of_the_table_changes(tmp_path, model):
    """Shards without the table are the same bytes, and so is every other tensor of its shard."""
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    before, after = contents(model), contents(tmp_path / "small")
    assert {*after} == {*before, "README.md"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"}
    old, new = every_tensor(model), every_tensor(tmp_path / "small")
    assert {name: new.get(name) for name in old if name != TABLE} == {
        name: value for name, value in old.items() if name != TABLE
    }
    assert {*new} - {*old} == {"model.embed_tokens.0.weight", "model.embed_tokens.1.weight"}
    assert new[TABLE] == GUARD


def test_config_json_gains_the_record_and_nothing_else(tmp_path, model):
    """config.json keeps its values and order; quantization_config tells loaders how it is compressed."""
    path = model / "config.json"
    path.write_text(
        '{"architectures": ["X"], "e": 1e-05, "vocab_size": 96, "name": "naïve \\ud83d\\ude00", "none": null,'
        ' "nested": {"b": [1, 2.50, true], "a": {}}}'
    )
    before = json.loads(path.read_text())
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    after = json.loads((tmp_path / "small/config.json").read_text())
    record = after.pop("quantization_config")
    assert json.dumps(after) == json.dumps(before)
    assert record["quant_method"] == "embcompress"
    assert [t["name"] for t in record["tables"]] == [TABLE]
    assert {*record["source"]} == {file.name for file in model.glob("*.safetensors")}


def test_a_config_with_half_a_surrogate_pair_is_carried(tmp_path, model):
    """config.json is written in ASCII as transformers does, so that any string survives."""
    (model / "config.json").write_text('{"vocab_size": 96, "odd": "\\ud800"}')
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    assert json.loads((tmp_path / "small/config.json").read_text())["odd"] == "\ud800"


def test_everything_else_is_carried(tmp_path, model):
    """Tokenizer, subfolders, bytes of any kind, permissions and the files behind links come along."""
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling": true}')
    (model / "empty").mkdir()
    (model / "NOTES.md").write_bytes(b"\xff\xfe latin \xe9")
    (model / ".gitattributes").write_text("*.bin filter=lfs")
    (model / "run.sh").write_text("#!/bin/sh\n")
    (model / "run.sh").chmod(0o750)
    (tmp_path / "blob").write_text("vocabulary")
    (model / "vocab.txt").symlink_to(tmp_path / "blob")
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    small = tmp_path / "small"
    for name in ("1_Pooling/config.json", "NOTES.md", ".gitattributes", "run.sh", "tokenizer.json"):
        assert (small / name).read_bytes() == (model / name).read_bytes()
    assert (small / "run.sh").stat().st_mode & 0o777 == 0o750
    assert not (small / "vocab.txt").is_symlink()
    assert (small / "vocab.txt").read_text() == "vocabulary"


def test_weights_of_other_frameworks_are_left_out_and_named(tmp_path, model):
    """Files that hold the dense table are not copied, and a note on stderr says so."""
    (model / "onnx").mkdir()
    (model / "onnx/model.onnx").write_bytes(b"onnx")
    for name in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot"):
        (model / name).write_bytes(b"dense")
    result = succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    (note,) = [line for line in result.stderr.splitlines() if "left out" in line]
    for name in ("onnx/", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"):
        assert name in note
        assert not (tmp_path / "small" / name).exists()


def test_expand_restores_the_files_and_every_untouched_tensor(tmp_path, model):
    """The dense directory has the files, the config and the other tensors of the original."""
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")
    assert {*contents(tmp_path / "dense")} == {*contents(model), "README.md"}
    for name in ("config.json", "model.safetensors.index.json"):
        assert json.loads((tmp_path / "dense" / name).read_text()) == json.loads((model / name).read_text())
    old, new = every_tensor(model), every_tensor(tmp_path / "dense")
    assert {**old, TABLE: None} == {**new, TABLE: None}
    small = load_file(tmp_path / "small/model-00001-of-00003.safetensors")
    product = small["model.embed_tokens.0.weight"] @ small["model.embed_tokens.1.weight"].T
    dense = load_file(tmp_path / "dense/model-00001-of-00003.safetensors")[TABLE]
    np.testing.assert_allclose(dense, product, rtol=0, atol=1e-6)


def test_without_config_json_there_is_no_guard(tmp_path):
    """A plain folder with one weight file gives a plain folder."""
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file({"embedding.weight": table()}, plain / "weights.safetensors")
    succeed("factorize", plain, "--rank", 4, "-o", tmp_path / "small")
    assert {*stored(tmp_path / "small/weights.safetensors")} == {"embedding.0.weight", "embedding.1.weight"}
    succeed("report", tmp_path / "small", "--against", plain)
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")
    assert {*stored(tmp_path / "dense/weights.safetensors")} == {"embedding.weight"}


def test_a_directory_with_pytorch_model_bin(tmp_path):
    """Weights of torch.save in a directory are compressed and expanded like safetensors."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 64}')
    dense = torch.from_numpy(table())
    torch.save(
        {TABLE: dense, "lm_head.weight": dense, "norm.weight": torch.ones(16)}, model / "pytorch_model.bin"
    )
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    state = torch.load(tmp_path / "small/pytorch_model.bin", weights_only=True)
    assert torch.equal(state["norm.weight"], torch.ones(16))
    assert state[TABLE].shape == (0,)
    assert state["lm_head.0.weight"].data_ptr() == state["model.embed_tokens.0.weight"].data_ptr()
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")
    again = torch.load(tmp_path / "dense/pytorch_model.bin", weights_only=True)
    assert {*again} == {TABLE, "lm_head.weight", "norm.weight"}
    assert again["lm_head.weight"].data_ptr() == again[TABLE].data_ptr()


@pytest.mark.parametrize("counted", ["once", "each", "unstated"])
def test_torch_shards_with_a_tie_inside_one(tmp_path, counted):
    """Memory shared within a shard may be counted once or once a name; the output opens again."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 64}')
    dense = torch.from_numpy(table())
    parts = [{TABLE: dense, "lm_head.weight": dense}, {"norm.weight": torch.ones(16)}]
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        torch.save(part, model / file)
    total = {"once": 4096 + 64, "each": 2 * 4096 + 64}.get(counted)
    index = {
        "metadata": {"total_size": total} if total else {},
        "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part},
    }
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    written = json.loads((tmp_path / "small/pytorch_model.bin.index.json").read_text())
    assert written["metadata"]["total_size"] == 4 * (64 + 16) * 4 + 64
    assert {"lm_head.0.weight", "model.embed_tokens.0.weight"} < {*written["weight_map"]}
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")


def test_a_shard_that_held_only_a_copy_of_the_table_goes(tmp_path):
    """A tied head alone in its shard is dropped with the shard; expanding stores it with the table."""
    model = directory(tmp_path / "model", [{TABLE: table()}, {"lm_head.weight": table()}], vocab_size=64)
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    assert [f.name for f in (tmp_path / "small").glob("*.safetensors")] == [
        "model-00001-of-00002.safetensors"
    ]
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")
    dense = every_tensor(tmp_path / "dense")
    assert {*dense} == {TABLE, "lm_head.weight"}
    assert dense[TABLE] == dense["lm_head.weight"]
    index = json.loads((tmp_path / "dense/model.safetensors.index.json").read_text())
    assert {*index["weight_map"]} == {TABLE, "lm_head.weight"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "NaNNaN", "[" * 100_000, "version https://git-lfs.github.com/spec/v1\n"],
    ids=["empty", "cut", "list", "word", "deep", "lfs"],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_cannot_be_read_is_refused(tmp_path, model, name, text):
    """The message names a broken config.json or index and what is wrong."""
    (model / name).write_text(text)
    assert_refused(tmp_path, "factorize", model, "--rank", 4, code=3, says=name)


@pytest.mark.parametrize(
    "value",
    [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {TABLE: 1}}, {"weight_map": {TABLE: ""}}],
    ids=str,
)
def test_an_index_without_a_weight_map_is_refused(tmp_path, model, value):
    """An index must map names to shard files."""
    (model / "model.safetensors.index.json").write_text(json.dumps(value))
    assert_refused(tmp_path, "factorize", model, "--rank", 4, code=3, says="model.safetensors.index.json")


def test_a_directory_without_weights_or_with_a_choice_of_them_is_refused(tmp_path):
    """Without a standard name there must be exactly one weight file; the error lists what there is."""
    folder = tmp_path / "folder"
    folder.mkdir()
    assert_refused(tmp_path, "report", folder, code=2, says="no weight file")
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"embedding.weight": table()}, folder / name)
    assert_refused(tmp_path, "report", folder, code=2, says="a.safetensors, b.safetensors")


# ---- rows 25–29: indexes that lie


def test_row_25_missing_shard(tmp_path, model):
    """A shard that was not downloaded is named."""
    (model / "model-00002-of-00003.safetensors").unlink()
    says = "model-00002-of-00003.safetensors is missing"
    assert_refused(tmp_path, "factorize", model, "--rank", 4, code=3, says=says)
    assert_refused(tmp_path, "report", model, code=3, says=says)


def test_row_25_a_link_that_leads_nowhere(tmp_path, model):
    """A shard whose blob was removed from the cache is missing."""
    (model / "model-00002-of-00003.safetensors").unlink()
    (model / "model-00002-of-00003.safetensors").symlink_to(tmp_path / "gone")
    assert_refused(
        tmp_path, "factorize", model, "--rank", 4, code=3, says="00002-of-00003.safetensors is missing"
    )


def edit_index(model, **changes):
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes.pop("weights", {})
    index["metadata"] |= changes
    path.write_text(json.dumps(index))


def test_row_26_index_naming_absent_tensors(tmp_path, model):
    """A tensor that its shard does not hold is named with the shard."""
    edit_index(model, weights={"model.ghost.weight": "model-00002-of-00003.safetensors"})
    assert_refused(
        tmp_path,
        "factorize",
        model,
        "--rank",
        4,
        code=3,
        says="model.ghost.weight is in model-00002-of-00003",
    )


@pytest.mark.parametrize("total", [1, -1, "many", [], 10**30, float("nan")], ids=str)
def test_row_26_wrong_total_size(tmp_path, model, total):
    """The message has both the wrong total_size and that of the shards."""
    edit_index(model, total_size=total)
    held = sum(len(data) for _, _, data in every_tensor(model).values())
    assert_refused(
        tmp_path,
        "factorize",
        model,
        "--rank",
        4,
        code=3,
        says=f"total_size is {total}, the shards hold {held}",
    )


def test_row_26_a_tensor_in_two_shards(tmp_path, model):
    """A name in two shards is refused, as either could be meant."""
    save_file({TABLE: table(96, 16, seed=9), "x": table()}, model / "model-00002-of-00003.safetensors")
    write_index(
        model,
        {
            TABLE: "model-00001-of-00003.safetensors",
            "x": "model-00002-of-00003.safetensors",
            "lm_head.weight": "model-00003-of-00003.safetensors",
        },
    )
    assert_refused(tmp_path, "factorize", model, "--rank", 4, code=3, says=f"{TABLE} is in both")


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "C:model.safetensors",
        "C:\\model.safetensors",
        "\\\\server\\share\\model.safetensors",
        "sub/model.safetensors",
        "..",
        "",
    ],
    ids=repr,
)
def test_row_27_shard_paths_that_leave_the_directory(tmp_path, model, shard):
    """Shards are plain names of files beside the index, on any platform, whether or not they exist."""
    save_file({TABLE: table()}, tmp_path / "model.safetensors")  # where the first would lead
    edit_index(model, weights={TABLE: shard})
    assert_refused(
        tmp_path, "factorize", model, "--rank", 4, code=3, says=f"shard {shard!r} leads out of the directory"
    )


@pytest.mark.parametrize("shard", ["a\x00.safetensors", "\x1b[2J.safetensors"], ids=repr)
def test_row_27_shard_names_with_control_characters(tmp_path, model, shard):
    """A shard's name is shown in messages, so it is held to what a tensor's name is."""
    edit_index(model, weights={TABLE: shard})
    assert_refused(tmp_path, "factorize", model, "--rank", 4, code=3, says="holds control characters")


def test_row_28_safetensors_index_pointing_at_bin(tmp_path, model):
    """An index of one format does not lead to a file of another, which may hold code."""
    torch.save({TABLE: torch.zeros(4, 4)}, model / "weights.bin")
    edit_index(model, weights={TABLE: "weights.bin"})
    assert_refused(
        tmp_path, "factorize", model, "--rank", 4, code=3, says="weights.bin is not a .safetensors file"
    )


def both_formats(model, **state):
    dense = {TABLE: torch.from_numpy(table(96, 16)), "model.norm.weight": torch.ones(16)}
    directory(model, [{name: value.numpy() for name, value in dense.items()}], vocab_size=96)
    torch.save({**dense, **state}, model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (torch.from_numpy(table(96, 16, seed=5)), f"the values of {TABLE}"),
        (torch.zeros(95, 16), f"{TABLE} is F32 [95, 16] against F32 [96, 16]"),
        (torch.from_numpy(table(96, 16)).half(), f"{TABLE} is F16 [96, 16] against F32 [96, 16]"),
    ],
    ids=["values", "shape", "dtype"],
)
def test_row_29_both_formats_present_and_disagreeing(tmp_path, other, says):
    """Two sets of weights that differ are refused with the tensor in which they do."""
    both_formats(tmp_path / "model", **{TABLE: other})
    assert_refused(tmp_path, "factorize", tmp_path / "model", "--rank", 4, code=3, says=says)


def test_row_29_both_formats_present_and_agreeing(tmp_path):
    """A second set of the same weights is left out, with a note: it holds the dense table."""
    both_formats(tmp_path / "model")
    result = succeed("factorize", tmp_path / "model", "--rank", 4, "-o", tmp_path / "small")
    assert "left out, because they hold other weights: pytorch_model.bin" in result.stderr
    assert sorted(f.name for f in (tmp_path / "small").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


# ---- row 30: outputs that would harm the input


def test_row_30_output_is_the_input(tmp_path, model):
    """The input is never written, by whatever path it is named, --force or not."""
    file = tmp_path / "m.safetensors"
    save_file({"embedding.weight": table()}, file)
    (tmp_path / "alias").symlink_to(model, target_is_directory=True)
    says = "is the input itself"
    for output in (model, f"{model}/", tmp_path / "model/../model", tmp_path / "alias/../model"):
        assert_refused(tmp_path, "factorize", model, "--rank", 4, "-o", output, "--force", code=2, says=says)
    assert_refused(tmp_path, "factorize", file, "--rank", 4, "-o", file, "--force", code=2, says=says)
    assert_refused(
        tmp_path, "factorize", tmp_path / "alias", "--rank", 4, "-o", model, "--force", code=2, says=says
    )


def test_row_30_output_inside_the_input(tmp_path, model):
    """An output within the directory that is read would become its own input."""
    assert_refused(
        tmp_path, "factorize", model, "--rank", 4, "-o", model / "small", code=2, says="inside the input"
    )


def test_row_30_output_holds_the_input(tmp_path, model):
    """An output that would replace a folder above the input is refused, even with --force."""
    for source in (model, model / "model-00001-of-00003.safetensors"):
        assert_refused(
            tmp_path,
            *("factorize", source, "--rank", 4, "-o", tmp_path, "--force"),
            code=2,
            says="holds the input",
        )


def test_row_30_output_is_a_symlink(tmp_path, model):
    """A link is not followed, nor replaced, wherever it leads."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output in ("link", "dangling"):
        assert_refused(
            tmp_path,
            *("factorize", model, "--rank", 4, "-o", tmp_path / output, "--force"),
            code=2,
            says="is a symbolic link",
        )


def test_row_30_output_is_the_file_behind_a_link(tmp_path, model):
    """The blob that a shard is a link to is an input too."""
    shard = model / "model-00001-of-00003.safetensors"
    shutil.move(shard, tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    for output in (tmp_path / "blob", tmp_path / "blob" / "x"):
        assert run("factorize", model, "--rank", 4, "-o", output, "--force").exit_code == 2
    assert_refused(
        tmp_path,
        "factorize",
        shard,
        "--rank",
        4,
        "-o",
        tmp_path / "blob",
        "--force",
        code=2,
        says="the input",
    )


def cached(tmp_path):
    """A model as the Hugging Face cache keeps it: links from a snapshot to blobs."""
    cache = tmp_path / "hub" / "models--org--name"
    snapshot = directory(cache / "snapshots" / "0a1b2c", shards(), vocab_size=96)
    (cache / "blobs").mkdir()
    for i, file in enumerate(list(snapshot.iterdir())):
        blob = cache / "blobs" / f"{i:040x}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_row_30_a_download_cache_gets_no_output(tmp_path):
    """A model in the cache needs -o, whether it is named by its directory or by one of its files."""
    snapshot = cached(tmp_path)
    for source in (snapshot, snapshot / "model-00001-of-00003.safetensors"):
        assert_refused(tmp_path, "factorize", source, "--rank", 4, code=2, says="download cache")


def test_row_30_a_model_in_a_download_cache_is_compressed_elsewhere(tmp_path):
    """The output of a cached model is a directory of real files, and the cache is as it was."""
    snapshot = cached(tmp_path)
    before = contents(tmp_path / "hub")
    succeed("factorize", snapshot, "--rank", 4, "-o", tmp_path / "small")
    assert contents(tmp_path / "hub") == before
    assert {f.name for f in (tmp_path / "small").iterdir()} == {f.name for f in snapshot.iterdir()} | {
        "README.md"
    }
    assert "base_model: org/name" in (tmp_path / "small/README.md").read_text()
    assert not any(f.is_symlink() for f in (tmp_path / "small").iterdir())
    succeed("report", tmp_path / "small", "--against", snapshot)


def test_row_30_an_existing_output_needs_force(tmp_path, model):
    """An existing output is replaced only with --force, and only by the same kind."""
    small = tmp_path / "small"
    succeed("factorize", model, "--rank", 4, "-o", small)
    assert_refused(tmp_path, "factorize", model, "--rank", 2, "-o", small, code=2, says="exists already")
    (small / "old").write_text("a file of the old output")
    succeed("factorize", model, "--rank", 2, "-o", small, "--force")
    assert json.loads((small / "config.json").read_text())["quantization_config"]["tables"][0]["rank"] == 2
    assert {*contents(small)} == {*contents(model), "README.md"}


def test_row_30_force_replaces_no_folder_that_is_no_model(tmp_path, model):
    """A folder without a model may hold anything; --force does not remove it, config.json or not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/first.jpg").write_bytes(b"jpg")
    command = ("factorize", model, "--rank", 4, "-o", tmp_path / "photos", "--force")
    assert_refused(tmp_path, *command, code=2, says="photos: holds first.jpg and no model")
    (tmp_path / "photos/config.json").write_text("{}")
    assert_refused(tmp_path, *command, code=2, says="photos: holds config.json and no model")


def test_row_30_force_replaces_no_other_kind(tmp_path, model):
    """A file does not replace a directory, nor a directory a file."""
    file = tmp_path / "m.safetensors"
    save_file({"embedding.weight": table()}, file)
    succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    for source, output in ((file, tmp_path / "small"), (model, file)):
        assert_refused(
            tmp_path,
            *("factorize", source, "--rank", 4, "-o", output, "--force"),
            code=2,
            says="the output would be a",
        )


def test_row_30_output_without_a_place(tmp_path, model):
    """Missing folders above the output are not made, and a file is not a folder."""
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "no/such/place", tmp_path / "file/small"):
        assert_refused(
            tmp_path, "factorize", model, "--rank", 4, "-o", output, code=2, says="there is no directory"
        )


def test_the_input_named_by_a_dot(tmp_path, model, monkeypatch):
    """The current directory as input gives an output beside it, under its own name."""
    monkeypatch.chdir(model)
    succeed("factorize", ".", "--rank", 4)
    assert (tmp_path / "model-svd-rank-4/config.json").is_file()


def test_a_shard_by_itself_is_a_file_like_any_other(tmp_path, model):
    """One shard can be compressed alone; the directory around it is not touched."""
    before = contents(model)
    succeed(
        "factorize", model / "model-00001-of-00003.safetensors", "--rank", 4, "-o", tmp_path / "s.safetensors"
    )
    assert TABLE not in stored(tmp_path / "s.safetensors")
    assert contents(model) == before


def test_a_corrupt_shard_is_refused_by_its_name(tmp_path, model):
    """The message names the shard that is corrupt."""
    raw(model / "model-00003-of-00003.safetensors", {"lm_head.weight": entry("F32", [1], 0, 4)}, b"")
    assert_refused(
        tmp_path,
        "factorize",
        model,
        "--rank",
        4,
        code=3,
        says="model-00003-of-00003.safetensors: is cut short",
    )


def test_relative_paths_are_those_of_the_caller(tmp_path, model, monkeypatch):
    """Input and output may be relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    succeed("factorize", "model", "--rank", 4, "-o", "small")
    assert Path("small/config.json").is_file()
    assert model.is_dir()


def test_weights_of_other_times_are_left_out(tmp_path, model):
    """Training states, variants and other precisions hold the dense table; modules of their own do not."""
    for name in ("optimizer.pt", "model.fp16.safetensors", "training_args.bin"):
        (model / name).write_bytes(b"bytes")
    for folder in ("checkpoint-500", "original", "2_Dense"):
        (model / folder).mkdir()
        (model / folder / "model.safetensors").write_bytes(b"bytes")
    result = succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    for name in ("optimizer.pt", "model.fp16.safetensors", "checkpoint-500/", "original/"):
        assert name in result.stderr
        assert not (tmp_path / "small" / name).exists()
    assert (tmp_path / "small" / "training_args.bin").exists()
    assert (tmp_path / "small" / "2_Dense" / "model.safetensors").exists()
