"""Directories with an ONNX model, as optimum writes them and as hubs keep them. Row 89 of BAD_INPUTS."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, contents, succeed
from helpers.onnx_models import GATHER, IDS, low_rank, model, outputs, outside, saved
from helpers.refusals import refused

import embcompress

OTHERS = {
    "config.json": '{"model_type": "deberta-v2", "hidden_size": 32,   "vocab_size": 500}',
    "tokenizer.json": "{}",
    "ort_config.json": '{"opset": 17}',
    "vocab.txt": "a\nb\n",
}


def directory(folder, place="model.onnx", *, data=None):
    """A directory of optimum, its model with or without a data file."""
    (folder / place).parent.mkdir(parents=True)
    for name, text in OTHERS.items():
        (folder / name).write_text(text)
    (folder / place).with_name("notes.txt").write_text("about this model")
    if data is None:
        saved(folder / place, model())
    else:
        outside(folder / place, model(), data)
    return folder


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "encoder.onnx", "onnx/text.onnx"])
@pytest.mark.parametrize("method", ["svd", "int8"])
def test_the_whole_directory_is_carried(place, method, tmp_path):
    """Only the model changes, and it runs as before; config.json needs no record and stays as it is."""
    before = directory(tmp_path / "model", place)
    small = tmp_path / "small"
    succeed("factorize", before, "--method", method, "--ratio", 0.5, "-o", small)
    old, new = contents(before), contents(small)
    assert {name for name in new if old.get(name) != new[name]} == {place, "README.md"}
    assert "It runs as any ONNX model" in (small / "README.md").read_text()
    (rows,) = outputs(small / place, ids=IDS)
    succeed("expand", small, "-o", tmp_path / "dense")
    (dense,) = outputs(tmp_path / "dense" / place, ids=IDS)
    np.testing.assert_allclose(rows, dense, atol=1e-5)
    assert 0 < np.linalg.norm(rows - low_rank()[IDS]) / np.linalg.norm(rows) < 0.1
    assert {*contents(tmp_path / "dense")} == {*old, "README.md"}
    done = succeed("verify", small, "--against", before)
    assert "as it was written" in done.stdout
    shown = json.loads(succeed("report", small, "--against", before, "--json").stdout)
    assert shown["compressed"][0]["method"] == method


def test_a_table_is_found_by_its_lookups(tmp_path):
    """As in the model by itself, whatever it is called."""
    made = model()
    made.graph.initializer[0].name = made.graph.node[0].input[0] = "onnx::Gather_17"
    before = directory(tmp_path / "model")
    saved(before / "model.onnx", made)
    (before / "config.json").write_text("{}")
    for path in (before, before / "model.onnx"):
        done = succeed("factorize", path, "--method", "int8", "--ratio", 0.5, "--dry-run", "--json")
        assert [table["name"] for table in json.loads(done.stdout)["tables"]] == ["onnx::Gather_17"]


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_data_files_belong_to_the_model(place, tmp_path):
    """They are neither copied nor reported as other weights."""
    before = directory(tmp_path / "model", place, data="model.onnx_data")
    done = succeed(
        "factorize", before, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "small", "--json"
    )
    assert not any("left out" in note for note in json.loads(done.stdout)["notes"])
    found = {name for name in contents(tmp_path / "small") if ".onnx" in name}
    assert found == {place, f"{place}.data"}
    sizes = sum((tmp_path / "small" / name).stat().st_size for name in found)
    assert json.loads(done.stdout)["size_after"] == sizes
    (rows,) = outputs(tmp_path / "small" / place, ids=IDS)
    assert np.linalg.norm(rows - low_rank()[IDS]) / np.linalg.norm(rows) < 0.02


def test_variants_of_the_model_are_left_out_with_a_note(tmp_path):
    """They hold the dense table in another precision."""
    before = directory(tmp_path / "model", "onnx/model.onnx")
    for name in ("onnx/model_quantized.onnx", "model_O2.onnx", "onnx/model_fp16.onnx.data"):
        shutil.copy(before / "onnx/model.onnx", before / name)
    (before / "training_args.bin").write_bytes(b"x")
    done = succeed("factorize", before, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "small")
    said = done.stdout + done.stderr
    assert "model_O2.onnx, onnx/model_fp16.onnx.data, onnx/model_quantized.onnx" in said
    names = {*contents(tmp_path / "small")}
    assert {name for name in names if ".onnx" in name} == {"onnx/model.onnx"}
    assert "training_args.bin" in names


def test_weights_of_pytorch_come_first(tmp_path):
    """sentence-transformers' repositories hold both; the folder onnx is left out, as before."""
    from safetensors.numpy import save_file

    before = directory(tmp_path / "model", "onnx/model.onnx")
    save_file({"embedding.weight": low_rank()}, before / "model.safetensors")
    done = succeed("factorize", before, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "small")
    assert "left out, because they hold other weights: onnx/" in done.stdout + done.stderr
    assert "onnx/model.onnx" not in contents(tmp_path / "small")


