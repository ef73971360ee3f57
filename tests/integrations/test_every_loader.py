"""Every way to load a compressed checkpoint gives the same model and refuses the same checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from helpers.renamed_models import MODELS, SIZES, V, built
from safetensors.torch import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import InputError, MissingWeights, UsageError
from embcompress.integrations import registered
from embcompress.methods.svd.method import SVD
from embcompress.nn import FactorizedEmbedding
from embcompress.pretrained.models import open_pretrained

IDS = torch.tensor([[8, 9, V - 2, 1, 3, 40], [3, 3, 12, 40, 8, 1]])
TARGETS = {"svd": {"rank": 8}, "pq": {"ratio": 0.9}, "int4": {"ratio": 0.8}}


def by_load(path, name):
    """Load into a fresh model."""
    return embcompress.load(built(name, seed=1), path).eval()


def by_from_pretrained(path, name):
    """Load as after ``embcompress.register()``."""
    with registered():
        return type(built(name)).from_pretrained(path)


def by_open_pretrained(path, name):  # noqa: ARG001
    """Load as ``evaluate``, ``distil`` and ``finetune`` do."""
    return open_pretrained(path).model


LOADERS = (by_load, by_from_pretrained, by_open_pretrained)


@torch.no_grad()
def outputs(model):
    more = {"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **more)[0]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Makes each directory once: name and method -> (original, small, dense)."""
    folder = tmp_path_factory.mktemp("shelf")

    def made(name, method="svd"):
        original, small, dense = (folder / f"{name}{kind}" for kind in ("", f"-{method}", f"-{method}-dense"))
        if not original.exists():
            built(name).save_pretrained(original, max_shard_size="60KB")
        if not small.exists():
            embcompress.factorize(original, method=method, output=small, **TARGETS[method])
            embcompress.expand(small, output=dense)
        return original, small, dense

    return made


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("name", "method"), [
    *((name, "svd") for name in MODELS), ("qwen3_moe", "pq"), ("gemma3", "pq"), ("gpt_neox", "int4"),
])  # fmt: skip
def test_outputs_are_those_of_the_expanded_model(shelf, name, method, loader):
    """Every weight is where it belongs, whether it is renamed, merged or never stored."""
    original, small, dense = shelf(name, method)
    if name == "marian" and loader is by_open_pretrained:
        with pytest.raises(UsageError, match="encoder-decoder"):
            loader(small, name)
        return
    model = loader(small, name)
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    kind = type(model)
    expected = outputs(kind.from_pretrained(dense))
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-5)
    assert (outputs(kind.from_pretrained(original)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_neox", "llava"])
def test_a_file_with_names_under_a_prefix_is_renamed_too(shelf, tmp_path, name):
    """Trainers keep the whole model in one file and put a prefix before every name."""
    _, small, dense = shelf(name)
    with open_checkpoint(small) as checkpoint:
        state, description = checkpoint.torch_state(), checkpoint.description
    state = {f"module.{key}": value for key, value in state.items()}
    tables = [
        replace(t, name=f"module.{t.name}", ties=tuple(f"module.{tie}" for tie in t.ties))
        for t in description.tables
    ]
    record = replace(description, tables=tuple(tables)).to_json()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt", "embcompress": record})
    model = by_load(tmp_path / "model.safetensors", name)
    expected = outputs(type(model).from_pretrained(dense))
    torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-5)


def test_a_model_that_is_being_loaded_is_the_only_one_taught(shelf):
    """After ``open_pretrained``, transformers refuses compressed directories again."""
    _, small, _ = shelf("bert")
    by_open_pretrained(small, "bert")
    with pytest.raises(RuntimeError, match="mismatch"):
        type(built("bert")).from_pretrained(small)


# ---- refusals


def rewritten(change, name="bert"):
    """Changes the tensors of every shard."""

    def spoil(path: Path) -> None:
        index = json.loads((path / "model.safetensors.index.json").read_text())
        where = {}
        for shard in sorted(path.glob("*.safetensors")):
            tensors = {n: change(n, value) for n, value in load_file(shard).items()}
            tensors = {n: value for n, value in tensors.items() if value is not None}
            save_file(tensors, shard, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, shard.name)
        del index["metadata"]["total_size"]
        (path / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": where}))

    return name, spoil


def recorded(name="bert", **changes):
    """Changes the record of the table."""

    def spoil(path: Path) -> None:
        with open_checkpoint(path) as checkpoint:
            description = checkpoint.description
        table = replace(description.tables[0], **changes)
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] |= replace(description, tables=(table,)).to_dict()
        (path / "config.json").write_text(json.dumps(config))

    return name, spoil


def without(*ends, name="bert"):
    return rewritten(lambda n, t: None if n.endswith(ends) else t, name)


def shorter(end, name="bert"):
    return rewritten(lambda n, t: t[:-1].clone() if n.endswith(end) else t, name)


REFUSED = {
    "a part is missing": (*without("word_embeddings.1.weight"), InputError),
    "a part is shorter": (*shorter("word_embeddings.0.weight"), InputError),
    "another rank": (*recorded(rank=7), InputError),
    "another shape": (*recorded(shape=(V, 16)), InputError),
    "an unknown method": (*recorded(method="quantized"), InputError),
    "weights are missing": (*without("predictions.transform.dense.weight"), MissingWeights),
    "weights are shorter": (*shorter("intermediate.dense.weight"), UsageError),
    "an expert is missing": (*without("experts.2.up_proj.weight", name="qwen3_moe"), InputError),
    "all experts are missing": (*without("gate_proj.weight", "up_proj.weight", name="qwen3_moe"),
                                MissingWeights),
    "a renamed head is missing": (*without("embed_out.weight", name="gpt_neox"), MissingWeights),
}  # fmt: skip
OF_TABLES = ("a part", "another", "an unknown")
EACH = [
    (case, loader)
    for case in REFUSED
    for loader in LOADERS
    # Of weights that are no tables transformers is the judge there: some it starts afresh, and says so.
    if loader is not by_from_pretrained or case.startswith(OF_TABLES)
]


@pytest.mark.parametrize(("case", "loader"), EACH)
def test_what_does_not_fit_is_refused_alike(shelf, tmp_path, case, loader):
    """Every loader raises the same class of error, in one line."""
    name, spoil, kind = REFUSED[case]
    path = tmp_path / "small"
    shutil.copytree(shelf(name)[1], path)
    spoil(path)
    with pytest.raises(kind) as caught:
        loader(path, name)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_method_whose_parts_have_no_module(shelf, monkeypatch, loader):
    """Every loader says that it can be expanded."""
    monkeypatch.setattr(SVD, "has_module", False)
    with pytest.raises(UsageError, match=r"method svd\) cannot be loaded; run 'embcompress expand'"):
        loader(shelf("bert")[1], "bert")


@pytest.mark.parametrize("loader", LOADERS)
def test_a_vocabulary_of_another_size(shelf, tmp_path, monkeypatch, loader):
    """The table is compared with the model before anything is changed."""
    path = tmp_path / "small"
    shutil.copytree(shelf("bert")[1], path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": V - 1}))
    monkeypatch.setitem(MODELS, "bert", lambda: tf.BertForMaskedLM(tf.BertConfig(vocab_size=V - 1, **SIZES)))
    with pytest.raises(UsageError, match=rf"is \[{V}, 32\], the model has \[{V - 1}, 32\]"):
        loader(path, "bert")


def test_experts_that_do_not_fit_together_leave_the_model_as_it_was(shelf, tmp_path):
    """They are merged before the model is changed."""
    path = tmp_path / "small"
    shutil.copytree(shelf("qwen3_moe")[1], path)
    shorter("experts.2.up_proj.weight", name="qwen3_moe")[1](path)
    model = built("qwen3_moe", seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"cannot merge the parts of .*experts\.gate_up_proj"):
        embcompress.load(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
