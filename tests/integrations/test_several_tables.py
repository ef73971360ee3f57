"""Tables that differ in the file although the model ties them stay different."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from field.small_configs import small_config
from helpers.refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

import embcompress
from embcompress.errors import UsageError
from embcompress.integrations import registered

IDS = torch.arange(480)
HALVES = ("encoder.embed_tokens", "decoder.embed_tokens")


@pytest.fixture(scope="module", params=["svd", "pq"])
def untied(request, tmp_path_factory):
    """A T5 with three tables and a head of its own; its config.json is read as if all were tied."""
    folder = tmp_path_factory.mktemp("t5")
    config = small_config(tf.T5ForConditionalGeneration)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    tf.T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    embcompress.factorize(
        folder / "model", method=request.param, ratio=0.7, all_tables=True, output=folder / "small"
    )
    embcompress.expand(folder / "small", output=folder / "dense")
    return folder


def by_from_pretrained(path):
    with registered():
        return tf.T5ForConditionalGeneration.from_pretrained(path)


def by_load(path):
    model = tf.T5ForConditionalGeneration(tf.T5Config.from_pretrained(path))
    assert model.encoder.embed_tokens.weight is model.shared.weight
    return embcompress.load(model, path)


@torch.no_grad()
@pytest.mark.parametrize("loader", [by_from_pretrained, by_load])
def test_each_table_has_its_rows(untied, loader):
    """Those of the expanded file; transformers reads the dense file in the same way."""
    model = loader(untied / "small").eval()
    dense = tf.T5ForConditionalGeneration.from_pretrained(untied / "dense")
    stored = load_file(untied / "dense" / "model.safetensors")
    for name in ("shared", *HALVES):
        rows = model.get_submodule(name)(IDS)
        torch.testing.assert_close(rows, stored[f"{name}.weight"], rtol=0, atol=1e-5)
        assert torch.equal(dense.get_submodule(name).weight, stored[f"{name}.weight"])
    assert not torch.allclose(*(stored[f"{name}.weight"] for name in HALVES), atol=1)
    given = {"input_ids": IDS[None, 60:80], "decoder_input_ids": IDS[None, 80:90]}
    torch.testing.assert_close(model(**given).logits, dense(**given).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_they_are_saved_as_they_are(untied, tmp_path):
    """``save_pretrained`` writes three tables, which load again."""
    with registered():
        model = by_from_pretrained(untied / "small")
        model.save_pretrained(tmp_path / "saved")
        again = by_from_pretrained(tmp_path / "saved")
    for name in ("shared", *HALVES):
        assert torch.equal(again.get_submodule(name)(IDS), model.get_submodule(name)(IDS))


class Twins(nn.Module):
    """Two embeddings and a head, which share one weight or not."""

    def __init__(self, *, tied):
        super().__init__()
        self.src_embed, self.tgt_embed = nn.Embedding(90, 8), nn.Embedding(90, 8)
        self.generator = nn.Linear(8, 90, bias=False)
        if tied:
            self.tgt_embed.weight = self.generator.weight = self.src_embed.weight


def test_a_head_that_could_belong_to_either_table(tmp_path):
    """The file does not say, so nothing is guessed; the model is unchanged."""
    torch.manual_seed(0)
    state = Twins(tied=False).state_dict()
    del state["generator.weight"]
    save_file(state, tmp_path / "twins.safetensors")
    small = tmp_path / "small.safetensors"
    embcompress.factorize(tmp_path / "twins.safetensors", ratio=0.3, all_tables=True, output=small)
    model = Twins(tied=True)
    before = model.src_embed.weight
    with refused(UsageError, "generator", "tables"):
        embcompress.load(model, small)
    assert model.generator.weight is model.tgt_embed.weight is before
