"""Compressed directories through transformers' own from_pretrained and save_pretrained, after registering."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from helpers.quick import quick
from safetensors.torch import load_file, save_file
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import InputError, UsageError
from embcompress.nn import CodedEmbedding, FactorizedEmbedding, FactorizedHead

pytestmark = pytest.mark.usefixtures("registered")

V, D = 600, 32
IDS = torch.tensor([[5, 7, 599, 1, 3, 40], [3, 3, 12, 40, 8, 1]])
SIZES = {"vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 40}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
SEQ2SEQ = {"vocab_size": V, "d_model": D, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
BART = {"vocab_size": V, "d_model": D, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "max_position_embeddings": 40, "scale_embedding": True}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
GPT2 = {"vocab_size": V, "n_embd": D, "n_layer": 1, "n_head": 2, "n_positions": 40,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

MODELS = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**SIZES)),
    "xlm-roberta": lambda: tf.XLMRobertaForSequenceClassification(tf.XLMRobertaConfig(**SIZES)),
    "deberta-v2": lambda: tf.DebertaV2ForMaskedLM(tf.DebertaV2Config(**SIZES)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**SIZES, **SPECIAL)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "llama-untied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER, tie_word_embeddings=False)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**DECODER, tie_word_embeddings=True)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**DECODER)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**SEQ2SEQ)),
    "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**SEQ2SEQ)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)),
}
TARGETS = {
    "svd": {"rank": 8},
    "pq": {"ratio": 0.9},
    "int8": {"ratio": 0.5},
    "int4": {"ratio": 0.8},
    "int3": {"ratio": 0.85},
    "lplr": {"ratio": 0.9},
    "screen": {"ratio": 0.5},
    "screen+svd": {"ratio": 0.8},
    "screen+pq": {"ratio": 0.93},
    "screen+int4": {"ratio": 0.9},
}


@pytest.fixture
def told():
    """What transformers logs as warnings."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


class Shelf:
    """Directories that several tests read: made once, never written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def original(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            torch.manual_seed(0)
            MODELS[name]().save_pretrained(path, max_shard_size="40KB")
            assert len(list(path.glob("model-*"))) > 1, "or nothing is sharded"
        return path

    def small(self, name: str, method: str = "pq") -> Path:
        path = self.folder / f"{name}-{method}"
        if not path.exists():
            embcompress.factorize(self.original(name), method=method, output=path, **TARGETS[method])
        return path

    def dense(self, name: str, method: str = "pq") -> Path:
        path = self.folder / f"{name}-{method}-dense"
        if not path.exists():
            embcompress.expand(self.small(name, method), output=path)
        return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


def auto(path):
    return getattr(tf, json.loads((path / "config.json").read_text())["architectures"][0])


def loaded(path, **options):
    return auto(path).from_pretrained(path, **options)


def outputs(model):
    more = {"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more)[0].float()


def assert_same(model, other, atol=1e-4):
    torch.testing.assert_close(outputs(model), outputs(other), atol=atol, rtol=0)


def tables(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.description.tables


def kinds(path):
    with open_checkpoint(path) as checkpoint:
        return {name: (info.shape, info.dtype.name) for name, info in checkpoint.tensors.items()}


EACH = {f"{name}, {method}": (name, method) for name in MODELS for method in ("svd", "pq")}
EACH |= {f"{name}, {method}": (name, method) for name in ("gemma3", "t5") for method in TARGETS}
SOME = (*(f"{name}, pq" for name in MODELS), *(f"t5, {method}" for method in TARGETS))


@pytest.mark.parametrize(("name", "method"), quick(EACH, *SOME))
class TestEveryClass:
    """Real classes with small random weights, saved in shards."""

    def test_outputs_are_those_of_the_dense_reconstruction(self, shelf, name, method, told):
        """Nothing is missing, unexpected or fresh, and nothing is logged; the original's outputs differ."""
        path = shelf.small(name, method)
        model, report = auto(path).from_pretrained(path, output_loading_info=True)
        assert not any(report.values())
        assert not told
        assert not model.training
        assert_same(model, loaded(shelf.dense(name, method)))
        difference = (outputs(model) - outputs(loaded(shelf.original(name)))).abs().max()
        assert difference > (1e-5 if method == "int8" else 1e-4)

    def test_what_is_saved_is_what_was_loaded(self, shelf, name, method, tmp_path):
        """The tensors and the record are the same; from_pretrained, load and expand read them."""
        model = loaded(shelf.small(name, method))
        model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
        assert len(list((tmp_path / "again").glob("model-*"))) > 1
        assert kinds(tmp_path / "again") == kinds(shelf.small(name, method))
        assert tables(tmp_path / "again") == tables(shelf.small(name, method))
        assert torch.equal(outputs(loaded(tmp_path / "again")), outputs(model))
        fresh = embcompress.load(type(model)(type(model.config)(**own_config(model))), tmp_path / "again")
        assert_same(fresh.eval(), model)
        embcompress.expand(tmp_path / "again", output=tmp_path / "dense")
        assert_same(loaded(tmp_path / "dense"), model)


