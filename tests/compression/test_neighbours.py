"""What other libraries wrote next to the weights: adapters of peft, and layers that are quantized already.

The quantized model is one that transformers reads without a further library: block-wise float8, made here
from its description. Its outputs are compared with those of what ``expand`` makes of the compressed copy.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as tf
from helpers.checkpoints import assert_refused, directory, run, succeed, table
from helpers.quick import quick
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import embcompress
from embcompress.errors import UsageError
from embcompress.loading.load import load

ROWS, WIDTH = 400, 128
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = torch.randint(0, ROWS, (2, 9), generator=torch.Generator().manual_seed(1))


# ---- adapters

PREFIX = "base_model.model."


def adapter(path, *, suffix=".safetensors", saved=True, task="CAUSAL_LM"):
    """An adapter as peft writes it; with ``modules_to_save``, the table and the head are in it."""
    weights = {
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32),
        f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(32, 4),
    }
    if saved:
        for name in (TABLE, HEAD):
            weights[f"{PREFIX}{name}"] = torch.from_numpy(table(500, 32))
    path.mkdir()
    file = path / f"adapter_model{suffix}"
    save_file(weights, file, {"format": "pt"}) if suffix == ".safetensors" else torch.save(weights, file)
    modules = ["embed_tokens", "lm_head"] if saved else None
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "modules_to_save": modules,
              "task_type": task, "base_model_name_or_path": "base"}  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config))
    return file


@pytest.mark.parametrize(
    ("suffix", "saved"), [(".safetensors", True), (".bin", True), (".safetensors", False)]
)
def test_row_93_adapters(tmp_path, suffix, saved):
    """The directory and the file in it alike, by report as by factorize: peft would not find the table."""
    file = adapter(tmp_path / "adapter", suffix=suffix, saved=saved)
    line = f"peft.AutoPeftModelForCausalLM.from_pretrained('{file.parent}').merge_and_unload()"
    for path in (file.parent, file):
        assert_refused(
            tmp_path,
            "factorize",
            path,
            "--rank",
            2,
            code=2,
            says=f"merge it into its base model first: {line}",
        )
        assert_refused(tmp_path, "report", path, code=2, says="is a PEFT adapter")


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("SEQ_CLS", "AutoPeftModelForSequenceClassification"),
        (None, "AutoPeftModel"),
        (["x"], "AutoPeftModel"),
    ],
)
def test_row_93_the_class_that_merges(tmp_path, task, kind):
    """peft has one for each task, and another for adapters that name none."""
    file = adapter(tmp_path / "adapter", task=task)
    with pytest.raises(UsageError, match=rf"peft\.{kind}\.from_pretrained"):
        embcompress.factorize(file, rank=2)


def test_other_files_next_to_an_adapter_are_not_part_of_it(tmp_path):
    """A weight file of another name is what it is."""
    file = adapter(tmp_path / "adapter")
    other = file.with_name("table.safetensors")
    save_file({"embedding.weight": torch.from_numpy(table(500, 32))}, other)
    succeed("factorize", other, "--rank", 2)


# ---- quantized layers


def quantized(path, *, tied):
    """A small Llama of which every linear layer but the head is float8, in blocks of 128 by 128."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).to(torch.bfloat16)
    decay = 0.9 ** torch.arange(WIDTH)  # of the spectrum, so that little is lost
    model.model.embed_tokens.weight.data.copy_(torch.randn(ROWS, WIDTH) * decay)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data += torch.randn_like(weight) / 4
    model.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = weights[name].abs().max().float() / 448
        weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale[None, None]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    raw = json.loads((path / "config.json").read_text())
    record = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (path / "config.json").write_text(json.dumps({**raw, "quantization_config": record}))
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def fp8(request, tmp_path_factory):
    return quantized(tmp_path_factory.mktemp("fp8") / "model", tied=request.param)


