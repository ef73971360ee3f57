"""Finding the table: names, shapes, configuration and ties of many kinds of model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.refusals import refused
from safetensors.numpy import save_file
from torch import nn

import embcompress
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
        ({"token_emb.emb.weight": (256, 32), "pos_emb.emb.weight": (2048, 32)}, "token_emb.emb.weight"),
        ({"ensemble.0.weight": (500, 64), "wordemb.weight": (50, 8)}, "wordemb.weight"),
        ({"time_embedding.linear_1.weight": (500, 64), "Word2Vec.weight": (50, 8)}, "Word2Vec.weight"),
        ({"shared.0.weight": (500, 64), "posemb.weight": (99, 9), "tokenLookup": (50, 8)}, "tokenLookup"),
        (
            {"m.embedding_hidden_mapping_in.weight": (900, 8), "m.embeddings.0.weight": (50, 8)},
            "m.embeddings.0.weight",
        ),
        (
            {"_orig_mod.language_model.embed_tokens.weight": (50, 8), "embeddings.weight": (900, 8)},
            "_orig_mod.language_model.embed_tokens.weight",
        ),
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
        "x-transformers",
        "ensemble",
        "time",
        "shared trunk",
        "mapping",
        "compiled",
    ],
)
def test_the_table_is_found_by_its_name(tmp_path, tensors, table):
    """Names of the usual architectures lead to the token table, not to positions, heads or layers."""
    assert found(checkpoint(tmp_path, tensors)) == [table]


V, D = 60, 16
SMALL = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 4 * V,
}
SEQ2SEQ = {
    "vocab_size": V,
    "d_model": D,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 4 * V,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SMALL, **SPECIAL, "num_key_value_heads": 1, "head_dim": 8}
GPT2 = {**SPECIAL, "vocab_size": V, "n_embd": D, "n_layer": 1, "n_head": 2, "n_positions": 4 * V}
XLM = {**SPECIAL, "vocab_size": V, "emb_dim": D, "n_layers": 1, "n_heads": 2, "n_langs": 3}
CLIP_TEXT = {**SMALL, **SPECIAL}


@pytest.mark.parametrize(
    ("name", "head", "table", "others", "options"),
    [
        ("Bert", "ForMaskedLM", "bert.embeddings.word_embeddings", 0, SMALL),
        ("Roberta", "ForMaskedLM", "roberta.embeddings.word_embeddings", 0, SMALL),
        ("XLMRoberta", "ForMaskedLM", "roberta.embeddings.word_embeddings", 0, SMALL),
        ("Albert", "ForMaskedLM", "albert.embeddings.word_embeddings", 0, {**SMALL, "embedding_size": 8}),
        ("Electra", "ForMaskedLM", "electra.embeddings.word_embeddings", 0, {**SMALL, "embedding_size": 8}),
        ("RemBert", "ForMaskedLM", "rembert.embeddings.word_embeddings", 0,
         {**SMALL, **SPECIAL, "input_embedding_size": 8, "output_embedding_size": 12}),
        ("MPNet", "ForMaskedLM", "mpnet.embeddings.word_embeddings", 0, SMALL),
        ("DebertaV2", "ForMaskedLM", "deberta.embeddings.word_embeddings", 0,
         {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
        ("DistilBert", "ForMaskedLM", "distilbert.embeddings.word_embeddings", 0,
         {"vocab_size": V, "dim": D, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}),
        ("ModernBert", "ForMaskedLM", "model.embeddings.tok_embeddings", 0,
         {**SMALL, **SPECIAL, "cls_token_id": 3, "sep_token_id": 4}),
        ("GPT2", "LMHeadModel", "transformer.wte", 0, GPT2),
        ("GPTNeoX", "ForCausalLM", "gpt_neox.embed_in", 0, {**SMALL, **SPECIAL}),
        ("OPT", "ForCausalLM", "model.decoder.embed_tokens", 0,
         {**SPECIAL, **SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8}),
        ("Llama", "ForCausalLM", "model.embed_tokens", 0, LLAMA),
        ("Qwen3", "ForCausalLM", "model.embed_tokens", 0, LLAMA),
        ("T5", "ForConditionalGeneration", "shared", 2,
         {"vocab_size": V, "d_model": D, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),
        ("Bart", "ForConditionalGeneration", "model.shared", 2, {**SEQ2SEQ, **SPECIAL}),
        ("Marian", "MTModel", "model.shared", 2, {**SEQ2SEQ, **SPECIAL}),
        ("Whisper", "ForConditionalGeneration", "model.decoder.embed_tokens", 0,
         {**SEQ2SEQ, **SPECIAL, "max_target_positions": 4 * V, "num_mel_bins": 8}),
        ("CLIPText", "Model", "embeddings.token_embedding", 0, CLIP_TEXT),
        ("XLNet", "LMHeadModel", "transformer.word_embedding", 0,
         {"vocab_size": V, "d_model": D, "n_layer": 1, "n_head": 2, "d_inner": 24}),
        ("XLM", "WithLMHeadModel", "transformer.embeddings", 0, XLM),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_table_of_real_classes_is_found(tmp_path, name, head, table, others, options):
    """Of all matrices --all takes the token table alone; untied, also the copies for two stacks."""
    state = getattr(tf, name + head)(getattr(tf, f"{name}Config")(**options)).state_dict()
    torch.save(state, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as tied:
        assert found(tied, every=True) == found(tied) == [f"{table}.weight"]
    untied = checkpoint(tmp_path, {n: tuple(t.shape) for n, t in state.items() if t.dim() == 2})
    names = found(untied, every=True)
    assert f"{table}.weight" in names
    assert len(names) == 1 + others


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
    with refused(UsageError, "tgt_embed.weight [60, 8], src_embed.weight [50, 8]; --key"):
        locate(source)
    assert found(source, every=True) == ["tgt_embed.weight", "src_embed.weight"]
    assert found(source, "src_embed.weight") == ["src_embed.weight"]
    assert found(source, "src_embed.weight", "tgt_embed.weight") == ["src_embed.weight", "tgt_embed.weight"]


def test_nothing_found_names_the_tallest_matrices(tmp_path):
    """When no tensor is like a table, the user sees which names --key could take."""
    source = checkpoint(tmp_path, {"fc1.weight": (50, 8), "fc2.weight": (8, 8)})
    with refused(UsageError, "--key fc1.weight [50, 8]"):
        locate(source)
    assert found(source, "fc1.weight") == ["fc1.weight"]


def test_a_misspelt_key_names_the_near_ones(tmp_path):
    """--key of something absent suggests what was meant."""
    source = checkpoint(tmp_path, {"embedding.weight": (50, 8)})
    with refused(UsageError, "embedding.weight"):
        locate(source, ["embeding.weight"])


def test_a_key_that_is_no_matrix_is_refused(tmp_path):
    """A bias cannot be a table."""
    source = checkpoint(tmp_path, {"embedding.weight": (50, 8), "bias": (8,)})
    with refused(InputError, "bias", "[8]"):
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
        ("MarianMTModel", True, 1),
        ("BertForPreTraining", True, 1),
        ("ElectraForPreTraining", True, 0),
        ("XLMRobertaForSequenceClassification", True, 0),
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


@pytest.mark.parametrize(
    ("tie", "heads"),
    [
        ("decoder.weight", 1),
        ("vocab_projector.weight", 1),
        ("pred_layer.proj.weight", 1),
        ("lm_loss.weight", 1),
        ("encoder.embed_tokens.weight", 0),
        ("encoder.embedding.weight", 0),
    ],
)
def test_ties_that_are_no_embeddings_are_heads(tmp_path, tie, heads):
    """A tied name is a head, whatever it is called, unless it is called an embedding."""
    table = matrix(50, 8)
    source = checkpoint(tmp_path, {"shared.weight": table, tie: table.copy()}, {"vocab_size": 50})
    (tied,) = locate(source, ["shared.weight"])
    assert tied.ties == (tie,)
    assert count_heads(source, tied) == heads


def test_the_likeliest_name_of_shared_memory_is_the_tables(tmp_path):
    """A head that comes first in the file does not hide the table; the written file is whole."""
    head, tok = nn.Linear(8, 50, bias=False), nn.Embedding(50, 8)
    head.weight = tok.weight
    model = nn.ModuleDict({"head": head, "tok": nn.ModuleDict({"embedding": tok})})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for keys in ((), ("head.weight",)):
        with open_checkpoint(tmp_path / "model.pt") as source:
            (table,) = locate(source, keys)
            assert (table.name, table.ties, table.copies) == ("tok.embedding.weight", ("head.weight",), ())
            np.testing.assert_array_equal(table.rows.read(0, 50), tok.weight.detach().numpy())
    small = embcompress.factorize(tmp_path / "model.pt", rank=3).output
    loaded = embcompress.load(
        nn.ModuleDict({"head": nn.Linear(8, 50, bias=False), "tok": nn.ModuleDict({"embedding": tok})}), small
    )
    ids = torch.arange(50)
    dense = torch.load(embcompress.expand(small).output, weights_only=True)
    assert dense["head.weight"].data_ptr() == dense["tok.embedding.weight"].data_ptr()
    torch.testing.assert_close(loaded["tok"]["embedding"](ids), dense["head.weight"])


@pytest.mark.parametrize("value", [0, 1])
def test_constant_tables_are_not_tied_by_their_values(tmp_path, value):
    """Two tables that are all zeros, or all ones, are equal by chance and stay two."""
    constant = np.full((50, 8), value, np.float32)
    source = checkpoint(tmp_path, {"wte.weight": constant, "lm_head.weight": constant.copy()})
    assert locate(source)[0].ties == ()


@pytest.mark.parametrize("keys", [(), ("tgt_embed.weight",), ("src_embed.weight",), ("nothing",)])
def test_what_is_compressed_already_is_refused(tmp_path, keys):
    """A second run would need a second record: no table is found, named or not."""
    save_file(
        {"src_embed.weight": matrix(50, 8), "tgt_embed.weight": matrix(60, 8)}, tmp_path / "a.safetensors"
    )
    small = embcompress.factorize(tmp_path / "a.safetensors", rank=2, keys=["src_embed.weight"]).output
    with (
        open_checkpoint(small) as source,
        refused(UsageError, "compressed", "src_embed.weight"),
    ):
        locate(source, keys)


def test_the_ties_of_many_tables_take_one_read_each(tmp_path, monkeypatch):
    """Each against each would be 40,000 reads."""
    same = torch.randn(8, 4)
    tables = {f"x{i}_emb.weight": torch.randn(8, 4) for i in range(200)}
    torch.save({**tables, "a_emb.weight": same, "b_emb.weight": same.clone()}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        read, reads = checkpoint.rows, []
        monkeypatch.setattr(checkpoint, "rows", lambda *args: reads.append(args) or read(*args))
        found = locate(checkpoint, every=True)
    assert len(found) == 201
    assert [table.copies for table in found if table.copies] == [("b_emb.weight",)]
    assert len(reads) < 250