def own_config(model):
    return {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}


class TestWhatIsInTheModel:
    def test_the_modules_are_those_that_load_puts_in(self, shelf):
        """Lookups share one left factor, the head has no table, and there are no other weights."""
        model = loaded(shelf.small("t5", "svd"))
        dense = type(model)(type(model.config)(**own_config(model)))
        other = embcompress.load(dense, shelf.small("t5", "svd"))
        assert {n: type(m) for n, m in model.named_modules()} == {
            n: type(m) for n, m in other.named_modules()
        }
        assert isinstance(model.lm_head, FactorizedHead)
        assert model.lm_head.left is model.shared.left is model.encoder.embed_tokens.left
        assert model.num_parameters() == other.num_parameters()

    def test_all_that_is_derived_from_codes_is_there(self, shelf):
        """Buffers that no file holds, such as Gemma's scale, get their values back."""
        model = loaded(shelf.small("gemma3", "screen+pq"))
        config = type(model.config)(**own_config(model))
        other = embcompress.load(type(model)(config), shelf.small("gemma3", "screen+pq"))
        buffers, expected = dict(model.named_buffers()), dict(other.named_buffers())
        assert buffers.keys() == expected.keys()
        assert any(name.endswith("kept_before") for name in buffers)
        assert buffers["model.embed_tokens.scale"] == pytest.approx(D**0.5)
        assert all(torch.equal(buffers[name], expected[name]) for name in buffers)

    def test_tying_again_changes_nothing(self, shelf):
        """tie_weights, which training and resizing call, leaves the factors alone."""
        for name in ("bert", "t5", "gemma3"):
            model = loaded(shelf.small(name))
            before = outputs(model)
            model.tie_weights()
            model.base_model.tie_weights()
            assert torch.equal(outputs(model), before)

    def test_the_bias_of_a_head_stays_tied(self, shelf):
        """BERT's decoder bias is another name of cls.predictions.bias."""
        model = loaded(shelf.small("bert"))
        assert isinstance(model.cls.predictions.decoder, FactorizedHead)
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias

    def test_random_numbers_are_those_of_a_dense_load(self, shelf):
        """A fresh classifier starts the same whether the table is compressed or not."""
        heads = []
        for path in (shelf.small("bert"), shelf.dense("bert")):
            torch.manual_seed(3)
            model = tf.AutoModelForSequenceClassification.from_pretrained(path)
            heads.append(model.classifier.weight)
        assert torch.equal(*heads)

    def test_it_generates(self, shelf):
        """The tokens are those of the dense reconstruction."""
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0,
                   "attention_mask": torch.ones_like(IDS)}  # fmt: skip
        texts = [loaded(path).generate(IDS, **options) for path in (shelf.small("gpt2"), shelf.dense("gpt2"))]
        assert torch.equal(*texts)


