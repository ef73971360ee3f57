"""Everything that was trained is written under the names in the files, even if the model uses other names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.distilling import WORDS, tokenizer
from helpers.renamed_models import gpt_neox, mixtral, qwen3_moe
from helpers.sequence_models import WORDS as WEATHER_WORDS
from helpers.sequence_models import named, saved
from helpers.weather import weather
from safetensors.torch import load_file

import embcompress
from embcompress import DistilRecipe
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import UsageError
from embcompress.pretrained.models import open_pretrained
from embcompress.runs.trained import with_names
from embcompress.training.records import Recipe

LANGUAGE = {
    "qwen3_moe": (tf.Qwen3MoeForCausalLM, qwen3_moe),
    "mixtral": (tf.MixtralForCausalLM, mixtral),
    "gpt_neox": (tf.GPTNeoXForCausalLM, gpt_neox),
}
EXPERTS = {
    "qwen3_moe": ("mlp.experts.{}.down_proj", "mlp.experts.down_proj"),
    "mixtral": ("block_sparse_moe.experts.{}.w2", "mlp.experts.down_proj"),
}
"""One of the weights of an expert: in the files, and all of them in the model."""


def tensors(path):
    return {n: value for file in sorted(path.glob("*.safetensors")) for n, value in load_file(file).items()}


def assert_all_written(before, after):
    """Every tensor has changed in training, except the guards, which are empty."""
    assert before.keys() == after.keys()
    assert {n for n in before if torch.equal(before[n], after[n])} == {
        n for n in before if not len(before[n])
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = (" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(200))
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize("body", [False, True], ids=["whole", "body"])
@pytest.mark.parametrize("name", LANGUAGE)
def test_distil_writes_what_it_has_trained(tmp_path, texts, name, body):
    """Experts that are one tensor in the model, and a renamed head; also for a body saved alone."""
    kind, config = LANGUAGE[name]
    original, small, tuned = (tmp_path / part for part in ("original", "small", "tuned"))
    original.mkdir()
    torch.manual_seed(0)
    model = kind(config(tokenizer(original), tie_word_embeddings=body))
    (model.base_model if body else model).save_pretrained(original, max_shard_size="60KB")
    described = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**described, "architectures": [kind.__name__]}))
    embcompress.factorize(original, rank=6, output=small)
    recipe = DistilRecipe(epochs=3, learning_rate=3e-3, batch_size=16)
    result = embcompress.distil(small, original, texts, output=tuned, recipe=recipe)
    assert result.best > 0
    assert result.after.loss < 0.9 * result.before.loss
    assert result.after.loss == pytest.approx(result.checks[result.best].held_out.loss, rel=1e-4)

    before, after = tensors(small), tensors(tuned)
    assert_all_written(before, after)
    if name in EXPERTS:
        one, all_of_them = EXPERTS[name]
        reopened = open_pretrained(tuned).model.get_parameter(f"model.layers.1.{all_of_them}")
        prefix = "" if body else "model."
        files = [after[f"{prefix}layers.1.{one.format(i)}.weight"] for i in range(4)]
        assert torch.equal(reopened, torch.stack(files))


@pytest.mark.parametrize(
    ("kind", "config"),
    [(tf.Qwen3MoeForSequenceClassification, qwen3_moe), (tf.GPTNeoXForSequenceClassification, gpt_neox)],
)
def test_finetune_writes_what_it_has_trained(tmp_path, kind, config):
    """The accuracy of the written model is that of the epoch that was kept."""
    torch.manual_seed(0)
    saved(tmp_path / "model", kind(config(len(WEATHER_WORDS), pad_token_id=0, **named())))
    weather(tmp_path / "texts.csv")
    embcompress.factorize(tmp_path / "model", rank=6, output=tmp_path / "small")
    recipe = Recipe(epochs=2, batch_size=16, optimizer="adamw", learning_rate=1e-3, clip=1.0)
    result = embcompress.finetune(
        tmp_path / "small", tmp_path / "texts.csv", output=tmp_path / "tuned", recipe=recipe
    )
    assert result.best > 0
    assert result.dev_accuracy == pytest.approx(result.epochs[result.best].dev_accuracy)
    assert_all_written(tensors(tmp_path / "small"), tensors(tmp_path / "tuned"))


def test_a_trained_tensor_without_a_name_is_never_dropped(tmp_path):
    """It is refused with its name, unless the files hold the same tensor under another."""
    model = tf.BertForMaskedLM(tf.BertConfig(vocab_size=60, hidden_size=16, intermediate_size=24,
                                             num_hidden_layers=1, num_attention_heads=2))  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    embcompress.factorize(tmp_path / "model", rank=4, output=tmp_path / "small")
    opened = open_pretrained(tmp_path / "small")
    state = opened.stored_state(opened.model.state_dict())
    with open_checkpoint(tmp_path / "small") as source:
        assert "cls.predictions.decoder.bias" in state.keys() - source.tensors.keys()
        kept = with_names(source, state)
        assert "cls.predictions.bias" in kept
        assert "cls.predictions.decoder.bias" not in kept
        with pytest.raises(UsageError, match=r"small: adapter\.weight is trained but has no name"):
            with_names(source, {**state, "adapter.weight": torch.ones(2)})


def test_merged_weights_without_a_way_back_are_refused_before_training(tmp_path, texts, monkeypatch):
    """transformers can load some classes that it cannot write; weights it does not merge can be trained."""
    kind, config = LANGUAGE["qwen3_moe"]
    original, small = tmp_path / "original", tmp_path / "small"
    original.mkdir()
    kind(config(tokenizer(original))).save_pretrained(original)
    embcompress.factorize(original, rank=6, output=small)

    def no_way(self):
        raise NotImplementedError

    monkeypatch.setattr("transformers.core_model_loading.MergeModulelist.reverse_op", property(no_way))
    recipe = DistilRecipe(epochs=1, learning_rate=1e-3, batch_size=16)
    with pytest.raises(UsageError, match=r"experts\.\w+ back for the files .* --train norms"):
        embcompress.distil(small, original, texts, output=tmp_path / "tuned", recipe=recipe)
    assert not (tmp_path / "tuned").exists()
    recipe = DistilRecipe(epochs=1, learning_rate=1e-3, batch_size=16, train="norms")
    embcompress.distil(small, original, texts, output=tmp_path / "tuned", recipe=recipe)
