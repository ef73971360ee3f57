"""Directories of many architectures, dense and compressed, are opened as transformers opens them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import embcompress
from embcompress.errors import InputError, UsageError
from embcompress.pretrained.models import open_pretrained

SIZES = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48}  # fmt: skip

MODELS = {
    "albert": lambda: tf.AlbertModel(tf.AlbertConfig(**SIZES, embedding_size=32)),  # its layers are one
    "big_bird": lambda: tf.BigBirdModel(  # short texts make it forget its sparse attention for good
        tf.BigBirdConfig(**SIZES, max_position_embeddings=256, block_size=4, num_random_blocks=1)
    ),
    "electra": lambda: tf.ElectraModel(tf.ElectraConfig(**SIZES, embedding_size=32)),
    "funnel": lambda: tf.FunnelModel(  # which takes no text of two tokens
        tf.FunnelConfig(vocab_size=120, block_sizes=[1, 1, 1], d_model=32, n_head=2, d_head=16, d_inner=48)
    ),
    "gpt_bigcode": lambda: tf.GPTBigCodeForCausalLM(  # its mask is larger than its weights
        tf.GPTBigCodeConfig(vocab_size=120, n_embd=32, n_layer=1, n_head=2, n_positions=8192)
    ),
    "gpt_neo": lambda: tf.GPTNeoForCausalLM(  # it has a mask in each layer
        tf.GPTNeoConfig(vocab_size=120, hidden_size=32, num_layers=8, num_heads=2,
                        max_position_embeddings=2048, attention_types=[[["global", "local"], 4]])
    ),
    "longformer": lambda: tf.LongformerModel(tf.LongformerConfig(**SIZES, attention_window=8)),
    "modernbert": lambda: tf.ModernBertModel(tf.ModernBertConfig(**SIZES, pad_token_id=0)),
    "multiple_choice": lambda: tf.BertForMultipleChoice(tf.BertConfig(**SIZES)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16)),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**SIZES, num_key_value_heads=1, head_dim=16, num_experts=8,
                          moe_intermediate_size=16)
    ),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path, request):
    """A directory of a small model with random weights, and the class of the model."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", type(model)


@torch.no_grad()
def outputs(model, tokens):
    """Last hidden states of the body, which every model here has."""
    return model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]


@pytest.mark.parametrize("saved", MODELS, indirect=True)
def test_it_is_the_model_that_transformers_opens(saved):
    """Dense, and compressed against what ``expand`` makes of it, on a text of 96 tokens."""
    path, kind = saved
    tokens = torch.randint(5, 120, (2, 96), generator=torch.Generator().manual_seed(1))
    expected = outputs(kind.from_pretrained(path).eval(), tokens)
    opened = open_pretrained(path)
    torch.testing.assert_close(outputs(opened.model, tokens), expected)
    torch.testing.assert_close(
        opened(tokens, torch.ones_like(tokens)).hidden, expected, msg="not what is compared"
    )
    assert opened.vocabulary == 120
    embcompress.factorize(path, rank=8, output=path.with_name("small"))
    embcompress.expand(path.with_name("small"), output=path.with_name("dense"))
    dense = outputs(kind.from_pretrained(path.with_name("dense")).eval(), tokens)
    small = outputs(open_pretrained(path.with_name("small")).model, tokens)
    torch.testing.assert_close(small, dense, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("saved", ["qwen3"], indirect=True)
def test_the_weights_are_those_of_the_checkpoint(saved, tmp_path):
    """Whatever the weight file is called; config.json cannot name other files to load than those checked."""
    path, _ = saved
    embcompress.factorize(path, rank=8, output=tmp_path / "small")
    expected = open_pretrained(tmp_path / "small").model.state_dict()
    torch.manual_seed(5)
    MODELS["qwen3"]().save_pretrained(tmp_path / "other")
    for folder in (path, tmp_path / "small"):
        (folder / "other.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({**config, "transformers_weights": "other.safetensors"})
        )
    found = open_pretrained(tmp_path / "small").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert torch.equal(
        open_pretrained(path).model.lm_head.weight, load_file(path / "model.safetensors")["lm_head.weight"]
    )
    (tmp_path / "small" / "other.safetensors").unlink()
    (tmp_path / "small" / "model.safetensors").rename(tmp_path / "small" / "weights.safetensors")
    found = open_pretrained(tmp_path / "small").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("saved", ["albert"], indirect=True)
def test_names_of_labels_are_no_counts(saved):
    """A label's number is not taken for a count, whatever the label is called."""
    path, _ = saved
    config = json.loads((path / "config.json").read_text())
    names = {"My Group": 200_000, "layers": 1}
    (path / "config.json").write_text(json.dumps({**config, "label2id": names}))
    assert open_pretrained(path).vocabulary == 120


@pytest.mark.parametrize("saved", ["gpt_neo"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_types": [[["global"], 10**9]]}, "attention_types as 1,000,000,000, limit 100,000"),
        ({"max_position_embeddings": 10**6}, r"describes a model of [\d,]+ bytes"),
    ],
)
def test_lists_and_masks_without_end_are_refused(saved, changes, says):
    """A number can make a list long, and masks grow with its square."""
    path, _ = saved
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(InputError, match=says):
        open_pretrained(path)


def test_a_model_of_no_tokens_is_refused(tmp_path):
    """It has no table of tokens."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tf.ViTModel(tf.ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"does not begin with an nn\.Embedding of tokens|architecture"):
        open_pretrained(tmp_path / "model")


@pytest.mark.parametrize("saved", ["albert"], indirect=True)
@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("not enough memory"), MemoryError), (ValueError("bad"), InputError)]
)
def test_what_runs_out_of_memory_is_not_called_broken(saved, monkeypatch, error, expected):
    """An error in the forward pass names the directory; running out of memory is the machine's fault."""
    opened, tokens = open_pretrained(saved[0]), torch.ones(1, 2, dtype=torch.int64)

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(opened.model, "forward", fail)
    with pytest.raises(expected):
        opened(tokens, tokens)


@pytest.mark.parametrize("method", [None, "svd", "pq"])
def test_a_sentence_transformer_without_its_head_is_opened_by_its_base(tmp_path, method):
    """As all-mpnet-base-v2 is stored: its configuration names the head for masked tokens, which it lacks."""
    torch.manual_seed(0)
    config = tf.BertConfig(**SIZES)
    folder = tmp_path / "model"
    tf.BertModel(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UsageError, match="missing"):
        open_pretrained(folder)
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    if method is not None:
        embcompress.factorize(folder, ratio=0.6, method=method, output=tmp_path / "small")
        folder = embcompress.expand(tmp_path / "small", output=tmp_path / "dense").output
    tokens = torch.tensor([[5, 7, 9]])
    oracle = tf.AutoModel.from_pretrained(folder).eval()
    opened = open_pretrained(folder if method is None else tmp_path / "small")
    assert type(opened.model) is tf.BertModel
    assert torch.allclose(outputs(opened.model, tokens), outputs(oracle, tokens), atol=1e-5)


def test_a_sentence_transformer_with_its_head_keeps_it(tmp_path):
    """Weights under the names of the whole model are opened as they are."""
    tf.BertForMaskedLM(tf.BertConfig(**SIZES)).save_pretrained(tmp_path)
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert type(open_pretrained(tmp_path).model) is tf.BertForMaskedLM
