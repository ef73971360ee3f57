"""Finding the table: names, shapes, configuration and ties of many kinds of model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from embcompress.checkpoint import open_checkpoint
from embcompress.errors import InputError, UsageError
from embcompress.tables import count_heads, differing_head, locate

RNG = np.random.default_rng(0)


def matrix(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def checkpoint(tmp_path, tensors, config=None):
    """A directory with these tensors, given as arrays or as shapes."""
    arrays = {n: matrix(*t) if isinstance(t, tuple) else t for n, t in tensors.items()}
    save_file(arrays, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(tmp_path)


def found(source, *keys, every=False):
    return [table.name for table in locate(source, keys, every=every)]


@pytest.mark.parametrize(
    ("tensors", "table"),
    [
        ({"embedding.weight": (50, 8), "fc.weight": (8, 8)}, "embedding.weight"),
        ({"emb.weight": (50, 8), "lstm.weight_ih_l0": (64, 8)}, "emb.weight"),
        ({"encoder.embed.weight": (50, 8), "out.weight": (50, 8)}, "encoder.embed.weight"),
        (
            {
                "bert.embeddings.word_embeddings.weight": (50, 8),
                "bert.embeddings.position_embeddings.weight": (512, 8),
                "bert.embeddings.token_type_embeddings.weight": (2, 8),
                "bert.encoder.layer.0.output.dense.weight": (8, 64),
            },
            "bert.embeddings.word_embeddings.weight",
        ),
        ({"transformer.wte.weight": (50, 8), "transformer.wpe.weight": (1024, 8)}, "transformer.wte.weight"),
        (
            {
                "shared.weight": (50, 8),
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
            },
            "shared.weight",
        ),
        ({"model.embed_tokens.weight": (50, 8), "lm_head.weight": (50, 8)}, "model.embed_tokens.weight"),
        ({"tok_embeddings.weight": (50, 8), "output.weight": (50, 8)}, "tok_embeddings.weight"),
        ({"gpt_neox.embed_in.weight": (50, 8), "embed_out.weight": (50, 8)}, "gpt_neox.embed_in.weight"),
        ({"embeddings": (50, 8), "w": (8, 8)}, "embeddings"),
        ({"char_embedding.weight": (20, 4), "word_embedding.weight": (50, 16)}, "word_embedding.weight"),
        ({"char_embed.weight": (20, 4), "embed.weight": (500, 16)}, "embed.weight"),
    ],
    ids=[
        "plain",
        "lstm",
        "encoder",
        "BERT",
        "GPT-2",
        "T5",
        "Llama",
        "Meta",
        "NeoX",
        "parameter",
        "words",
        "winner",
    ],
)
def test_the_table_is_found_by_its_name(tmp_path, tensors, table):
    """Names of the usual architectures lead to the token table, not to positions, heads or layers."""
    assert found(checkpoint(tmp_path, tensors)) == [table]


def test_vocab_size_finds_a_table_with_an_unusual_name(tmp_path):
    """Where no name speaks, the vocabulary size of config.json does."""
    tensors = {"a.weight": (50, 8), "b.weight": (60, 8)}
    assert found(checkpoint(tmp_path, tensors, {"vocab_size": 50})) == ["a.weight"]


def test_vocab_size_of_a_multimodal_model(tmp_path):
    """The text part of the configuration counts as well."""
    source = checkpoint(tmp_path, {"a.weight": (50, 8)}, {"text_config": {"vocab_size": 50}})
    assert found(source) == ["a.weight"]


def test_equal_candidates_are_listed_with_the_remedy(tmp_path):
    """Two tables of a translation model: no guess, both are named, --key or --all decides."""
    source = checkpoint(tmp_path, {"src_embed.weight": (50, 8), "tgt_embed.weight": (60, 8)})
    with pytest.raises(
        UsageError, match=r"tgt_embed.weight \[60, 8\], src_embed.weight \[50, 8\].*--key NAME"
    ):
        locate(source)
    assert found(source, every=True) == ["tgt_embed.weight", "src_embed.weight"]
    assert found(source, "src_embed.weight") == ["src_embed.weight"]
    assert found(source, "src_embed.weight", "tgt_embed.weight") == ["src_embed.weight", "tgt_embed.weight"]


def test_nothing_found_names_the_tallest_matrices(tmp_path):
    """When no tensor is like a table, the user sees which names --key could take."""
    source = checkpoint(tmp_path, {"fc1.weight": (50, 8), "fc2.weight": (8, 8)})
    with pytest.raises(UsageError, match=r"--key.*fc1.weight \[50, 8\]"):
        locate(source)
    assert found(source, "fc1.weight") == ["fc1.weight"]


def test_a_misspelt_key_names_the_near_ones(tmp_path):
    """--key of something absent suggests what was meant."""
    source = checkpoint(tmp_path, {"embedding.weight": (50, 8)})
    with pytest.raises(UsageError, match=r"did you mean embedding\.weight"):
        locate(source, ["embeding.weight"])


def test_a_key_that_is_no_matrix_is_refused(tmp_path):
    """A bias cannot be a table."""
    source = checkpoint(tmp_path, {"embedding.weight": (50, 8), "bias": (8,)})
    with pytest.raises(InputError, match=r"bias.*\[8\]"):
        locate(source, ["bias"])


def test_ties_by_equal_values(tmp_path):
    """A head stored as a second copy is the same table; one that differs in a single value is not."""
    table = matrix(50, 8)
    other = table.copy()
    other[49, 7] += 1
    source = checkpoint(
        tmp_path, {"model.embed_tokens.weight": table, "lm_head.weight": table.copy(), "x.head.weight": other}
    )
    (tied,) = locate(source)
    assert (tied.ties, tied.copies) == (("lm_head.weight",), ("lm_head.weight",))
    assert count_heads(source, tied) == 1


def test_ties_by_shared_storage(tmp_path):
    """Four names of T5's one table in a .bin file are one table with three ties and no copies."""
    table = torch.randn(50, 8)
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
    torch.save({f"{n}.weight": table for n in names}, tmp_path / "model.bin")
    with open_checkpoint(tmp_path / "model.bin") as source:
        (tied,) = locate(source)
        assert tied.name == "shared.weight"
        assert set(tied.ties) == {
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        }
        assert tied.copies == ()
        assert found(source, "decoder.embed_tokens.weight") == ["shared.weight"]


@pytest.mark.parametrize(
    ("architecture", "tied", "heads"),
    [
        ("GPT2LMHeadModel", True, 1),
        ("T5ForConditionalGeneration", True, 1),
        ("BertModel", True, 0),
        ("LlamaForCausalLM", False, 0),
    ],
)
def test_heads_are_counted_from_the_configuration(tmp_path, architecture, tied, heads):
    """A head that is tied by configuration is counted although it is not stored."""
    config = {"architectures": [architecture], "tie_word_embeddings": tied}
    source = checkpoint(tmp_path, {"wte.weight": (50, 8)}, config)
    assert count_heads(source, locate(source)[0]) == heads


def test_a_head_that_should_be_tied_but_differs_is_told(tmp_path):
    """config.json says tied, the file holds another head: that head is named."""
    tensors = {"model.embed_tokens.weight": (50, 8), "lm_head.weight": (50, 8)}
    source = checkpoint(tmp_path, tensors, {"tie_word_embeddings": True})
    assert differing_head(source, locate(source)[0]) == "lm_head.weight"