class TestOptions:
    @pytest.mark.parametrize("method", ["svd", "pq", "int4"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_dtype(self, shelf, tmp_path, method, dtype):
        """All floats have the dtype, codes stay bytes; the saved copy records it, loads and expands."""
        model = loaded(shelf.small("gemma3", method), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.get_input_embeddings()(IDS).dtype == dtype
        close = loaded(shelf.dense("gemma3", method), dtype=dtype)
        assert_same(model, close, atol=0.05)
        model.save_pretrained(tmp_path / "half")
        (record,) = tables(tmp_path / "half")
        assert record.dtype == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
        assert torch.equal(outputs(loaded(tmp_path / "half")), outputs(model))
        assert loaded(tmp_path / "half").dtype == dtype
        embcompress.expand(tmp_path / "half", output=tmp_path / "dense")
        assert loaded(tmp_path / "dense").dtype == dtype
        assert_same(loaded(tmp_path / "dense"), model, atol=0.05)

    def test_the_ratio_of_what_is_saved_is_that_of_its_bytes(self, shelf, tmp_path):
        """Codes do not shrink in half precision, the dense table does."""
        loaded(shelf.small("bert"), dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
        (record,) = tables(tmp_path / "half")
        stored = load_file(tmp_path / "half" / "model.safetensors")
        size = sum(stored[name].nbytes for name in record.part_names)
        assert record.ratio == pytest.approx(1 - size / (2 * V * D))
        assert record.trained, "the error in the record is that of other bytes"

    def test_dtype_auto(self, shelf):
        """The dtype of the floats decides, not that of the codes."""
        assert loaded(shelf.small("bert"), dtype="auto").dtype == torch.float32

    @pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
    @pytest.mark.parametrize("name", ["gemma3", "t5"])
    def test_a_device_map(self, shelf, tmp_path, name, device_map):
        """Device maps work; they always need accelerate."""
        pytest.importorskip("accelerate")
        for method in ("svd", "pq"):
            model = loaded(shelf.small(name, method), device_map=device_map)
            assert_same(model, loaded(shelf.dense(name, method)))
            model.save_pretrained(tmp_path / method)
            assert kinds(tmp_path / method) == kinds(shelf.small(name, method))

    def test_a_table_on_disk_is_refused(self, shelf, tmp_path):
        """accelerate cannot fetch the parts of a table from disk; other layers may be there."""
        pytest.importorskip("accelerate")
        path = shelf.small("bert")
        places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "cls": "cpu"}
        model = loaded(path, device_map=places, offload_folder=tmp_path)
        assert_same(model, loaded(shelf.dense("bert")))
        with pytest.raises(
            UsageError, match=r"device_map puts bert\.embeddings\.word_embeddings, .* on disk"
        ):
            loaded(path, device_map={"bert": "disk", "cls": "cpu"}, offload_folder=tmp_path)

    def test_the_configuration_of_a_loaded_model(self, shelf):
        """It can be passed to the next from_pretrained."""
        model = loaded(shelf.small("bert"))
        assert_same(loaded(shelf.small("bert"), config=model.config), model)

    def test_sizes_of_another_model(self, shelf):
        """A table is never initialized afresh, even if mismatched sizes may be ignored."""
        path = shelf.small("bert")
        config = tf.BertConfig.from_pretrained(path, vocab_size=500)
        for ignore in (False, True):
            with pytest.raises(UsageError, match=r"is \[600, 32\], the model has \[500, 32\]"):
                loaded(path, config=config, ignore_mismatched_sizes=ignore)


class TestOtherClassesThanTheOneThatWasSaved:
    def test_the_body_alone(self, shelf, tmp_path):
        """Names lose their prefix, also when the body is saved; no part of the table is unexpected."""
        path = shelf.small("bert")
        model, report = tf.AutoModel.from_pretrained(path, output_loading_info=True)
        assert all(name.startswith("cls.") for name in report["unexpected_keys"])
        assert all(name.startswith("pooler.") for name in report["missing_keys"])
        dense = tf.AutoModel.from_pretrained(shelf.dense("bert"))
        assert_same(model, dense)
        model.save_pretrained(tmp_path / "body")
        (record,) = tables(tmp_path / "body")
        assert record.name == "embeddings.word_embeddings.weight"
        assert_same(tf.AutoModel.from_pretrained(tmp_path / "body"), model)
        embcompress.expand(tmp_path / "body", output=tmp_path / "dense")
        assert_same(tf.AutoModel.from_pretrained(tmp_path / "dense"), model)
        masked = tf.AutoModelForMaskedLM.from_pretrained(tmp_path / "body")
        assert_same(masked.bert, model)

    def test_the_encoder_alone(self, shelf):
        """T5EncoderModel loads the shared table."""
        model = tf.T5EncoderModel.from_pretrained(shelf.small("t5"))
        dense = tf.T5EncoderModel.from_pretrained(shelf.dense("t5"))
        with torch.no_grad():
            torch.testing.assert_close(model(IDS)[0], dense(IDS)[0], atol=1e-4, rtol=0)

    def test_a_class_without_the_table(self, shelf):
        """It is refused, as its own table would be random."""
        with pytest.raises(
            UsageError, match=r"GPT2LMHeadModel has no parameter bert\.embeddings\."
        ) as caught:
            tf.GPT2LMHeadModel.from_pretrained(shelf.small("bert"))
        assert "\n" not in str(caught.value)

    def test_a_fresh_bias_is_zero(self, tmp_path):
        """A head that no file holds, on a body that was saved alone."""
        sizes = tf.PhiConfig(**SIZES, tie_word_embeddings=True)
        tf.PhiModel(sizes).save_pretrained(tmp_path / "body")
        embcompress.factorize(tmp_path / "body", rank=8, output=tmp_path / "small")
        model = tf.PhiForCausalLM.from_pretrained(tmp_path / "small")
        assert isinstance(model.lm_head, FactorizedHead)
        assert torch.equal(model.lm_head.bias, torch.zeros(V))


class TestTies:
    def test_a_head_stored_in_full_keeps_its_weight(self, tmp_path, told):
        """It does although the configuration would tie it, and keeps it when it is saved again."""
        torch.manual_seed(0)
        model = MODELS["gpt2"]()
        model.lm_head.weight = nn.Parameter(torch.randn(V, D))
        model.save_pretrained(tmp_path / "original")
        embcompress.factorize(tmp_path / "original", ratio=0.9, method="pq", output=tmp_path / "small")
        small = loaded(tmp_path / "small")
        assert not told
        assert type(small.lm_head) is nn.Linear
        assert torch.equal(small.lm_head.weight, model.lm_head.weight)
        small.save_pretrained(tmp_path / "again")
        assert kinds(tmp_path / "again") == kinds(tmp_path / "small")
        assert_same(loaded(tmp_path / "again"), small)

    def test_a_pytorch_bin_directory(self, tmp_path):
        """Tied names share memory in such files; none is unexpected, and safetensors files are written."""
        torch.manual_seed(0)
        model = MODELS["t5"]()
        model.config.save_pretrained(tmp_path / "original")
        torch.save(model.state_dict(), tmp_path / "original" / "pytorch_model.bin")
        embcompress.factorize(tmp_path / "original", ratio=0.9, method="pq", output=tmp_path / "small")
        small, report = tf.T5ForConditionalGeneration.from_pretrained(
            tmp_path / "small", output_loading_info=True
        )
        assert not any(report.values())
        small.save_pretrained(tmp_path / "again")
        assert_same(loaded(tmp_path / "again"), small)
        embcompress.expand(tmp_path / "again", output=tmp_path / "dense")
        assert_same(loaded(tmp_path / "dense"), small)

    def test_two_tables(self, tmp_path):
        """Each is swapped, saved and loaded."""
        torch.manual_seed(0)
        MODELS["gpt2"]().save_pretrained(tmp_path / "original")
        embcompress.factorize(
            tmp_path / "original", rank=4, output=tmp_path / "small",
            keys=["transformer.wte.weight", "transformer.wpe.weight"],
        )  # fmt: skip
        small = loaded(tmp_path / "small")
        assert type(small.transformer.wpe) is type(small.transformer.wte) is FactorizedEmbedding
        small.save_pretrained(tmp_path / "again")
        assert tables(tmp_path / "again") == tables(tmp_path / "small")
        assert_same(loaded(tmp_path / "again"), small)


class TestTraining:
    @pytest.mark.parametrize(("method", "atol"), [("svd", 0), ("int4", 0), ("pq", 0.05)])
    def test_a_trained_model_saves_what_it_has_learned(self, shelf, tmp_path, method, atol):
        """Values are exact, but a right factor in integers is rounded again; the record says trained."""
        model = loaded(shelf.small("bert", method)).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        model.eval().save_pretrained(tmp_path / "tuned")
        assert not torch.equal(outputs(model), outputs(loaded(shelf.small("bert", method))))
        assert_same(loaded(tmp_path / "tuned"), model, atol=atol)
        assert [table.trained for table in tables(tmp_path / "tuned")] == [method != "int4"]
        assert kinds(tmp_path / "tuned").keys() == kinds(shelf.small("bert", method)).keys()

    def test_a_copy_is_a_model_of_its_own(self, shelf, tmp_path):
        """deepcopy, half and float work as on any model."""
        model = loaded(shelf.small("bert"))
        twin = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        twin.save_pretrained(tmp_path / "twin")
        assert_same(loaded(tmp_path / "twin"), loaded(shelf.small("bert")))
        assert twin.half().float().dtype == torch.float32


class TestRefusals:
    @pytest.fixture
    def small(self, shelf, tmp_path):
        path = tmp_path / "small"
        embcompress.factorize(shelf.original("bert"), ratio=0.9, method="pq", output=path)
        return path

    def rewrite(self, path, change):
        for shard in path.glob("*.safetensors"):
            save_file(change(load_file(shard)), shard, metadata={"format": "pt"})

    @pytest.mark.parametrize("part", ["0.codes", "0.scales", "1.scales"])
    def test_a_part_that_is_missing(self, small, part):
        """It is never initialized at random."""
        name = f"bert.embeddings.word_embeddings.{part}"
        self.rewrite(small, lambda tensors: {n: t for n, t in tensors.items() if n != name})
        with pytest.raises(InputError, match=rf"word_embeddings\.{part}, a part of .*, is missing"):
            loaded(small)

    def test_a_part_of_another_shape(self, small):
        """It is not broadcast, cut or initialized afresh."""
        self.rewrite(small, lambda ts: {n: t[:-1] if n.endswith("0.codes") else t for n, t in ts.items()})
        with pytest.raises(InputError, match=r"word_embeddings\.weight"):
            loaded(small)

    def test_a_record_that_cannot_be_read(self, small):
        """A corrupt record in config.json is an input error."""
        config = json.loads((small / "config.json").read_text())
        config["quantization_config"]["tables"][0]["shape"] = "wide"
        (small / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="the embcompress record cannot be read"):
            loaded(small)

    def test_a_method_without_a_module(self, small, monkeypatch):
        """The message tells the user to expand it."""
        from embcompress.methods.pq.method import PQ

        monkeypatch.setattr(PQ, "has_module", False)
        with pytest.raises(UsageError, match=r"method pq\) cannot be loaded; run 'embcompress expand'"):
            loaded(small)

    def test_compressing_while_loading(self, shelf):
        """from_pretrained does not compress a dense directory."""
        config = loaded(shelf.small("bert")).config.quantization_config
        with pytest.raises(UsageError, match="run 'embcompress factorize'"):
            loaded(shelf.original("bert"), quantization_config=config)

    def test_a_table_that_was_taken_out_cannot_be_saved(self, shelf, tmp_path):
        """The saved tensors would not fit the record."""
        model = loaded(shelf.small("bert"))
        model.set_input_embeddings(nn.Embedding(V, D))
        with pytest.raises(UsageError, match="is a Embedding, not a compressed table any more"):
            model.save_pretrained(tmp_path / "again")

    def test_resizing_is_refused_by_transformers(self, shelf):
        """It requires an nn.Embedding; the model is unchanged."""
        model = loaded(shelf.small("bert"))
        with pytest.raises(TypeError, match="not an instance"):
            model.resize_token_embeddings(V + 1)
        assert_same(model, loaded(shelf.small("bert")))

    def test_two_devices_for_one_table(self, shelf):
        """The check alone, as the test machine may have only one device."""
        from embcompress.integrations.swap import _check_places

        model = loaded(shelf.small("gpt2"))
        (table,) = model.hf_quantizer._swap.tables
        assert table.owners == ("transformer.wte", "lm_head")
        _check_places([table], {"": "cpu"})
        _check_places([table], {"transformer.wte": 0, "transformer.h": 1, "lm_head": 0})
        with pytest.raises(UsageError, match=r"transformer\.wte\.weight on several devices"):
            _check_places([table], {"transformer": 0, "lm_head": 1})


def test_without_registering_transformers_refuses(shelf, tmp_path, monkeypatch):
    """What factorize wrote, and what save_pretrained wrote of it: both carry the guard."""
    from transformers.quantizers import auto as registries

    loaded(shelf.small("bert")).save_pretrained(tmp_path / "again")
    assert kinds(tmp_path / "again")["bert.embeddings.word_embeddings.weight"] == ((0,), "F32")
    for known in (registries.AUTO_QUANTIZER_MAPPING, registries.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(known, "embcompress")
    for path in (shelf.small("bert"), tmp_path / "again"):
        with pytest.raises(RuntimeError, match="mismatch"):
            tf.AutoModelForMaskedLM.from_pretrained(path)


def test_registering_twice_changes_nothing():
    """The classes are those of the module, whose import registers as well."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    import embcompress.integrations.transformers as module

    embcompress.register()
    assert AUTO_QUANTIZER_MAPPING["embcompress"] is module.EmbcompressQuantizer


def test_without_transformers_the_extra_is_named(monkeypatch):
    """One line with the remedy."""
    monkeypatch.setitem(sys.modules, "embcompress.integrations.transformers", None)
    monkeypatch.delattr("embcompress.integrations.transformers", raising=False)
    with pytest.raises(UsageError, match=r"pip install --upgrade 'embcompress\[transformers\]'"):
        embcompress.register()


def test_the_record_is_in_the_weights_too(shelf, tmp_path):
    """A weight file that is taken out of its directory still describes itself."""
    model = loaded(shelf.small("bert"))
    model.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "again" / "model.safetensors", tmp_path / "alone.safetensors")
    assert tables(tmp_path / "alone.safetensors") == tables(shelf.small("bert"))
    fresh = embcompress.load(MODELS["bert"](), tmp_path / "alone.safetensors")
    assert_same(fresh.eval(), model)
    assert isinstance(fresh.bert.embeddings.word_embeddings, CodedEmbedding)
    (record,) = tables(shelf.small("bert"))
    assert replace(record, trained=False) == record


def test_sentence_transformers_take_compressed_directories(minilm, tmp_path):
    """The real MiniLM at a tenth of its table: the vectors of the dense reconstruction, saved again too."""
    kind = pytest.importorskip("sentence_transformers").SentenceTransformer
    texts = ["play some jazz", "what is the weather like tomorrow", "an embedding table"]
    embcompress.factorize(minilm, ratio=0.9, method="pq", output=tmp_path / "small")
    embcompress.expand(tmp_path / "small", output=tmp_path / "dense")
    model = kind(str(tmp_path / "small"), device="cpu")
    vectors = torch.from_numpy(model.encode(texts))
    dense = torch.from_numpy(kind(str(tmp_path / "dense"), device="cpu").encode(texts))
    torch.testing.assert_close(vectors, dense, atol=1e-4, rtol=0)
    original = torch.from_numpy(kind(str(minilm), device="cpu").encode(texts))
    assert (vectors - original).abs().max() > 1e-3
    assert (vectors * original).sum(dim=1).min() > 0.99
    model.save_pretrained(str(tmp_path / "again"))
    again = torch.from_numpy(kind(str(tmp_path / "again"), device="cpu").encode(texts))
    assert torch.equal(again, vectors)
