"""Loading compressed checkpoints into models; the checkpoints are made by torch's own SVD."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from helpers.checkpoints import loaded_by
from helpers.compressed_models import (
    CASES,
    FORMATS,
    IDS,
    Case,
    D,
    R,
    V,
    bert,
    built,
    compressed,
    low_rank,
    parameters,
    prefixed,
    write,
)
from helpers.quick import quick
from helpers.registry import EVERY
from helpers.resealing import CARRIED, TABLE, Net
from safetensors.torch import load_file, save_file
from torch import nn

from embcompress import expand, factorize
from embcompress.errors import InputError, MissingWeights, UsageError
from embcompress.loading.load import load
from embcompress.methods.svd.method import SVD
from embcompress.nn import FactorizedEmbedding, FactorizedHead


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_the_loaded_model_computes_with_the_low_rank_table(tmp_path, name, kind):
    """It computes what the dense model computes with the product of the factors as its table."""
    case = CASES[name]
    trained = built(case, seed=0)
    path = write(tmp_path, kind, *compressed(trained, case.tables))
    model = built(case, seed=1)
    before = parameters(model)
    assert load(model, path) is model
    with torch.no_grad():
        outputs = case.run(model)
        torch.testing.assert_close(outputs, case.run(low_rank(trained, case.tables)), rtol=0, atol=1e-5)
        assert not torch.allclose(outputs, case.run(trained), rtol=0, atol=1e-4)
    rows = [trained.get_parameter(table).shape[0] for table in case.tables]
    assert before - parameters(model) == sum(v * D - R * (v + D) for v in rows)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "bert", "mamba"])
def test_everything_tied_to_the_table_shares_its_factors(tmp_path, name):
    """No tied embedding or head keeps a weight of its own."""
    case = CASES[name]
    model = load(built(case, 1), write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables)))
    pairs = [m for m in model.modules() if isinstance(m, (FactorizedEmbedding, FactorizedHead))]
    assert {id(m.left) for m in pairs} == {id(pairs[0].left)}
    assert isinstance(model.get_output_embeddings(), FactorizedHead)


def test_a_loaded_model_saves_a_state_dict_that_loads_again(tmp_path):
    """Training can go on: a second model loaded from the first one's weights computes the same."""
    case = CASES["translator"]
    path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables))
    first, second = load(built(case, 1), path), load(built(case, 2), path)
    case.run(first).sum().backward()
    torch.optim.SGD(first.parameters(), 0.1).step()
    assert not torch.equal(case.run(first), case.run(second))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(case.run(first), case.run(second))


def test_a_loaded_causal_model_generates(tmp_path):
    """transformers' generate works and gives the tokens of the low-rank dense model."""
    case = CASES["gpt2"]
    trained = built(case, 0)
    model = load(built(case, 1), write(tmp_path, "directory", *compressed(trained, case.tables)))
    dense = low_rank(trained, case.tables)
    options = {
        "attention_mask": torch.ones_like(IDS),
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
    }
    assert torch.equal(model.generate(IDS, **options), dense.generate(IDS, **options))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_head_stored_in_full_is_untied(tmp_path, kind):
    """A head whose own weight is in the file gets it, though the model would tie it."""
    case = CASES["gpt2"]
    trained = built(case, 0)
    trained.lm_head.weight = nn.Parameter(torch.randn(V, D))
    path = write(tmp_path, kind, *compressed(trained, case.tables))
    model = built(case, 1)
    assert model.lm_head.weight is model.transformer.wte.weight
    load(model, path)
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, trained.lm_head.weight)
    with torch.no_grad():
        torch.testing.assert_close(
            case.run(model), case.run(low_rank(trained, case.tables)), rtol=0, atol=1e-5
        )


