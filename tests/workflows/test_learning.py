"""train, factorize, finetune, evaluate and compress on one classifier: what is written, told and kept."""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, contents, run, succeed
from helpers.weather import (
    ARCHS,
    LEFT,
    QUICK,
    RIGHT,
    SIGNS,
    STILL,
    SUFFIXES,
    TABLE,
    description,
    ids_of,
    measured,
    predictions,
    record,
    result,
    rows_of,
    same,
    tensors,
    train,
    weather,
)

import embcompress
from embcompress import NewClassifier, Recipe, Session, Texts
from embcompress.data.labelled import read_labelled, split_off
from embcompress.training.records import FINETUNE_RECIPE


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Texts, and a classifier of each architecture in each format; not to be written to."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, count, seed in (("train", 60, 0), ("dev", 18, 1), ("test", 30, 2)):
        weather(folder / f"{name}.csv", count, seed)
    for suffix in SUFFIXES:
        for arch in ARCHS:
            train(folder / f"{arch}{suffix}", folder / "train.csv", arch=arch)
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test wrote to the shelf"


@pytest.fixture(params=SUFFIXES)
def dense(request, shelf, tmp_path):
    """A copy of a DAN, to be worked with."""
    return Path(shutil.copy(shelf / f"dan{request.param}", tmp_path / f"model{request.param}"))


