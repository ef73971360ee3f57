"""Training with a coded table: its codes are fixed, its floats are trained, and its form is kept."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, contents, run, succeed
from helpers.classifying import (
    CPU,
    DAN,
    DEV,
    LSTM,
    RECIPE,
    TRAIN,
    Log,
    copied,
    equal,
    fresh,
    through_a_file,
    trainer,
)
from helpers.classifying import run as run_trainer
from helpers.coded_tables import Coded, dense, integer_of, lplr, pq, pq_of, screened, screened_of, svd_of
from helpers.refusals import refused
from helpers.weather import QUICK, STILL, TABLE, description, record, result, same, tensors, train, weather
from safetensors import safe_open
from safetensors.torch import save_file

from embcompress.checkpoint.description import Description, part_name
from embcompress.classifiers.opening import open_classifier
from embcompress.errors import UsageError
from embcompress.linalg.integers import dequantize, quantize
from embcompress.linalg.packing import pack, unpack
from embcompress.loading.swapping import install, replacements
from embcompress.methods import METHODS
from embcompress.methods.modules import coded_table
from embcompress.training.loop import Trainer

CODEBOOKS = "embedding.0.codebooks"
RIGHT = ("embedding.1.codes", "embedding.1.scales")
KINDS = {
    "pq": (pq_of, {CODEBOOKS, *RIGHT}),
    "screen+pq": (lambda t: screened_of(t, pq_of), {CODEBOOKS, *RIGHT}),
    "screen": (lambda t: screened_of(t, dense), {"embedding.0.weight"}),
    "screen+svd": (
        lambda t: screened_of(t, lambda rest: svd_of(rest, 3)),
        {"embedding.0.weight", "embedding.1.weight"},
    ),
    "lplr": (lambda t: lplr(len(t), t.shape[1], 4), {*RIGHT}),
    "int4": (lambda t: integer_of(t, 4), set()),
}
"""Methods that code a table, and which of the stored parts are trained."""
kinds = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.split("+")[-1] in METHODS])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Texts and dense classifiers, which tests must not change."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, count, seed in (("train", 60, 0), ("dev", 18, 1), ("test", 30, 2)):
        weather(folder / f"{name}.csv", count, seed)
    for arch, suffix in (("dan", ".pt"), ("dan", ".safetensors"), ("lstm", ".pt")):
        train(folder / f"{arch}{suffix}", folder / "train.csv", arch=arch)
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test wrote to the shelf"


def coded(source, target, held: Coded):
    """A copy of a classifier whose table is coded, made with torch and safetensors alone."""
    about = Description("0", {"source": "0" * 64}, (held.record(TABLE),))
    state = {name: value for name, value in tensors(source).items() if name != TABLE}
    state |= {part_name(TABLE, suffix): part for suffix, part in held.tensors.items()}
    if source.suffix == ".pt":
        state = OrderedDict(state)
        state._metadata = {"embcompress": about.to_json()}
        torch.save({"state_dict": state, "classifier": record(source)}, target)
    else:
        with safe_open(source, "pt") as file:
            save_file(state, target, {**file.metadata(), "embcompress": about.to_json()})
    return target


@pytest.fixture
def made(shelf, tmp_path):
    """Codes the table of a classifier on the shelf."""

    def make(kind, name="dan.pt", change=lambda table: table):
        source = shelf / name
        table = change(tensors(source)[TABLE].numpy())
        return coded(source, tmp_path / f"small{source.suffix}", KINDS[kind][0](table))

    return make


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@kinds
@pytest.mark.parametrize("name", ["dan.pt", "dan.safetensors", "lstm.pt"])
def test_a_coded_classifier_stays_what_it_was(shelf, made, kind, name):
    """Names, types, shapes, codes and the record are kept; floats are trained, and the record says so."""
    small = made(kind, name)
    tuned = small.with_stem("tuned")
    found = result("finetune", small, shelf / "train.csv", "-o", tuned, *QUICK)
    assert found["best"] > 0
    before, after = tensors(small), tensors(tuned)
    assert [*before] == [*after]
    for one, other in zip(before.values(), after.values(), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
    table = {part for part in before if part.startswith("embedding.")}
    assert changed(before, after) == KINDS[kind][1] | before.keys() - table
    (one,), (two,) = description(small)["tables"], description(tuned)["tables"]
    assert {**one, "trained": True, "digests": two["digests"]} == two
    assert one["digests"] != two["digests"] or kind == "int4"
    assert record(small) == record(tuned)


@kinds
def test_what_is_measured_is_what_is_written(shelf, made, kind):
    """The reported accuracy is that of the written file, and of the dense table it expands to."""
    small = made(kind)
    tuned, wide = small.with_stem("tuned"), small.with_stem("wide")
    dev = ("--dev", shelf / "dev.csv")
    found = result("finetune", small, shelf / "train.csv", *dev, "-o", tuned, *QUICK)
    succeed("expand", tuned, "-o", wide)
    opened = open_classifier(tuned).model.embedding
    torch.testing.assert_close(opened.weight, tensors(wide)[TABLE], rtol=1e-5, atol=1e-5)
    for path in (tuned, wide):
        assert result("evaluate", path, shelf / "dev.csv")["accuracy"] == found["dev_accuracy"]


def test_the_right_factor_is_written_in_as_many_bits(shelf, made):
    """The trained factor is rounded as ``quantize`` rounds."""
    small = made("pq")
    tuned = small.with_stem("tuned")
    succeed("finetune", small, shelf / "train.csv", "-o", tuned, *QUICK)
    stored = tensors(tuned)
    codes, scales = (stored[name].numpy() for name in RIGHT)
    bits = codes.shape[1] * 8 // 8  # of 8 columns
    right = dequantize(unpack(codes, 8, bits), scales[:, 0], bits)
    again = quantize(right, bits, np.float32)
    np.testing.assert_allclose(dequantize(again.codes, again.scales, bits), right, rtol=1e-5, atol=1e-7)
    assert np.array_equal(pack(again.codes, bits), codes)
    opened = open_classifier(tuned).model.embedding
    assert torch.equal(opened.projection.weight, torch.from_numpy(right.T.copy()))


@kinds
def test_only_factors_leaves_all_else_alone(shelf, made, kind):
    """--only-factors trains the floats of the table; the message says so if there are only integers."""
    small = made(kind)
    tuned = small.with_stem("tuned")
    args = ("finetune", small, shelf / "train.csv", "-o", tuned, "--only-factors", *QUICK)
    if not KINDS[kind][1]:
        assert_refused(small.parent, *args, code=2, says="the model has only integers, which stay")
        return
    succeed(*args)
    assert changed(tensors(small), tensors(tuned)) == KINDS[kind][1]


@kinds
def test_finetuning_never_loses_to_its_input(shelf, made, kind):
    """If no epoch is better on dev, everything is written unchanged, also the right factor's integers."""
    small = made(kind)
    tuned = small.with_stem("tuned")
    ruin = ("--epochs", "2", "--optimizer", "sgd", "--learning-rate", "1000")
    found = result("finetune", small, shelf / "train.csv", "-o", tuned, *ruin)
    assert found["best"] == 0
    assert same(small, tuned)