def test_the_bias_of_an_untied_head_stays_tied(tmp_path):
    """BERT's decoder bias stays the parameter cls.predictions.bias after the decoder's weight is untied."""
    case = CASES["bert"]
    trained = built(case, 0)
    trained.cls.predictions.decoder.weight = nn.Parameter(torch.randn(V, D))
    model = load(built(case, 1), write(tmp_path, FORMATS[0], *compressed(trained, case.tables)))
    assert type(model.cls.predictions.decoder) is nn.Linear
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_a_head_that_was_merged_into_the_table_is_tied_in_a_model_that_did_not_tie_it(tmp_path):
    """Ties of the record hold: the file has no other weights for the head."""
    trained = built(CASES["llama-tied"], 0)
    weights, description = compressed(trained, CASES["llama-tied"].tables)
    assert description.tables[0].ties == ("lm_head.weight",)
    model = load(built(CASES["llama-untied"], 1), write(tmp_path, FORMATS[0], weights, description))
    assert model.lm_head.left is model.model.embed_tokens.left


def test_the_model_keeps_its_dtype_and_the_factors_take_it(tmp_path):
    """Float32 weights loaded into a bfloat16 model become bfloat16 parameters, factors included."""
    case = CASES["lstm"]
    path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables))
    model = load(built(case, 1).bfloat16(), path)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.embedding.left, load_file(path)["embedding.0.weight"].bfloat16())


def test_the_model_is_moved_to_the_device(tmp_path):
    """All parameters are on ``device`` afterwards."""
    case = CASES["lstm"]
    path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables))
    assert {p.device.type for p in load(built(case, 1), path, device="meta").parameters()} == {"meta"}
    assert {p.device.type for p in load(built(case, 1), path).parameters()} == {"cpu"}


def test_a_body_loads_weights_of_a_body_with_the_prefix_of_a_whole_model(tmp_path):
    """transformers' base_model_prefix is removed if every name fits without it."""
    trained = bert(tf.BertModel)
    weights, description = compressed(trained, ["embeddings.word_embeddings.weight"])
    weights["embeddings.position_ids"] = torch.arange(16)[None]  # a buffer of older files fits as well
    path = write(tmp_path, "directory", *prefixed("bert.", weights, description))
    model = load(bert(tf.BertModel), path)
    left = weights["embeddings.word_embeddings.0.weight"]
    assert torch.equal(model.embeddings.word_embeddings.left, left)


def test_a_whole_model_takes_the_weights_of_a_body(tmp_path):
    """The prefix is added; weights that the body lacks are an error unless strict is off."""
    weights, description = compressed(bert(tf.BertModel), ["embeddings.word_embeddings.weight"])
    path = write(tmp_path, FORMATS[0], weights, description)
    with pytest.raises(UsageError, match=r"2 missing from the file: classifier\.weight, classifier\.bias;"):
        load(bert(tf.BertForSequenceClassification), path)
    with pytest.warns(UserWarning, match=r"2 missing from the file: classifier\.weight, classifier\.bias$"):
        model = load(bert(tf.BertForSequenceClassification), path, strict=False)
    left = weights["embeddings.word_embeddings.0.weight"]
    assert torch.equal(model.bert.embeddings.word_embeddings.left, left)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "anything.", "model._orig_mod."])
@pytest.mark.parametrize("name", ["translator", "gpt2"])
def test_a_prefix_that_a_wrapper_put_before_every_name_is_taken_off(tmp_path, name, prefix):
    """DataParallel, torch.compile, Lightning or any other wrapper: all names fit without its prefix."""
    case = CASES[name]
    trained = built(case, 0)
    path = write(tmp_path, "model.pt", *prefixed(prefix, *compressed(trained, case.tables)))
    model = load(built(case, 1), path)
    with torch.no_grad():
        expected = case.run(low_rank(trained, case.tables))
        torch.testing.assert_close(case.run(model), expected, rtol=0, atol=1e-5)


