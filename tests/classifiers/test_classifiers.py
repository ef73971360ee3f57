"""The contract of every classifier in the registry, what it computes, and files that are at odds with it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.checkpoints import contents
from helpers.classifying import (
    LABELS,
    TEXTS,
    WIDTHS,
    D,
    V,
    factorized,
    fresh,
    low_rank,
    record,
    refused,
    saved,
    scores,
    separable,
    side_by_side,
    trained,
)
from helpers.refusals import refused as refused_with
from safetensors.torch import load_file, save_file
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers import CLASSIFIERS, classifier_for
from embcompress.classifiers.base import Classifier
from embcompress.classifiers.opening import open_classifier
from embcompress.classifiers.record import RECORD_KEY, HeldOut, read_record
from embcompress.classifiers.storage import new_format, save_new
from embcompress.data.tokenizing import Words
from embcompress.errors import InputError, UsageError
from embcompress.nn import FactorizedEmbedding
from embcompress.training.records import Recipe

KINDS = {
    **{name: record(name) for name in CLASSIFIERS},
    "lstm, both directions": record("lstm", bidirectional=True),
    "lstm, two layers": record("lstm", hidden=(5, 5)),
    "lstm, two layers, both directions": record("lstm", hidden=(5, 5), bidirectional=True),
    "dan without layers": record("dan", hidden=()),
}
SUFFIXES = (".pt", ".safetensors")


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    return request.param


class TestContract:
    """What training, files and compression rely on, for whatever joins the registry."""

    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_name_is_its_key(self, name):
        """The registry finds a classifier under its own name; it has usual sizes."""
        found = classifier_for(name)
        assert CLASSIFIERS[found.name] is found
        assert issubclass(found, Classifier)
        assert all(size >= 1 for size in found.hidden)
        assert 0 <= found.dropout_rate < 1
        assert name in WIDTHS, "give it small layers for tests"

    def test_there_is_a_score_for_each_label(self, kind):
        """Texts × labels, finite, one text or many, of one token or more."""
        model = fresh(kind)
        for rows in (TEXTS, [[7]], [[7], [8]]):
            found = scores(model, rows)
            assert found.shape == (len(rows), len(LABELS))
            assert found.isfinite().all()

    @pytest.mark.parametrize("table", ["dense", "factors"])
    def test_padding_and_neighbours_change_nothing(self, kind, table):
        """A text has the scores it has alone, however far it is filled up and whatever stands beside it."""
        model = factorized(kind) if table == "factors" else fresh(kind)
        alone = torch.cat([scores(model, [row]) for row in TEXTS])
        for together in (scores(model), scores(model, more=5), scores(model, TEXTS[::-1]).flip(0)):
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        others = scores(model, [[row[0] % 28 + 1, *row[1:]] for row in TEXTS])
        assert (others - alone).abs().amax(dim=1).min() > 1e-4

    def test_every_parameter_is_reached(self, kind):
        """One step changes each: none is left out of the sum; the padding row alone has no gradient."""
        model = fresh(kind).train()
        torch.nn.functional.cross_entropy(model(*side_by_side(TEXTS)), torch.arange(11) % 3).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        assert not model.embedding.weight.grad[0].any()
        assert not model.embedding.weight[0].any()

    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_units_are_dropped_in_training_only(self, name):
        """With a dropout of 0 never, else differently each time."""
        inputs = side_by_side(TEXTS)
        for dropout in (0.0, 0.5):
            model = fresh(record(name, dropout=dropout))
            assert torch.equal(scores(model), scores(model))
            model.train()
            assert torch.equal(model(*inputs), model(*inputs)) == (dropout == 0)

    def test_what_is_dropped(self):
        """DAN: the mean and every hidden layer; LSTM: what goes in and the mean of what comes out."""
        texts, longest = len(TEXTS), max(map(len, TEXTS))
        places = {
            "dan": [(texts, D), (texts, 12), (texts, 8)],
            "lstm": [(texts, longest, D), (texts, 5)],
        }
        for name, expected in places.items():
            model, dropped = fresh(record(name, dropout=0.5)).train(), []
            for part in model.modules():
                if isinstance(part, nn.Dropout):
                    assert part.p == 0.5
                    part.register_forward_hook(lambda _, __, output, seen=dropped: seen.append(output.shape))
            model(*side_by_side(TEXTS))
            assert dropped == expected

    def test_it_learns(self, kind):
        """What tells the labels apart is found, on texts it has not seen."""
        recipe = Recipe(epochs=15, batch_size=10, learning_rate=0.05, schedule="constant")
        model = fresh(replace(kind, architecture=replace(kind.architecture, dimension=8)))
        trainer = trained(model, separable(80, 0), separable(40, 1), recipe)
        assert trainer.history[0].dev_accuracy < 0.6
        assert trainer.best.dev_accuracy >= 0.9

    def test_it_says_what_it_is(self, tmp_path, kind, suffix):
        """The record in a file is the one written, and is plain JSON."""
        path, _ = saved(tmp_path, kind, suffix)
        with open_checkpoint(path) as checkpoint:
            found = read_record(checkpoint)
        assert replace(found, tokenizer=kind.tokenizer) == kind
        assert type(found.tokenizer) is Words
        assert found.tokenizer.vocabulary == kind.tokenizer.vocabulary
        assert found.to_dict() == kind.to_dict() == json.loads(kind.to_json())

    def test_it_comes_back_from_its_file(self, tmp_path, kind, suffix):
        """With the very same weights; the file is as large as is said."""
        path, model = saved(tmp_path, kind, suffix)
        before = torch.get_rng_state()
        opened = open_classifier(path)
        assert torch.equal(torch.get_rng_state(), before), "opening draws no random numbers of the caller's"
        assert torch.equal(scores(opened.model), scores(model))
        assert opened.description is None
        assert opened.size == path.stat().st_size
        state = load_file(path) if suffix == ".safetensors" else torch.load(path)["state_dict"]
        assert state.keys() == model.state_dict().keys()

    def test_it_works_with_factors(self, tmp_path, kind, suffix):
        """A factorized file opens and scores as the dense model with the best table of that rank."""
        path, model = saved(tmp_path, kind, suffix)
        small = tmp_path / f"small{suffix}"
        embcompress.factorize(path, rank=2, output=small)
        opened = open_classifier(small)
        assert isinstance(opened.model.embedding, FactorizedEmbedding)
        assert opened.description.tables[0].rank == 2
        torch.testing.assert_close(scores(opened.model), scores(low_rank(model, 2)), rtol=0, atol=1e-5)
        assert not torch.allclose(scores(opened.model), scores(model), rtol=0, atol=1e-3)
        assert opened.record.to_dict() == kind.to_dict()

    def test_half_precision_files_open_in_float32(self, tmp_path, kind):
        """Weights are rounded, and train in float32."""
        path, model = saved(tmp_path, kind)
        embcompress.factorize(path, rank=2, dtype="float16", output=tmp_path / "small.pt")
        opened = open_classifier(tmp_path / "small.pt")
        assert {value.dtype for value in opened.model.state_dict().values()} == {torch.float32}
        torch.testing.assert_close(scores(opened.model), scores(low_rank(model, 2)), rtol=0, atol=0.02)


def test_unknown_names_are_usage_errors():
    """The message lists what there is."""
    with refused_with(UsageError, "'cnn'", *CLASSIFIERS):
        classifier_for("cnn")


def test_dan_is_the_mean_and_layers():
    """Iyyer et al. 2015, section 3, in float64: padding is not averaged, in the text or behind it."""
    model = fresh(KINDS["dan"])
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    for found, row in zip(scores(model, more=3), TEXTS, strict=True):
        hidden = np.mean([state["embedding.weight"][token] for token in row if token != 0], axis=0)
        for layer in (1, 4):
            weight, bias = state[f"layers.{layer}.weight"], state[f"layers.{layer}.bias"]
            hidden = np.maximum(weight @ hidden + bias, 0)
        expected = state["output.weight"] @ hidden + state["output.bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("lstm")])
def test_lstm_is_its_cells_step_by_step(name):
    """Each layer reads the states of the one below, each direction from its own end; then the mean."""
    kind = KINDS[name]
    model = fresh(kind)
    for found, row in zip(scores(model, more=2), TEXTS, strict=True):
        inputs = [model.embedding.weight[token][None] for token in row]
        for layer in range(len(kind.architecture.hidden)):
            ways = []
            for way in ("", "_reverse")[: 1 + kind.architecture.bidirectional]:
                cell = nn.LSTMCell(inputs[0].shape[1], 5)
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(cell, part).copy_(getattr(model.lstm, f"{part}_l{layer}{way}"))
                state, states = None, []
                for value in inputs[:: -1 if way else 1]:
                    state = cell(value, state)
                    states.append(state[0])
                ways.append(states[:: -1 if way else 1])
            inputs = [torch.cat(both, dim=1) for both in zip(*ways, strict=True)]
        expected = model.output(torch.stack(inputs).mean(dim=0))
        torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (5, 6)])
def test_layers_that_an_lstm_cannot_have(hidden):
    """All of one size, at least one."""
    with refused_with(UsageError, "size"):
        fresh(record("lstm", hidden=hidden))


BROKEN = {
    "layout": [None, 2, "1"],
    "labels": [None, [], ["one"], "abc", ["no", "so", "no"], ["no", 2, "yes"], {"no": 1, "so": 2, "yes": 3}],
    "max_length": [None, 0, -1, True, 1.5, "9"],
    "tokenizer": [None, {}, "words", []],
    "tokenizer.rule": [None, "sentencepiece", "tokenizer.json", [], 3],
    "tokenizer.vocabulary": [
        *(None, "abc", {}, [], ["<pad>"], [*range(V)], ["<unk>", "<pad>", "a"], ["<pad>", "<unk>", "a", "a"]),
    ],
    "architecture": [None, {}, "dan", []],
    "architecture.name": [None, 3, ["dan"], "cnn", "module"],
    "architecture.dimension": [None, 0, -4, True, 4.0, "4", 1 << 24],
    "architecture.hidden": [None, 6, "ab", {}, [0], [True], ["6"], [6.0], [1 << 24], [[6]]],
    "architecture.dropout": [None, "0.1", 1, 1.5, -0.1, float("nan"), True, False],
    "architecture.bidirectional": [None, "no", 1, []],
    "architecture.factory": [None, 3, ["os"], "os:system"],
    "held_out": [0.1, "a tenth", [], {}],
    "held_out.share": [None, 0.0, 1.0, 1, "0.1", float("nan")],
    "held_out.seed": [None, -1, 1.5, "1", True],
    "text_column": [None, 3, ["text"]],
    "label_column": [None, 3, ["label"]],
}
"""Every field of a record with values that it cannot have."""
MISSING = object()


def with_record(path, raw, state=None):
    """A DAN, or other weights, with anything as its record."""
    state = state or fresh(KINDS["dan"]).state_dict()
    if path.suffix == ".pt":
        torch.save({"state_dict": state, RECORD_KEY: raw}, path)
    else:
        save_file(state, path, metadata={"format": "pt", RECORD_KEY: json.dumps(raw)})
    return path


def broken(path, field, value, state=None):
    """A DAN whose record has another value in one field, or lacks it."""
    raw = json.loads(replace(KINDS["dan"], held_out=HeldOut(0.1, 7)).to_json())
    *above, last = field.split(".")
    inner = raw[above[0]] if above else raw
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return with_record(path, raw, state)


class TestBrokenFiles:
    """Files come from strangers: what is wrong with one is said in a line, with exit code 3."""

    @pytest.mark.parametrize("field", BROKEN)
    def test_every_field_is_checked(self, tmp_path, suffix, field):
        """Left out, of another type or outside its range."""
        for value in (MISSING, *BROKEN[field]):
            path = broken(tmp_path / f"broken{suffix}", field, value)
            refused(path, InputError, f"{path}: the classifier record cannot be read (")

    def test_no_field_is_missing_above(self):
        """Neither one of the record nor one of its parts."""
        raw = replace(KINDS["dan"], held_out=HeldOut(0.1, 7)).to_dict()
        parts = {f"{name}.{part}" for name, value in raw.items() if isinstance(value, dict) for part in value}
        assert BROKEN.keys() == raw.keys() | parts

    def test_no_memory_is_asked_for_what_is_not_stored(self, tmp_path, suffix):
        """A record that claims a layer of 2^48 weights is compared with the headers first."""
        path = broken(tmp_path / f"broken{suffix}", "architecture.hidden", [(1 << 24) - 1] * 2)
        refused(
            path, InputError, f"{path}: layers.1.weight is [12, 4], the classifier record says [16777215, 4]"
        )

    def test_records_of_another_form(self, tmp_path, suffix):
        """No object, or no JSON."""
        for raw in (3, "dan", ["dan"], True):
            path = with_record(tmp_path / f"model{suffix}", raw)
            refused(path, InputError, f"{path}: the classifier record cannot be read (TypeError: ")
        if suffix == ".safetensors":
            for text in ("", "{", "[" * 100_000):
                save_file({"a": torch.zeros(1)}, path, metadata={RECORD_KEY: text})
                refused(path, InputError, f"{path}: the metadata under {RECORD_KEY} is not JSON")

    def test_a_model_without_a_record_is_no_classifier(self, tmp_path, suffix):
        """It may be a good model all the same: a usage error that says what makes one."""
        path = tmp_path / f"model{suffix}"
        state = {**fresh(KINDS["dan"]).state_dict(), RECORD_KEY: torch.zeros(2)}  # a tensor is no record
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        refused(path, UsageError, str(path), "embcompress train")

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            (replace(KINDS["dan"], labels=("no", "yes")), "output.weight is [3, 8]"),
            (record("dan", dimension=D + 1), "embedding.weight is [30, 4]"),
            (record("dan", hidden=(12, 9)), "layers.4.weight is [8, 12]"),
            (record("dan", hidden=(12, 8, 8)), "layers.7.weight is missing"),
            (record("lstm"), "lstm.weight_ih_l0 is missing"),
            (record("dan", hidden=(12,)), "output.weight is [3, 8]"),
            pytest.param(record("lstm", hidden=(5, 6)), "hidden"),
            pytest.param(KINDS["dan"], "spare.weight"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_parts_that_do_not_fit_each_other(self, tmp_path, suffix, kind, said):
        """Record and weights are of one file: no class or size that the user chooses is at fault."""
        state = fresh(KINDS["dan"]).state_dict()
        if said == "spare.weight":
            state[said] = torch.zeros(2)
        path = with_record(tmp_path / f"model{suffix}", kind.to_dict(), state)
        refused(path, InputError, f"{path}: ", said, "train the classifier again")

    def test_a_table_that_is_a_number(self, tmp_path, suffix):
        """It has no rows to count."""
        state = fresh(KINDS["dan"]).state_dict() | {"embedding.weight": torch.tensor(1.0)}
        path = with_record(tmp_path / f"model{suffix}", KINDS["dan"].to_dict(), state)
        refused(path, InputError, f"{path}: embedding.weight is [], the classifier record says [30, 4]")

    @pytest.mark.parametrize("name", CLASSIFIERS)
    @pytest.mark.parametrize("tokens", [V - 1, V + 1, 2, 10 * V])
    def test_row_46_token_ids_at_or_past_the_vocabulary(self, tmp_path, name, suffix, tokens):
        """More tokens than rows would look beyond the table, fewer are of another model: both are refused."""
        path, small = tmp_path / f"model{suffix}", tmp_path / f"small{suffix}"
        save_new(path, fresh(KINDS[name]).state_dict(), record(name, tokens=tokens))
        embcompress.factorize(path, rank=2, output=small)
        (tmp_path / "texts.csv").write_text("text,label\nw0 w1,no\nw2,yes\n")
        for file in (path, small):
            said = f"{file}: token ids go up to {tokens - 1:,}, the table has rows up to {V - 1}"
            refused(file, InputError, said, "train the classifier again")
            before = contents(tmp_path)
            for command in (embcompress.evaluate, embcompress.finetune):
                with refused_with(InputError, f"{tokens - 1:,} {V - 1}"):
                    command(file, tmp_path / "texts.csv")
                assert contents(tmp_path) == before


def test_new_files_have_the_suffix_of_a_format(tmp_path):
    """Any other is refused with those there are, before anything is written."""
    for suffix in SUFFIXES:
        assert new_format(tmp_path / f"a{suffix}")
    for name in ("a.bin2", "a", "model.onnx"):
        with refused_with(UsageError, *SUFFIXES):
            save_new(tmp_path / name, {}, record())
    assert contents(tmp_path) == {}