def test_training_mends_a_spoiled_table(shelf, tmp_path):
    """Training codebooks and right factor alone recovers the loss; with both frozen, nothing does."""
    good = train(tmp_path / "good.pt", shelf / "train.csv", "--epochs", "12", "--hidden", "24")
    spoiled = coded(good, tmp_path / "spoiled.pt", pq_of(-tensors(good)[TABLE].numpy()))
    dev = ("--dev", shelf / "dev.csv", "--only-factors")
    accuracies = {}
    for name, options in (("trained", QUICK), ("still", STILL)):
        succeed("finetune", spoiled, shelf / "train.csv", "-o", tmp_path / f"{name}.pt", *dev, *options)
        accuracies[name] = result("evaluate", tmp_path / f"{name}.pt", shelf / "test.csv")["accuracy"]
    assert accuracies["still"] < 0.6
    assert accuracies["trained"] > 0.9


def test_a_frozen_table_is_not_trained(made):
    """Negative control: without gradients the same run leaves the table unchanged and repairs nothing."""
    model = open_classifier(made("pq")).model
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.embedding.parameters())
    with pytest.raises(ValueError, match="empty parameter list"):
        Trainer(model, TRAIN, DEV, RECIPE, CPU)


def test_what_outgrows_its_stored_type_is_refused(shelf, made):
    """A codebook beyond float16's range: exit code 4, and nothing is written."""
    small = made("pq")
    told = result("evaluate", small, shelf / "test.csv")["labels"][0]["label"]
    wanted = "hot" if told != "hot" else "wet"
    texts = small.with_name("one.csv")
    texts.write_text("text,label\n" + f'"snow, snow!",{wanted}\n' * 8)
    leap = ("--learning-rate", "1e6", "--epochs", "1", "--schedule", "constant")
    before = contents(small.parent)
    done = run("finetune", small, texts, "--dev", texts, "-o", small.with_stem("tuned"), *leap)
    assert done.exit_code == 4, done.output
    assert "float16 ends at 65504; train with a lower --learning-rate" in done.stderr
    assert contents(small.parent) == before