def outputs(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits.float()


def opened(path, **options):
    return tf.LlamaForCausalLM.from_pretrained(path, **options)


@pytest.mark.parametrize("target", [("svd", "--rank", 64), ("pq", "--ratio", 0.6)], ids=["svd", "pq"])
def test_a_quantized_model_runs_with_its_table_compressed(fp8, tmp_path, target):
    """As it runs with the same table made dense; without ``load`` it is refused, or has no table."""
    method, *size = target
    small, dense = tmp_path / "small", tmp_path / "dense"
    result = succeed("factorize", fp8, "--method", method, *size, "-o", small)
    assert "its layers are quantized (fp8) and stay as they are" in result.stderr
    assert (small / "config.json").read_bytes() == (fp8 / "config.json").read_bytes()
    succeed("verify", small, "--against", fp8)
    succeed("expand", small, "-o", dense)
    assert (dense / "config.json").read_bytes() == (fp8 / "config.json").read_bytes()
    with (
        safe_open(small / "model.safetensors", "pt") as file,
        safe_open(fp8 / "model.safetensors", "pt") as old,
    ):
        kept = [name for name in old.keys() if name not in (TABLE, HEAD)]  # noqa: SIM118 - it is no mapping
        assert all(
            torch.equal(file.get_tensor(n).view(torch.uint8), old.get_tensor(n).view(torch.uint8))
            for n in kept
        )
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        opened(small)

    expected = outputs(opened(dense))
    model = opened(small, ignore_mismatched_sizes=True)
    before = {name: value.clone() for name, value in model.state_dict().items() if "layers" in name}
    assert load(model, small) is model
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    torch.testing.assert_close(outputs(model), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    assert not torch.allclose(
        outputs(opened(small, ignore_mismatched_sizes=True)), expected, rtol=0.2, atol=0.2
    )
    original = outputs(opened(fp8))
    assert (expected - original).norm() < 0.2 * original.norm()
    assert "call `from_pretrained` with `ignore_mismatched_sizes=True`" in (small / "README.md").read_text()


def test_the_file_in_a_quantized_directory_gets_the_same_answer(fp8, tmp_path):
    """Its copy loads into the model that transformers has opened, and leaves the layers alone."""
    small = tmp_path / "small.safetensors"
    result = succeed("factorize", fp8 / "model.safetensors", "--rank", 64, "-o", small)
    assert "its layers are quantized (fp8)" in result.stderr
    assert "its layers are quantized (fp8)" in succeed("report", fp8 / "model.safetensors").stderr
    assert "its layers are quantized (fp8)" in succeed("report", fp8).stderr
    succeed("expand", small, "-o", tmp_path / "dense.safetensors")
    other = shutil.copytree(fp8, tmp_path / "other")
    shutil.copy(tmp_path / "dense.safetensors", other / "model.safetensors")
    expected = outputs(opened(other))
    model = load(opened(fp8), small)
    torch.testing.assert_close(outputs(model), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_a_model_whose_layers_are_not_loaded_is_refused(fp8, tmp_path):
    """Its layers would stay random without a word."""
    embcompress.factorize(fp8, rank=64, output=tmp_path / "small")
    model = tf.LlamaForCausalLM(tf.AutoConfig.from_pretrained(fp8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"has other values in the model.*ignore_mismatched_sizes"):
        load(model, tmp_path / "small")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_head_that_the_model_ties_but_the_file_stores_keeps_its_weights(tmp_path):
    """Only the table is replaced, whether the library has untied the head (as transformers 5 does) or not."""
    path = quantized(tmp_path / "model", tied=True)
    weights = load_file(path / "model.safetensors")
    weights[HEAD] = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(7)).to(torch.bfloat16)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    embcompress.factorize(path, rank=64, output=tmp_path / "small", keys=[TABLE])
    for again in (False, True):
        model = opened(tmp_path / "small", ignore_mismatched_sizes=True)
        if again:
            model.lm_head.weight = model.model.embed_tokens.weight
        load(model, tmp_path / "small")
        assert type(model.model.embed_tokens).__name__ == "FactorizedEmbedding"
        assert torch.equal(model.lm_head.weight, weights[HEAD])


def marked(path, record=None, file=None, **config):
    """A directory with a float table, and what other libraries leave in it."""
    raw = {"vocab_size": 60, **config} | ({} if record is None else {"quantization_config": record})
    directory(path, [{TABLE: table(60, 16)}], **raw)
    if file is not None:
        (path / file).write_text("{}")
    return path


MARKS = {
    "gptq": ({"record": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    "awq": ({"record": {"quant_method": "awq", "bits": 4}}, "awq"),
    "old bitsandbytes": ({"record": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "bitsandbytes"),
    "compressed-tensors": ({"record": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    "old gptq": ({"file": "quantize_config.json"}, "gptq"),
    "old awq": ({"file": "quant_config.json"}, "awq"),
    "modelopt": ({"file": "hf_quant_config.json"}, "modelopt"),
}
"""What other libraries leave in a directory, and what they are called by it."""


@pytest.mark.parametrize(
    ("left", "name"), quick(MARKS, "gptq", "old bitsandbytes", "compressed-tensors", "old awq")
)
def test_whatever_quantized_it_is_named(tmp_path, left, name):
    """By report and factorize, by its record or by the file in which older versions wrote it."""
    path = marked(tmp_path / "model", **left)
    for command in (("report", path), ("factorize", path, "--rank", 2, "-o", tmp_path / "small")):
        said = succeed(*command).stderr
        assert f"its layers are quantized ({name})" in said
        assert ("CompressedTensorsConfig(dequantize=True)" in said) == (name == "compressed-tensors")
    record = json.loads(embcompress_record(tmp_path / "small"))
    assert record["quantizer"] == name


def embcompress_record(path):
    with safe_open(path / "model.safetensors", "np") as file:
        return file.metadata()["embcompress"]


def test_what_is_not_quantized_is_not_called_so(tmp_path):
    """Neither is a file next to the weights of a quantized model that is no part of them."""
    path = marked(tmp_path / "plain")
    assert "quantized" not in succeed("factorize", path, "--rank", 2, "-o", tmp_path / "small").stderr
    assert (
        "quantizer" not in json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    )
    other = marked(tmp_path / "model", {"quant_method": "gptq"}) / "mine.pt"
    torch.save({"embedding.weight": torch.from_numpy(table(60, 16))}, other)
    assert "quantized" not in succeed("factorize", other, "--rank", 2).stderr


@pytest.mark.parametrize(
    "record",
    [{}, [], "gptq", 4, {"quant_method": None}, {"quant_method": ["gptq"]}, {"quant_method": "a b\x1b"}],
    ids=str,
)
def test_row_96_records_that_do_not_say_what_quantized_it(tmp_path, record):
    """The directory and the file in it alike."""
    path = marked(tmp_path / "model", record)
    for each in (path, path / "model.safetensors"):
        assert_refused(
            tmp_path, "factorize", each, "--rank", 2, code=2, says="does not say how; compress the model"
        )


def test_row_97_native_factors_of_a_quantized_model(tmp_path):
    """They are linear layers, which the library would take for quantized ones."""
    sizes = {"model_type": "deberta-v2", "hidden_size": 16, "position_biased_input": False}
    config = {**sizes, "architectures": ["DebertaV2Model"]}
    for name, record in (("plain", None), ("gptq", {"quant_method": "gptq"})):
        path = tmp_path / name
        raw = {"vocab_size": 60, **config} | ({} if record is None else {"quantization_config": record})
        directory(path, [{"embeddings.word_embeddings.weight": table(60, 16)}], **raw)
    command = ("factorize", tmp_path / "gptq", "--rank", 4)
    assert (
        "loads with the library of the model" in succeed("factorize", tmp_path / "plain", "--rank", 4).stderr
    )
    assert "stored for embcompress, since its layers are quantized" in succeed(*command, "--dry-run").stderr
    assert_refused(
        tmp_path, *command, "--layout", "native", code=2, says="its layers are quantized (gptq), and"
    )


def test_row_98_tables_that_are_quantized_themselves(tmp_path):
    """Only what is still in floats can be compressed."""
    path = directory(tmp_path / "model", [{"a": table(60, 16)}], quantization_config={"quant_method": "fp8"})
    save_file({TABLE: torch.ones(60, 16).to(torch.float8_e4m3fn)}, path / "model.safetensors")
    says = f"{TABLE}: F8_E4M3 of shape [60, 16] cannot be read as a table"
    for each in (path, path / "model.safetensors"):
        assert_refused(tmp_path, "factorize", each, "--rank", 2, code=3, says=says)


def test_recovery_needs_float_weights(fp8, tmp_path):
    """distil, finetune and evaluate refuse the compressed copy as they refuse the model."""
    embcompress.factorize(fp8, rank=64, output=tmp_path / "small")
    (tmp_path / "texts.txt").write_text("a\n" * 20)
    result = run("evaluate", tmp_path / "small", "--teacher", fp8, "--texts", tmp_path / "texts.txt")
    assert result.exit_code == 2
    assert "its weights are quantized by fp8" in result.stderr