def test_a_prefix_that_makes_two_names_one_is_not_taken_off(tmp_path):
    """Two names never become one: the file holds a weight that the model lacks."""
    case = CASES["translator"]
    weights, description = prefixed("module.", *compressed(built(case, 0), case.tables))
    weights["generator.bias"] = torch.zeros(V + 4)
    path = write(tmp_path, FORMATS[0], weights, description)
    with pytest.raises(UsageError, match=r"has no parameter module\.source\.weight"):
        load(built(case, 1), path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_body_takes_its_part_of_a_larger_model(tmp_path, prefix):
    """If the file holds more than the body, the table's name decides the prefix."""
    trained = bert(tf.BertForPreTraining)
    weights, description = compressed(trained, ["bert.embeddings.word_embeddings.weight"])
    path = write(tmp_path, FORMATS[0], *prefixed(prefix, weights, description))
    with pytest.raises(UsageError, match=rf"unknown to the model: {prefix}cls\.predictions\.bias, "):
        load(bert(tf.BertModel), path)
    with pytest.warns(UserWarning, match=rf"unknown to the model: {prefix}cls\.predictions\.bias, "):
        model = load(bert(tf.BertModel), path, strict=False)
    left = weights["bert.embeddings.word_embeddings.0.weight"]
    assert torch.equal(model.embeddings.word_embeddings.left, left)
    assert torch.equal(model.pooler.dense.weight, trained.bert.pooler.dense.weight)


class TestNamesThatTransformersChanges:
    """A weight whose name transformers does not know either."""

    def path(self, tmp_path: Path, **renamed: str) -> Path:
        """A file of an untied Llama with some weights renamed."""
        weights, description = compressed(built(CASES["llama-untied"], 0), CASES["llama-untied"].tables)
        weights = {renamed.get(name.split(".")[0], name): weight for name, weight in weights.items()}
        return write(tmp_path, FORMATS[0], weights, description)

    def test_the_remedy_leaves_nothing_random(self, tmp_path):
        """A renamed head would stay random under strict=False, so the message does not advise it."""
        path = self.path(tmp_path, lm_head="embed_out.weight")
        with pytest.raises(
            MissingWeights, match=r"from_pretrained after embcompress\.register\(\)$"
        ) as caught:
            load(built(CASES["llama-untied"], 1), path)
        assert "strict" not in str(caught.value)

    def test_strict_off_names_what_stays_as_it_was(self, tmp_path):
        """The warning lists missing and surplus weights, and points at the call of load."""
        path = self.path(tmp_path, lm_head="embed_out.weight")
        expected = r"1 missing from the file: lm_head\.weight; 1 unknown to the model: embed_out\.weight"
        with pytest.warns(UserWarning, match=expected) as caught:
            load(built(CASES["llama-untied"], 1), path, strict=False)
        assert [warning.filename for warning in caught] == [__file__]

    def test_a_warning_made_an_error_leaves_the_model_as_it_was(self, tmp_path):
        """The warning comes before the first change (pytest makes every warning an error here)."""
        model = built(CASES["llama-untied"], 1)
        with pytest.raises(UserWarning, match="loaded in part"):
            load(model, self.path(tmp_path, lm_head="embed_out.weight"), strict=False)
        assert type(model.model.embed_tokens) is nn.Embedding


class TestRefusals:
    """Each error says in one line what is wrong, and leaves the model unchanged."""

    @pytest.fixture
    def case(self):
        return CASES["translator"]

    def refuse(
        self, case: Case, path: Path, message: str, kind: type[Exception] = UsageError, **options
    ) -> None:
        model = built(case, 1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(kind, match=message) as caught:
            load(model, path, **options)
        assert "\n" not in str(caught.value)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert model.generator.weight is model.target.weight

    def test_a_missing_tensor(self, tmp_path, case):
        """The first few names that the file lacks are listed, the rest are counted."""
        weights, description = compressed(built(case, 0), case.tables)
        lacking = {name: w for name, w in weights.items() if not name.startswith("encoder")}
        path = write(tmp_path, FORMATS[0], lacking, description)
        self.refuse(case, path, r"4 missing from the file: encoder\.weight_ih_l0, .* and 1 more")

    def test_a_tensor_too_many(self, tmp_path, case):
        """Names that the model lacks are an error unless strict is off."""
        weights, description = compressed(built(case, 0), case.tables)
        path = write(tmp_path, FORMATS[0], {**weights, "surplus": torch.ones(2)}, description)
        self.refuse(case, path, "1 unknown to the model: surplus; .* or strict=False to leave")
        with pytest.warns(UserWarning, match="1 unknown to the model: surplus$"):
            assert isinstance(load(built(case, 1), path, strict=False).source, FactorizedEmbedding)

    def test_another_shape(self, tmp_path, case):
        """Shapes must fit even if strict is off."""
        weights, description = compressed(built(case, 0), case.tables)
        weights["generator.bias"] = torch.ones(3)
        path = write(tmp_path, FORMATS[0], weights, description)
        self.refuse(case, path, r"generator\.bias \(\[3\], the model has \[64\]\)", strict=False)

    def test_another_vocabulary(self, tmp_path, case):
        """A table with another number of rows than the model's is refused."""
        trained = built(case, 0)
        trained.source = nn.Embedding(V - 1, D)
        path = write(tmp_path, FORMATS[0], *compressed(trained, case.tables))
        self.refuse(case, path, r"source\.weight is \[59, 16\], the model has \[60, 16\]")

    def test_a_rank_that_is_not_that_of_the_factors(self, tmp_path, case):
        """Factors that contradict the record are corrupt input."""
        weights, _ = compressed(built(case, 0), case.tables)
        _, description = compressed(built(case, 0), case.tables, rank=R + 1)
        path = write(tmp_path, FORMATS[0], weights, description)
        self.refuse(case, path, r"not those of a table \[60, 16\] of rank 7", InputError)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"method": "quantized"}, "written with method 'quantized'"),
            ({"parts": ("1.weight", "0.weight")}, r"has the parts \['1\.weight', '0\.weight'\]"),
            ({"shape": (D, V)}, rf"are not those of a table \[{D}, {V}\]"),
        ],
    )
    def test_a_record_that_its_parts_contradict(self, tmp_path, case, change, message):
        """What expand refuses is refused here too, such as a method that this version lacks."""
        weights, description = compressed(built(case, 0), case.tables)
        first, second = description.tables
        path = write(
            tmp_path, FORMATS[0], weights, replace(description, tables=(replace(first, **change), second))
        )
        self.refuse(case, path, message, InputError)

    def test_a_method_whose_parts_have_no_module(self, tmp_path, case, monkeypatch):
        """A method may store parts that expand can decode but no module computes with."""
        monkeypatch.setattr(SVD, "has_module", False)
        path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables))
        self.refuse(case, path, r"method svd\) cannot be loaded; run 'embcompress expand'")

    def test_a_missing_factor_even_if_not_strict(self, tmp_path, case):
        """A table without its factors never loads."""
        weights, description = compressed(built(case, 0), case.tables)
        del weights["target.1.weight"]
        path = write(tmp_path, FORMATS[0], weights, description)
        self.refuse(
            case, path, r"target\.1\.weight, a part of target\.weight, is missing", InputError, strict=False
        )

    def test_a_dense_checkpoint(self, tmp_path, case):
        """A dense checkpoint is left to load_state_dict."""
        path = tmp_path / "dense.safetensors"
        save_file({"source.weight": torch.ones(V, D)}, path)
        self.refuse(case, path, "holds no compressed table; load it with load_state_dict")

    def test_a_second_table_that_cannot_be_swapped(self, tmp_path, case):
        """If one of two tables is refused, the other is not swapped either."""
        weights, description = compressed(built(case, 0), case.tables)
        path = write(tmp_path, FORMATS[0], weights, description)
        model = built(case, 1)
        model.target.max_norm = 1.0
        with pytest.raises(UsageError, match="max_norm"):
            load(model, path)
        assert type(model.source) is nn.Embedding

    def test_a_model_on_the_meta_device(self, tmp_path, case):
        """load_state_dict would copy nothing there."""
        path = write(tmp_path, FORMATS[0], *compressed(built(case, 0), case.tables))
        with torch.device("meta"):
            model = case.build()
        with pytest.raises(UsageError, match="meta device"):
            load(model, path)