def small_model(architecture, held: Coded, start=0):
    model = fresh(architecture, start)
    table = coded_table(held.method, held.tensors, held.table.shape)
    install(model, replacements(model, TABLE, table))
    return model


SMALL = {
    "pq": pq(30, 4, [(4, 2, 1, 0, 1)]),
    "pq of two classes": pq(30, 4),
    "screen+pq": screened(30, lambda n: pq(n, 4)),
    "lplr": lplr(30, 4, 3),
}


class TestTraining:
    @pytest.mark.parametrize("name", SMALL)
    @pytest.mark.parametrize("architecture", [DAN, LSTM], ids=["dan", "lstm"])
    @pytest.mark.parametrize("only", [False, True])
    def test_a_stopped_run_goes_on_to_the_bit(self, name, architecture, only):
        """The state comes from disk and goes into a model with other initial values."""
        settings = {"make": lambda start: small_model(architecture, SMALL[name], start), "only_factors": only}
        whole, log = trainer(**settings), Log()
        assert run_trainer(whole, log=log)
        for step in (1, 7):
            stopped = trainer(**settings)
            assert not run_trainer(stopped, stop_after=step)
            resumed = trainer(start=99, **settings)
            resumed.load_state_dict(through_a_file(stopped.state_dict()))
            assert run_trainer(resumed)
            assert equal(resumed, whole)

    @pytest.mark.parametrize("name", SMALL)
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_only_floats_move(self, name, optimizer):
        """Also with weight decay; everything else in the table is unchanged to the bit."""
        model = small_model(DAN, SMALL[name])
        before = copied(model)
        recipe = replace(RECIPE, optimizer=optimizer, weight_decay=0.1)
        assert run_trainer(Trainer(model, TRAIN, DEV, recipe, CPU))
        moved = changed(before, copied(model)) & {n for n in before if n.startswith("embedding")}
        assert moved == {"embedding.1.weight"} | ({CODEBOOKS} & before.keys())

    def test_a_bag_trains_as_the_sum_of_its_rows_does(self):
        """A DAN's bag has the gradients of rows that are looked up and averaged without padding."""
        model = small_model(DAN, SMALL["pq"])
        other = copy.deepcopy(model)
        ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
        model.embedding(ids).square().sum().backward()
        rows = other.embedding.projection(other.embedding.lookup(ids))
        means = torch.stack([rows[0, :2].mean(dim=0), rows[1, 0]])
        means.square().sum().backward()
        for one, two in zip(model.embedding.parameters(), other.embedding.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)

    def test_integers_have_nothing_to_train(self):
        """--only-factors says that there is nothing to train."""
        model = small_model(DAN, integer_of(SMALL["pq"].table, 4))
        with refused(UsageError, "integers"):
            Trainer(model, TRAIN, DEV, replace(RECIPE, only_factors=True), CPU)
