"""Directories of sentence-transformers: modules.json says where the weights are. Row 88 of BAD_INPUTS."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, contents, directory, stored, succeed, table
from safetensors.numpy import save_file

TABLE = "embeddings.word_embeddings.weight"
HOME = "0_Transformer"


def modules(*entries):
    """The text of a modules.json with these (folder, class) pairs."""
    package = "sentence_transformers.models"
    return json.dumps(
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
            for i, (path, kind) in enumerate(entries)
        ]
    )


def old_layout(folder, shards=1):
    """A directory of before 2021: the transformer in 0_Transformer, with a dense layer behind the pooling."""
    tensors = {TABLE: table(96, 16), "encoder.weight": table(16, 16, seed=1), "pooler.bias": table(1, 4)[0]}
    parts = [tensors] if shards == 1 else [{name: value} for name, value in tensors.items()]
    directory(folder / HOME, parts, vocab_size=96, model_type="bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"word_embedding_dimension": 16}')
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.ones(4, 16)}, folder / "2_Dense/pytorch_model.bin")
    (folder / "modules.json").write_text(
        modules((HOME, "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
    )
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_the_transformer_may_be_in_a_folder_of_its_own(tmp_path, shards):
    """The output has the same layout, and only the weights, their index and config.json change."""
    before = old_layout(tmp_path / "model", shards)
    succeed("factorize", before, "--rank", 4, "-o", tmp_path / "small")
    old, new = contents(before), contents(tmp_path / "small")
    assert {*new} == {*old, "README.md"}
    changed = {name for name in old if old[name] != new[name]}
    weights = "model.safetensors" if shards == 1 else "model-00001-of-00003.safetensors"
    index = {f"{HOME}/model.safetensors.index.json"} if shards > 1 else set()
    assert changed == {f"{HOME}/config.json", f"{HOME}/{weights}", *index}
    written = json.loads((tmp_path / "small" / HOME / "config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "embcompress"
    assert stored(tmp_path / "small" / HOME / weights)[TABLE] == ("F32", (0,), b"")
    for name in index:
        shard = "model-00001-of-00003.safetensors"
        places = json.loads((tmp_path / "small" / name).read_text())["weight_map"]
        assert places["embeddings.word_embeddings.0.weight"] == shard
    assert "as it was written" in succeed("verify", tmp_path / "small", "--against", before).stdout
    succeed("expand", tmp_path / "small", "-o", tmp_path / "dense")
    assert {*contents(tmp_path / "dense")} == {*old, "README.md"}
    one, other = (json.loads((tmp_path / d / HOME / "config.json").read_text()) for d in ("model", "dense"))
    assert one == other


def test_counts_come_from_the_tokenizer_in_the_folder(tmp_path):
    """The tokens of texts are counted with 0_Transformer/tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    model = old_layout(tmp_path / "model")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(model / HOME / "tokenizer.json"))
    (tmp_path / "texts.txt").write_text("w5 w5 w5\nw7\n")
    np.save(tmp_path / "counts.npy", np.bincount([5, 5, 5, 7], minlength=96))
    errors = [
        json.loads(succeed("factorize", model, "--rank", 4, "--json", "--dry-run", *words).stdout)["tables"][
            0
        ]
        for words in (("--corpus", tmp_path / "texts.txt"), ("--weights", tmp_path / "counts.npy"))
    ]
    assert errors[0]["predicted_error"] == errors[1]["predicted_error"]


@pytest.mark.parametrize("folder", ["", ".", "0_StaticEmbedding"])
def test_a_point_is_the_directory_itself(tmp_path, folder):
    """model2vec writes the path of its only module as "."."""
    home = tmp_path / "model" / folder
    home.mkdir(parents=True)
    save_file({"embeddings": table()}, home / "model.safetensors")
    (tmp_path / "model/modules.json").write_text(modules((folder, "StaticEmbedding")))
    shown = json.loads(succeed("report", tmp_path / "model", "--json").stdout)
    assert [found["name"] for found in shown["tables"]] == ["embeddings"]
    written = tmp_path / "small"
    succeed("factorize", tmp_path / "model", "--method", "int8", "--ratio", 0.5, "-o", written)
    assert json.loads((written / "modules.json").read_text())[0]["path"] == folder
    assert (written / folder / "model.safetensors").exists()


def test_weights_that_are_not_those_of_the_first_module_are_left_out(tmp_path):
    """What lies in the directory itself would undo the saving; what belongs to further modules is carried."""
    model = old_layout(tmp_path / "model")
    save_file({TABLE: table(96, 16)}, model / "model.safetensors")
    (model / HOME / "tf_model.h5").write_bytes(b"other")
    done = succeed("factorize", model, "--rank", 4, "-o", tmp_path / "small")
    assert f"{HOME}/tf_model.h5, model.safetensors" in done.stdout + done.stderr
    found = contents(tmp_path / "small")
    assert "model.safetensors" not in found
    assert f"{HOME}/tf_model.h5" not in found
    assert found["2_Dense/pytorch_model.bin"] == contents(model)["2_Dense/pytorch_model.bin"]


@pytest.mark.parametrize("state", ["missing", "empty", "a file", "a loop"])
def test_row_88_the_folder_of_the_first_module_holds_no_weights(tmp_path, state):
    """The message says which folder modules.json names."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "modules.json").write_text(modules((HOME, "Transformer")))
    if state == "empty":
        (model / HOME).mkdir()
    elif state == "a file":
        (model / HOME).write_text("x")
    elif state == "a loop":
        (model / HOME).symlink_to(HOME)
    assert_refused(tmp_path, "report", model, code=2, says=f"{HOME}/model.safetensors modules.json")


def test_row_88_a_directory_of_several_models(tmp_path):
    """A pipeline of diffusers, or a Router of sentence-transformers: its folders are named, and work."""
    model = tmp_path / "model"
    for name in ("query_0_StaticEmbedding", "document_0_StaticEmbedding", "vae"):
        (model / name).mkdir(parents=True)
    for name in ("query_0_StaticEmbedding", "document_0_StaticEmbedding"):
        save_file({"embedding.weight": table()}, model / name / "model.safetensors")
    (model / "modules.json").write_text(modules(("", "Router")))
    inner = f"{model / 'document_0_StaticEmbedding'}, {model / 'query_0_StaticEmbedding'}"
    words = ("--rank", 4, "-o", tmp_path / "small")
    assert_refused(tmp_path, "factorize", model, *words, code=2, says=inner)
    succeed("factorize", model / "query_0_StaticEmbedding", *words)
    assert (tmp_path / "small/model.safetensors").exists()