def test_no_form_of_another_library_is_written_into_a_graph(tmp_path):
    """config.json names DeBERTa, which has a form of its own for its table; the graph has not."""
    before = tmp_path / "model"
    before.mkdir()
    (before / "config.json").write_text(
        json.dumps({"model_type": "deberta-v2", "hidden_size": 32, "position_biased_input": False})
    )
    table = "deberta.embeddings.word_embeddings.weight"
    made = model()
    made.graph.initializer[0].name = made.graph.node[0].input[0] = table
    saved(before / "model.onnx", made)
    done = succeed("factorize", before, "--rank", 8, "-o", tmp_path / "small", "--json")
    assert json.loads(done.stdout)["tables"][0]["layout"] == "sequential"
    outputs(tmp_path / "small/model.onnx", ids=IDS)


@pytest.mark.parametrize("folder", ["", "onnx"])
def test_row_89_a_directory_of_several_onnx_models(folder, tmp_path):
    """An exported encoder-decoder: the message names them, and each works when it is named."""
    names = [
        f"{folder}/{n}.onnx".lstrip("/")
        for n in ("decoder_model", "decoder_with_past_model", "encoder_model")
    ]
    before = directory(tmp_path / "model", names[0])
    for name in names[1:]:
        shutil.copy(before / names[0], before / name)
    words = ("factorize", before, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "small")
    assert_refused(tmp_path, *words, code=2, says=", ".join(names))
    for name in names:
        succeed("factorize", before / name, *words[2:6], "-o", tmp_path / "one.onnx", "--force")
        outputs(tmp_path / "one.onnx", ids=IDS)


def test_row_89_models_that_are_run_are_no_onnx_directories(tmp_path):
    """``load`` and ``evaluate --teacher`` say what it is."""
    import torch

    before = directory(tmp_path / "model")
    succeed("factorize", before, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "small")
    with refused(embcompress.errors.UsageError, "onnxruntime"):
        embcompress.load(torch.nn.Sequential(torch.nn.Embedding(500, 32)), tmp_path / "small")
    (tmp_path / "t.txt").write_text("a\nb\nc\nd\n")
    words = ("evaluate", tmp_path / "small", "--teacher", before, "--texts", tmp_path / "t.txt")
    assert_refused(tmp_path, *words, code=2, says="ONNX")


def test_a_table_that_cannot_be_replaced_is_refused_before_writing(tmp_path):
    """The same check as for the file alone."""
    from onnx import helper

    before = tmp_path / "model"
    before.mkdir()
    again = helper.make_node("Identity", ["embedding.weight"], ["all"], "everything")
    saved(before / "model.onnx", model((GATHER, again), ("rows", "all")))
    for source in (before, before / "model.onnx"):
        words = ("factorize", source, "--method", "int8", "--ratio", 0.5, "-o", tmp_path / "x", "--dry-run")
        assert_refused(tmp_path, *words, code=2, says="all is an output of the graph")