def test_a_head_that_is_not_shared_gives_other_outputs(tmp_path):
    """Negative control: comparing outputs detects a head that still has the dense table."""
    case = CASES["gpt2"]
    trained = built(case, 0)
    model = load(built(case, 1), write(tmp_path, FORMATS[0], *compressed(trained, case.tables)))
    model.lm_head = nn.Linear(D, V, bias=False)
    model.lm_head.weight = trained.transformer.wte.weight
    with torch.no_grad():
        assert not torch.allclose(
            case.run(model), case.run(low_rank(trained, case.tables)), rtol=0, atol=1e-4
        )


def test_buffers_that_the_model_makes_itself_are_passed_over(tmp_path):
    """A file with a buffer that is no longer persistent loads strictly; other extra names are refused."""
    model = built(CASES["bert"], seed=1)
    weights, description = compressed(model, CASES["bert"].tables)
    weights["bert.embeddings.position_ids"] = torch.arange(16)[None]
    path = write(tmp_path, "model.safetensors", weights, description)
    load(built(CASES["bert"], seed=2), path)
    weights["bert.embeddings.something"] = torch.arange(16)[None]
    other = write(tmp_path, "model.pt", weights, description)
    with pytest.raises(UsageError, match=r"unknown to the model: bert\.embeddings\.something"):
        load(built(CASES["bert"], seed=2), other)


