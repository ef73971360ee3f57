"""Large matrices that stay dense are named, with a way to take them that works."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from helpers.refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

import embcompress
from embcompress.errors import UsageError
from embcompress.tables import is_layer

V, D = 200, 16
LLAMA = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


@pytest.fixture
def untied(tmp_path):
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def about(notes, name):
    return [note for note in notes if name in note]


def test_an_untied_head_is_named(untied):
    for every in (False, True):
        result = embcompress.factorize(untied, ratio=0.5, all_tables=every, dry_run=True)
        (note,) = about(result.notes, "lm_head.weight")
        assert f"[{V}, {D}]" in note
        assert "12.8 kB" in note
        assert "--" not in note, "nothing takes it"
        assert len(result.notes) == len({*result.notes})
    report = embcompress.report(untied)
    assert about(report.notes, "lm_head.weight") == [note]
    (left,) = report.to_dict()["left"]
    assert left == {
        "name": "lm_head.weight",
        "shape": (V, D),
        "dtype": "float32",
        "nbytes": 4 * V * D,
        "how": left["how"],
    }
    assert json.loads(json.dumps(left))["how"] in note


def test_row_86_a_layer_of_a_transformers_model_is_refused_before_writing(untied, tmp_path):
    for key in (
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ):
        with refused(UsageError, key, "model.safetensors"):
            embcompress.factorize(
                untied, rank=2, keys=["model.embed_tokens.weight", key], output=tmp_path / "o"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]
    by_itself = embcompress.factorize(  # the remedy
        untied / "model.safetensors", rank=2, keys="lm_head.weight", output=tmp_path / "o.safetensors"
    )
    assert load_file(by_itself.output)["lm_head.0.weight"].shape == (V, 2)
    (table,) = embcompress.report(untied, keys=["lm_head.weight"]).tables
    assert table.name == "lm_head.weight"
    assert "linear layer" in table.obstacle


def test_a_key_that_is_another_name_of_the_embedding_is_taken(tmp_path):
    """Also where the file holds the head again, by equal values."""
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    result = embcompress.factorize(tmp_path / "m", rank=2, keys="lm_head.weight", dry_run=True)
    assert not about(result.notes, "stays dense")


@pytest.mark.usefixtures("registered")
def test_gemma_3n_has_a_larger_table_than_its_token_table(tmp_path):
    """``embed_tokens_per_layer``; what the note says takes it, and from_pretrained loads the result."""
    config = tf.Gemma3nTextConfig(
        vocab_size=V,
        vocab_size_per_layer_input=V - 8,
        hidden_size=D,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        hidden_size_per_layer_input=12,
        laurel_rank=2,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        layer_types=["full_attention"] * 2,
    )
    torch.manual_seed(0)
    model = tf.Gemma3nForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "gemma")
    name = "model.embed_tokens_per_layer.weight"
    plain = embcompress.factorize(tmp_path / "gemma", method="int8", ratio=0.5, dry_run=True)
    (note,) = about(plain.notes, name)
    assert "--all" in note
    keyed = embcompress.factorize(tmp_path / "gemma", rank=4, keys="model.embed_tokens.weight", dry_run=True)
    (note,) = about(keyed.notes, name)
    assert "--key" in note
    both = embcompress.factorize(
        tmp_path / "gemma", method="int8", ratio=0.5, all_tables=True, output=tmp_path / "small"
    )
    assert [table.name for table in both.tables] == ["model.embed_tokens.weight", name]
    assert not about(both.notes, "dense")
    small = tf.Gemma3nForCausalLM.from_pretrained(tmp_path / "small").eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, model(ids).logits, atol=0.05, rtol=0.1)


def test_the_tables_of_a_recommender_are_tables_whatever_their_features_are_called(tmp_path):
    """One table a feature, one of them of a clear winner's size."""
    names = ["user_id", "item_class", "query", "position", "lang"]
    state = {f"embedding_dict.{name}.weight": torch.randn(40 + i, 8) for i, name in enumerate(names)}
    state["embedding_dict.item_id.weight"] = torch.randn(900, 8)
    state |= {"dnn.linears.0.weight": torch.randn(900, 48), "user_type_embedding.weight": torch.randn(950, 8)}
    torch.save(state, tmp_path / "m.pt")
    one = embcompress.factorize(tmp_path / "m.pt", rank=2, output=tmp_path / "one.pt")
    assert [table.name for table in one.tables] == ["embedding_dict.item_id.weight"]
    (smaller,) = about(one.notes, "smaller")
    assert "--all" in smaller
    assert "embedding_dict.lang.weight" in smaller or "2 more" in smaller
    assert not about(one.notes, "dnn.linears"), "layers are no tables"
    (other,) = about(one.notes, "user_type_embedding.weight")
    assert "--key embedding_dict.item_id.weight --key user_type_embedding.weight" in other
    every = embcompress.factorize(tmp_path / "m.pt", rank=2, all_tables=True, output=tmp_path / "all.pt")
    assert {table.name for table in every.tables} == {n for n in state if n.startswith("embedding_dict")}
    keys = ["embedding_dict.item_id.weight", "user_type_embedding.weight"]
    both = embcompress.factorize(tmp_path / "m.pt", rank=2, keys=keys, output=tmp_path / "both.pt")
    assert [table.name for table in both.tables] == keys


