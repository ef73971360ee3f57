"""A few of the classes that ``make field`` tries, and that it sees what is wrong."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from field.trying import STEPS, tried

import embcompress
from embcompress.integrations import registered
from embcompress.nn import FactorizedPair


@pytest.fixture(autouse=True)
def transformers_knows_how():
    with registered():
        yield


def steps(name, method, folder):
    folder.mkdir(exist_ok=True)
    result = tried(name, method, folder)
    assert result.compared == "outputs", result
    return result


@pytest.mark.parametrize(("name", "method"), [
    ("Qwen2_5_VLForConditionalGeneration", "svd"),  # its text model stands elsewhere in files
    ("DeepseekV3ForCausalLM", "pq"),  # its experts are one tensor in the model, many in files
    ("Phi3ForCausalLM", "int8"),
])  # fmt: skip
def test_row_100_models_whose_weights_have_other_names_in_files(tmp_path, name, method):
    """Every step works, and the outputs are those of transformers with the expanded table."""
    assert steps(name, method, tmp_path).steps == dict.fromkeys(STEPS, "yes")


@pytest.mark.parametrize(
    "name", ["MarianMTModel", "FSMTForConditionalGeneration", "PegasusForConditionalGeneration"]
)
def test_row_101_weights_that_are_never_stored(tmp_path, name):
    """Sinusoidal positions, which the class makes itself, are not missed."""
    assert steps(name, "int8", tmp_path).steps == dict.fromkeys(STEPS, "yes")


@torch.no_grad()
def spoilt_parts(load):
    def wrong(model, path):
        model = load(model, path)
        pair = next(m for m in model.modules() if isinstance(m, FactorizedPair))
        next(pair.parameters()).mul_(1.01)
        return model

    return wrong


def spoilt_others(load):
    def wrong(model, path):
        model = load(model, path)
        with torch.no_grad():
            [*model.parameters()][-1].add_(1e-3)
        return model

    return wrong


@pytest.mark.parametrize("spoil", [spoilt_parts, spoilt_others])
def test_a_wrong_number_is_seen(tmp_path, monkeypatch, spoil):
    """The comparison fails where load gives slightly different weights."""
    monkeypatch.setattr(embcompress, "load", spoil(embcompress.load))
    result = steps("BertModel", "svd", tmp_path)
    assert result.steps == {**dict.fromkeys(STEPS, "yes"), "load": "FAULT"}
    assert result.reason.startswith("load: ")


def test_an_expanded_table_with_another_error_is_seen(tmp_path, monkeypatch):
    """The error of the expanded table is measured, not believed."""
    expand = embcompress.expand

    def wrong(path, *, output):
        expand(path, output=output)
        model = tf.BertModel.from_pretrained(output)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.9)
        model.save_pretrained(output)

    monkeypatch.setattr(embcompress, "expand", wrong)
    folder = tmp_path / "x"
    folder.mkdir()
    result = tried("BertModel", "svd", folder)
    assert result.steps == {"factorize": "yes", "expand": "FAULT"}
    assert "reported" in result.reason


def test_a_class_without_tokens_is_not_tried(tmp_path):
    """And neither is one that cannot be built; both say why."""
    assert tried("ViTModel", "svd", tmp_path).excluded == "reads no tokens"
    assert tried("TimmBackbone", "svd", tmp_path).excluded.startswith("cannot be built small: ")