# ---- train and evaluate


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_trained_classifier_describes_itself(shelf, arch, suffix):
    """Plain torch or safetensors opens it; labels and vocabulary, frequent tokens first, are inside."""
    path = shelf / f"{arch}{suffix}"
    stored, about = tensors(path), record(path)
    train_part, _ = split_off(read_labelled(shelf / "train.csv"), 0.1, 0)
    counts = Counter(
        word
        for text in train_part.texts
        for word in text.lower().replace(",", " ,").replace("!", " !").split()
    )
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert about["tokenizer"]["vocabulary"] == ["<pad>", "<unk>", *expected]
    assert about["labels"] == sorted(SIGNS)
    assert stored[TABLE].shape == (len(expected) + 2, 8)
    assert not stored[TABLE][0].any(), "the padding row"
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert "embcompress" not in about


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("rank", [None, 2])
def test_evaluate_agrees_with_the_definitions(shelf, tmp_path, arch, suffix, rank):
    """Without a flag, dense or factorized: accuracy, macro-F1, each label's scores, the confusion."""
    path = shelf / f"{arch}{suffix}"
    if rank:
        succeed("factorize", path, "--rank", rank, "-o", tmp_path / f"small{suffix}")
        path = tmp_path / f"small{suffix}"
    # Two texts in three get a label at random, so that there are mistakes to count.
    rng = random.Random(3)
    rows = [(text, rng.choice(["hot", "cold", label])) for text, label in rows_of(shelf / "test.csv")]
    with (tmp_path / "mixed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    found = result("evaluate", path, tmp_path / "mixed.csv")
    true = [label for _, label in rows]
    predicted = predictions(path, [text for text, _ in rows])
    accuracy, macro_f1, scores = measured(true, predicted, record(path)["labels"])
    assert 0 < accuracy < 1
    assert found["count"] == len(rows)
    assert found["size"] == path.stat().st_size
    assert found["accuracy"] == pytest.approx(float(accuracy), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(float(macro_f1), rel=1e-12)
    names = ("label", "precision", "recall", "f1", "support")
    for entry, score in zip(found["labels"], scores, strict=True):
        assert tuple(entry) == names
        assert tuple(entry.values()) == (score[0], *(pytest.approx(float(x), rel=1e-12) for x in score[1:]))
    labels = record(path)["labels"]
    pairs = Counter(zip(true, predicted, strict=True))
    assert found["confusion"] == [[pairs[t, p] for p in labels] for t in labels]
    # Labels that are neither true nor predicted count for nothing in the mean.
    with (tmp_path / "one.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), (rows[0][0], predicted[0])])
    assert result("evaluate", path, tmp_path / "one.csv")["macro_f1"] == 1


def test_it_learns_what_can_be_learned_and_nothing_else(tmp_path):
    """Unseen texts are told apart; where all labels share their words, they are not."""
    blind = {label: SIGNS["cold"] for label in SIGNS}
    accuracies = []
    for signs in (SIGNS, blind):
        texts = weather(tmp_path / "train.csv", signs=signs)
        test = weather(tmp_path / "test.csv", count=30, seed=9, signs=signs)
        train(tmp_path / "model.pt", texts, "--epochs", "12", "--hidden", "24", "--force")
        accuracies.append(result("evaluate", tmp_path / "model.pt", test)["accuracy"])
    assert accuracies[0] > 0.9
    assert accuracies[1] < 0.6


def test_the_seed_decides_all(shelf, tmp_path):
    """Two runs are equal to the bit, another seed gives others."""
    again, other = (
        train(tmp_path / f"{seed}.pt", shelf / "train.csv", "--seed", seed) for seed in ("0", "1")
    )
    assert same(again, shelf / "dan.pt")
    assert not same(other, shelf / "dan.pt")


def test_the_callers_random_numbers_stay_put(shelf, tmp_path):
    """Neither training nor evaluating moves torch's generator."""
    state = torch.get_rng_state()
    train(tmp_path / "model.pt", shelf / "train.csv")
    after_training = torch.get_rng_state()
    succeed("evaluate", shelf / "dan.pt", shelf / "test.csv")
    assert torch.equal(after_training, state)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", ["0", "5"])
def test_the_dev_texts_are_held_out_by_the_seed(shelf, tmp_path, seed):
    """Training with --dev-share is training with the two parts as files."""
    parts = split_off(read_labelled(shelf / "train.csv"), 0.3, int(seed))
    for name, part in zip(("learn", "hold"), parts, strict=True):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = zip(part.texts, part.labels, strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    split = train(tmp_path / "split.pt", shelf / "train.csv", "--dev-share", "0.3", "--seed", seed)
    given = train(
        tmp_path / "given.pt", tmp_path / "learn.csv", "--dev", tmp_path / "hold.csv", "--seed", seed
    )
    assert same(split, given)
    assert record(split) == {**record(given), "held_out": {"share": 0.3, "seed": int(seed)}}
    assert not same(split, shelf / "dan.pt")


def test_later_training_holds_the_same_texts_out(shelf, dense):
    """Whatever its seed: another part would hold texts that were learned from."""
    _, held = split_off(read_labelled(shelf / "train.csv"), 0.1, 0)
    with dense.with_name("held.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(held.texts, held.labels, strict=True)])
    runs = [("--dev", dense.with_name("held.csv")), ("--seed", "0"), ("--seed", "7")]
    starts = []
    for i, options in enumerate(runs):
        tuned = dense.with_stem(f"tuned{i}")
        found = result("finetune", dense, shelf / "train.csv", "-o", tuned, *options, *STILL)
        starts.append((found["dev_texts"], found["epochs"][0]["dev_loss"]))
        assert record(tuned) == record(dense)
    assert starts[0] == starts[1] == starts[2]


def test_a_dev_file_is_asked_for_again(shelf, tmp_path):
    """Who chose by a file must not choose by texts that were learned from."""
    model = train(tmp_path / "model.pt", shelf / "train.csv", "--dev", shelf / "dev.csv")
    for command in (("finetune",), ("compress", "--rank", "3")):
        args = (*command, model, shelf / "train.csv")
        assert_refused(tmp_path, *args, code=2, says="no --dev is given")
        succeed(*args, "--dev", shelf / "dev.csv", *STILL, "-o", tmp_path / f"{command[0]}.pt")


def test_pretrained_vectors_fill_their_rows(shelf, tmp_path):
    """A row for each known token, equal to the bit; noise elsewhere, zero for padding and unknown."""
    tokens = ["rain", "absent", "word3", "!"]
    values = np.arange(20, dtype=np.float32).reshape(4, 5) + 1
    np.save(tmp_path / "vec.npy", values)
    (tmp_path / "vec.vocab.txt").write_text("\n".join(tokens))
    options = ("--arch", "dan", "--hidden", "4", "--vectors", tmp_path / "vec.npy", *STILL)
    found = result("train", shelf / "train.csv", "-o", tmp_path / "v.pt", *options)
    table, vocabulary = (
        tensors(tmp_path / "v.pt")[TABLE],
        record(tmp_path / "v.pt")["tokenizer"]["vocabulary"],
    )
    assert table.shape == (len(vocabulary), 5)
    filled = {token: row for token, row in zip(tokens, values, strict=True) if token != "absent"}
    for token, row in zip(vocabulary, table.numpy(), strict=True):
        if token in filled:
            assert np.array_equal(row, filled[token])
        else:
            assert abs(row).max() < 0.1
            assert row.any() == (token not in ("<pad>", "<unk>"))
    assert found["pretrained"] == 3


def test_results_of_the_library_say_what_was_done(shelf, tmp_path):
    """The Python API takes texts as paths and returns records; nothing is printed."""
    new = NewClassifier(arch="dan", hidden=(4,), dimension=6)
    texts = Texts(shelf / "train.csv", dev=shelf / "dev.csv")
    made = embcompress.train(texts, output=str(tmp_path / "api.pt"), new=new, recipe=Recipe(epochs=2))
    assert (made.train_texts, made.dev_texts, made.tokens) == (
        60,
        18,
        tensors(tmp_path / "api.pt")[TABLE].shape[0],
    )
    assert [epoch.epoch for epoch in made.epochs] == [0, 1, 2]
    found = embcompress.evaluate(str(made.output), str(shelf / "dev.csv"))
    assert found.accuracy == made.dev_accuracy == made.epochs[made.best].dev_accuracy
    small = embcompress.compress(made.output, texts, rank=2, session=Session(device="cpu"))
    assert small.factorized.output == small.tuned.output == tmp_path / "api-compressed.pt"
    assert small.after.accuracy == small.tuned.dev_accuracy


# ---- factorize, finetune, expand


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_compressed_classifier_stays_what_it_was(shelf, dense, dtype):
    """Factorized and tuned: names, types and record are kept, padding is zero, and it is said."""
    small, tuned = (dense.with_stem(stem) for stem in ("small", "tuned"))
    succeed("factorize", dense, "--rank", "3", "--dtype", dtype, "-o", small)
    found = result("finetune", small, shelf / "train.csv", "-o", tuned, *QUICK)
    before, after = tensors(small), tensors(tuned)
    assert {*before} == ({*tensors(dense)} - {TABLE}) | {LEFT, RIGHT}
    assert [*before] == [*after]
    for name in before:
        assert (before[name].dtype, before[name].shape) == (after[name].dtype, after[name].shape)
        assert not torch.equal(before[name], after[name]), f"{name} was not trained"
    assert after[LEFT].dtype == after[RIGHT].dtype == getattr(torch, dtype)
    assert not after[LEFT][0].any(), "the padding row"
    assert record(dense) == record(small) == record(tuned)
    (one,), (two,) = description(small)["tables"], description(tuned)["tables"]
    assert (one["trained"], two["trained"]) == (False, True)
    assert one["digests"] != two["digests"]
    assert {**one, "trained": True, "digests": two["digests"]} == two
    assert description(tuned)["source"] == {small.name: hashlib.sha256(small.read_bytes()).hexdigest()}
    assert found["epochs"][0]["dev_accuracy"] <= found["dev_accuracy"]
    said = ["were trained since" in succeed("report", path).stdout for path in (small, tuned)]
    assert said == [False, True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_expanding_a_tuned_classifier_is_the_product_of_its_factors(shelf, dense, dtype):
    """In the type the table once had, and all else to the bit; it then evaluates to the same."""
    small, tuned, wide = (dense.with_stem(stem) for stem in ("small", "tuned", "wide"))
    succeed("factorize", dense, "--rank", "3", "--dtype", dtype, "-o", small)
    succeed("finetune", small, shelf / "train.csv", "-o", tuned, *QUICK)
    succeed("expand", tuned, "-o", wide)
    before, after = tensors(tuned), tensors(wide)
    product = before.pop(LEFT).double() @ before.pop(RIGHT).double().T
    torch.testing.assert_close(after.pop(TABLE), product.float(), rtol=1e-6, atol=1e-6)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert record(wide) == record(dense)
    accuracies = {result("evaluate", path, shelf / "test.csv")["accuracy"] for path in (tuned, wide)}
    assert len(accuracies) == 1


def test_only_factors_leaves_all_else_alone(shelf, dense):
    """--only-factors trains both factors and no other tensor."""
    small, tuned = (dense.with_stem(stem) for stem in ("small", "tuned"))
    succeed("factorize", dense, "--rank", "3", "-o", small)
    succeed("finetune", small, shelf / "train.csv", "-o", tuned, "--only-factors", *QUICK)
    before, after = tensors(small), tensors(tuned)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {LEFT, RIGHT}


def test_finetuning_never_loses_to_its_input(shelf, dense):
    """Where no epoch is better on dev, the weights of the input are written."""
    tuned = dense.with_stem("tuned")
    ruin = ("--epochs", "2", "--optimizer", "sgd", "--learning-rate", "1000")
    found = result("finetune", dense, shelf / "train.csv", "-o", tuned, *ruin)
    assert found["best"] == 0
    assert found["epochs"][1]["dev_loss"] > found["epochs"][0]["dev_loss"]
    assert same(dense, tuned)


def test_a_dense_classifier_can_be_trained_on(shelf, dense):
    """finetune also takes what is not compressed, and says nothing of compression then."""
    tuned = dense.with_stem("tuned")
    found = result("finetune", dense, shelf / "train.csv", "-o", tuned, "--label-column", "label", *QUICK)
    assert {*tensors(tuned)} == {*tensors(dense)}
    assert found["best"] > 0
    assert not same(dense, tuned)
    assert "holds no compressed table" in run("expand", tuned).stderr


# ---- compress


@pytest.mark.parametrize("test", [True, False])
def test_compress_is_its_three_steps(shelf, dense, tmp_path, test):
    """Weights to the bit and numbers as factorize, finetune and evaluate give them; nothing else stays."""
    texts = shelf / "train.csv"
    small, tuned, whole = (dense.with_stem(stem) for stem in ("small", "tuned", "whole"))
    target = ("--ratio", "0.6", "--dtype", "float16", "--split-scale", "even")
    dev = ("--dev", shelf / "dev.csv")
    measure_on = shelf / ("test.csv" if test else "dev.csv")
    seen = torch.cat([ids_of(dense, text) for text, _ in rows_of(texts)])
    counts = np.bincount(seen.numpy(), minlength=len(tensors(dense)[TABLE])).astype(np.float64)
    np.save(tmp_path / "counts.npy", counts)
    counted = ("--method", "auto", "--weights", f"none+{tmp_path / 'counts.npy'}", "--smoothing", "1")
    counted = (*counted, "--metric", texts)
    steps = [
        result("factorize", dense, *target, *counted, "-o", small),
        result("finetune", small, texts, *dev, *QUICK, "-o", tuned),
        *(result("evaluate", path, measure_on) for path in (dense, small, tuned)),
    ]
    kept = {path.name for path in tmp_path.iterdir()}
    more = ("--test", measure_on) if test else ()
    found = result("compress", dense, texts, *target, *dev, *more, *QUICK, "-o", whole)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, whole.name}
    assert same(whole, tuned)
    assert record(whole) == record(dense)
    tables = [{**description(path)["tables"][0], "weighting": None} for path in (whole, tuned)]
    assert tables[0] == tables[1]
    names = ("factorized", "tuned", "before", "without_training", "after")
    places = {"path", "output", "source", "size", "size_after", "notes"}  # sizes hold the names of files
    for name, step in zip(names, steps, strict=True):
        one, other = ({k: v for k, v in x.items() if k not in places} for x in (found[name], step))
        for epoch in (*one.get("epochs", ()), *other.get("epochs", ())):
            del epoch["seconds"]
        for table in (*one.get("tables", ()), *other.get("tables", ())):
            del table["weighting"]
        assert one == other, name
    assert (found["before"]["path"], found["after"]["path"]) == (str(dense), str(whole))
    assert found["factorized"]["output"] == found["tuned"]["output"] == str(whole)
    assert found["tuned"]["source"] == found["factorized"]["source"] == str(dense)


def test_compress_weighs_tokens_by_their_frequency(shelf, dense):
    """With --smoothing 0 it is the plain factorization, and each exponent above is another."""
    texts, plain = shelf / "train.csv", dense.with_stem("plain")
    succeed("factorize", dense, "--rank", "3", "-o", plain)
    products = [tensors(plain)[LEFT] @ tensors(plain)[RIGHT].T]
    for smoothing in ("0", "1", "2"):
        output = dense.with_stem(f"smoothing{smoothing}")
        more = ("--no-metric", "--smoothing", smoothing)
        succeed("compress", dense, texts, "--rank", "3", *more, "-o", output, *STILL)
        products.append(tensors(output)[LEFT] @ tensors(output)[RIGHT].T)
    alike = [torch.allclose(products[0], product, rtol=1e-4, atol=1e-6) for product in products]
    assert alike == [True, True, False, False]
    assert not torch.allclose(products[2], products[3], rtol=1e-2, atol=1e-4)


def test_compress_starts_from_the_usual_retraining(shelf, dense):
    """Without a word it trains as finetune does: 3 epochs, a rate of 3e-3 that falls linearly to 0."""
    whole = dense.with_stem("whole")
    found = result("compress", dense, shelf / "train.csv", "--rank", "3", "-o", whole)
    rates = [epoch["learning_rate"] for epoch in found["tuned"]["epochs"][1:]]
    assert len(rates) == FINETUNE_RECIPE.epochs == 3
    assert rates == pytest.approx([3e-3, 2e-3, 1e-3])


def test_compress_names_the_file_it_was_made_from(shelf, dense):
    """The record of the output holds the dense file and its SHA-256, as factorize would say it."""
    whole = dense.with_stem("whole")
    succeed("compress", dense, shelf / "train.csv", "--rank", "3", "-o", whole, *STILL)
    assert description(whole)["source"] == {dense.name: hashlib.sha256(dense.read_bytes()).hexdigest()}


def test_what_outgrows_its_stored_type_is_refused(shelf, tmp_path):
    """A factor beyond float16 is out of reach, exit code 4, and nothing is written; float32 takes it."""
    for dtype, code in (("float16", 4), ("float32", 0)):
        small, output = tmp_path / f"{dtype}.pt", tmp_path / f"{dtype}-tuned.pt"
        succeed("factorize", shelf / "dan.pt", "--rank", "3", "--dtype", dtype, "-o", small)
        # A dev set that it gets all wrong, and texts that teach it nothing else: one step is better.
        text = "snow, snow!"
        (told,) = predictions(small, [text])
        wanted = next(label for label in SIGNS if label != told)
        (tmp_path / "one.csv").write_text("text,label\n" + f'"{text}",{wanted}\n' * 8)
        before = contents(tmp_path)
        leap = ("--learning-rate", "1e6", "--epochs", "1", "--schedule", "constant")
        dev = ("--dev", tmp_path / "one.csv")
        done = run("finetune", small, tmp_path / "one.csv", *dev, "-o", output, *leap)
        assert done.exit_code == code, done.output
        if code:
            assert done.stderr.splitlines()[-1].startswith("Error: ")
            assert "float16 ends at 65504; train with a lower --learning-rate" in done.stderr
            assert contents(tmp_path) == before
        else:
            assert max(float(tensor.abs().max()) for tensor in tensors(output).values()) > 65504