def test_only_the_largest_are_named_one_by_one(tmp_path):
    state = {"embedding.weight": torch.randn(50, 8)} | {
        f"matrix_{i}": torch.randn(60 + i, 8) for i in range(20)
    }
    torch.save(state, tmp_path / "m.pt")
    result = embcompress.factorize(tmp_path / "m.pt", rank=2, output=tmp_path / "o.pt")
    named = about(result.notes, "matrix_")
    assert len(named) == 8
    assert "matrix_19" in named[0]
    assert about(result.notes, "12 further")
    assert len(embcompress.report(tmp_path / "m.pt").left) == 20


def test_a_type_that_is_no_table_never_fails_a_run(tmp_path):
    """Large integers, empty matrices and other shapes are not named, and the notes read none of them."""
    state = {
        "embedding.weight": torch.randn(50, 8),
        "embed_tokens_ids.weight": torch.ones(500, 8, dtype=torch.int64),
        "embedding_empty.weight": torch.ones(0, 8),
        "embedding_cube.weight": torch.ones(50, 8, 8),
        "embedding_wide.weight": torch.ones(1, 9000),
    }
    torch.save(state, tmp_path / "m.pt")
    result = embcompress.factorize(
        tmp_path / "m.pt", rank=2, keys="embedding.weight", output=tmp_path / "o.pt"
    )
    assert not about(result.notes, "ids")
    assert not about(result.notes, "empty")
    assert not about(result.notes, "cube")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "cls.predictions.decoder.weight",
        "embed_out.weight",
        "model.layers.3.mlp.down_proj.weight",
        "h.0.attn.c_attn.weight",
        "encoder.layer.0.attention.self.query.weight",
        "lstm.weight_ih_l0",
        "layers.0.feed_forward.w1.weight",
        "block.0.layer.1.DenseReluDense.wi.weight",
        "classifier.weight",
        "layers.4.weight",
    ],
)
def test_layers_are_told_by_their_names(name):
    assert is_layer(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "wte.weight",
        "bert.embeddings.position_embeddings.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.embed_positions.weight",
        "wpe.weight",
        "model.embed_tokens_per_layer.weight",
        "attention.head_embedding.weight",
        "embedding.layers.0.weight",
        "weight",
        "tok.weight",
    ],
)
def test_embeddings_are_not_layers(name):
    assert not is_layer(name)


def test_every_embedding_of_real_models_may_be_named():
    """The weights of nn.Embedding in classes with many kinds of them, none of which is refused as a layer."""
    small = {"vocab_size": V, "d_model": D, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    models = [
        tf.T5Model(tf.T5Config(**small)),
        tf.BertModel(tf.BertConfig(**{k: v for k, v in LLAMA.items()})),
        tf.GPT2Model(tf.GPT2Config(vocab_size=V, n_embd=D, n_layer=1, n_head=2)),
        tf.CLIPTextModel(tf.CLIPTextConfig(**LLAMA)),
    ]
    found = [
        f"{name}.weight"
        for model in models
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]
    assert len(found) >= 9
    assert not [name for name in found if is_layer(name)]


@pytest.mark.parametrize(
    "target",
    [{"ratio": 0.5}, {"rank": 3}, {"energy": 0.9}, {"max_size": 25_000}, {"max_error": 0.3, "method": "pq"}],
    ids=str,
)
def test_all_leaves_tables_dense_that_are_too_small_for_the_target(tmp_path, target):
    """Only the smallest may stay: a target out of reach of another table is refused."""
    tables = {"user_emb.weight": torch.randn(2, 8), "item_emb.weight": torch.randn(2, 8)}
    tables |= {"a_emb.weight": torch.randn(500, 16), "b_emb.weight": torch.randn(300, 16)}
    torch.save(tables, tmp_path / "model.pt")
    result = embcompress.factorize(
        tmp_path / "model.pt", all_tables=True, output=tmp_path / "small.pt", **target
    )
    assert {table.name for table in result.tables} == {"a_emb.weight", "b_emb.weight"}
    (note,) = (note for note in result.notes if "out of reach" in note)
    assert "user_emb.weight [2, 8], item_emb.weight [2, 8]; 128 B" in note
    small = torch.load(tmp_path / "small.pt", weights_only=True)
    assert torch.equal(small["user_emb.weight"], tables["user_emb.weight"])
    assert (tmp_path / "small.pt").stat().st_size <= target.get("max_size", 52_000)
    embcompress.verify(tmp_path / "small.pt", against=tmp_path / "model.pt")
    with pytest.raises(embcompress.TargetError):
        embcompress.factorize(tmp_path / "model.pt", keys=["user_emb.weight", "a_emb.weight"], **target)
    torch.save({**tables, "c_emb.weight": torch.randn(8, 64)}, tmp_path / "other.pt")
    if "rank" in target:
        with pytest.raises(embcompress.TargetError, match="c_emb"):
            embcompress.factorize(tmp_path / "other.pt", all_tables=True, rank=9)