PLAIN = """
import torch, embcompress
model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(60, 16)})
embcompress.load(model, sys.argv[1])
"""


def test_a_model_of_torch_alone_needs_no_transformers(tmp_path):
    """transformers is imported only for its own models."""
    weights, description = compressed(nn.ModuleDict({"embedding": nn.Embedding(V, D)}), ["embedding.weight"])
    path = write(tmp_path, FORMATS[0], weights, description)
    assert not loaded_by(PLAIN, path) & {"transformers", "embcompress.loading.conversion"}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("method", quick(EVERY, "svd", "pq", "lplr", "int4", "screen+int4"))
def test_load_equals_expand_at_the_end_of_a_type(tmp_path, method, kind):
    """Where an approximation exceeds the range of float16, both clip it; elsewhere both round to the same."""
    dtype, ids = getattr(torch, kind), torch.arange(400)
    generator = torch.Generator().manual_seed(0)
    dense = (torch.randn(400, 16, generator=generator) * 0.5 ** torch.arange(16) * 5e4).clamp(-65504, 65504)
    dense[:60] = dense[:60].sign() * 65504
    path, small, back = (tmp_path / f"{name}.safetensors" for name in ("model", "small", "back"))
    save_file({TABLE: dense.to(dtype), CARRIED: torch.ones(2, 16)}, path)
    size = {"dtype": "bfloat16", "rank": 6} if method == "svd" else {"ratio": 0.4}
    if method == "screen+svd":
        size["dtype"] = "bfloat16"
    factorize(path, method=method, output=small, **size)
    expand(small, output=back)
    expected = load_file(back)[TABLE]
    model = load(Net(400, 16, dtype), small)
    for found in (model.embedding(ids), model.embedding.weight):
        assert found.dtype == dtype
        assert found.isfinite().all()
        within = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[kind] * 65504
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=within)
    if kind == "float16" and method in ("pq", "lplr", "int4", "screen+int4"):
        assert (expected.abs() == 65504).sum() > 100
