"""``--metric``: a BERT and a GPT-2 in which some directions of a row hardly matter, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.checkpoints import assert_refused, succeed
from helpers.distilling import WORDS, bert, gpt2, tokenizer
from helpers.refusals import refused
from helpers.static_models import save_static
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import parse_description
from embcompress.choices import METRIC_TEXTS
from embcompress.compression.column_metric import SHARE, drawn
from embcompress.errors import InputError, UsageError

BERT, GPT2 = "embeddings.word_embeddings.weight", "transformer.wte.weight"
HIDDEN = slice(16, 32)
"""Columns that the models hardly look at."""


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Both models, whose rows differ alike in all columns, and texts."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, build in (("bert", bert), ("gpt2", gpt2)):
        (folder / name).mkdir()
        size = tokenizer(folder / name)
        torch.manual_seed(0)
        model = build(size)
        with torch.no_grad():
            if name == "bert":
                model.embeddings.LayerNorm.weight[HIDDEN] = 0.03
            else:
                for norm in (model.transformer.h[0].ln_1, model.transformer.ln_f):
                    norm.weight[HIDDEN] = 0.03
        model.save_pretrained(folder / name)
    for name, count in (("texts", 300), ("fresh", 60)):
        (folder / f"{name}.txt").write_text("\n".join(texts(count, len(name))) + "\n")
    return folder


def made(shelf, output, name="bert", **options):
    """The model factorized to a quarter of its rank."""
    given = {"rank": 8, "metric": shelf / "texts.txt", **options}
    return embcompress.factorize(shelf / name, output=output, **given)


def cosine(shelf, folder):
    """Mean cosine of the sentence vectors of fresh texts to the original's, by transformers alone."""
    words = tf.AutoTokenizer.from_pretrained(shelf / "bert")
    dense = embcompress.expand(folder, output=folder.with_name(f"{folder.name}-dense")).output
    pair = [tf.AutoModel.from_pretrained(each).eval() for each in (shelf / "bert", dense)]
    found = []
    for text in (shelf / "fresh.txt").read_text().splitlines():
        given = words(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            mine, theirs = (model(**given).last_hidden_state[0].mean(dim=0) for model in pair)
        found.append(float(F.cosine_similarity(mine, theirs, dim=0)))
    return float(np.mean(found))


@pytest.mark.parametrize(
    "method", [{"rank": 8}, {"rank": None, "ratio": 0.9, "method": "pq"}], ids=["svd", "pq"]
)
def test_sentence_vectors_come_closer(shelf, tmp_path, method):
    """In about the same bytes the cosines to the original's rise, and the plain error with them."""
    plain = made(shelf, tmp_path / "plain", metric=None, **method).tables[0]
    ours = made(shelf, tmp_path / "ours", **method).tables[0]
    assert ours.bytes_after <= 1.03 * plain.bytes_after
    assert 1 - cosine(shelf, tmp_path / "ours") < 0.7 * (1 - cosine(shelf, tmp_path / "plain"))
    assert ours.relative_error > 1.05 * plain.relative_error
    assert plain.metric is None is plain.metric_error


def test_a_metric_in_other_directions_does_not_help(shelf, tmp_path):
    """That of the model's own, turned around, is worse than none."""
    made(shelf, tmp_path / "plain", metric=None)
    # What the model hardly looks at takes the place of what it does.
    wrong = np.diag(np.where(np.isin(np.arange(32), np.arange(32)[HIDDEN]), 1.0, 0.01))
    made(shelf, tmp_path / "wrong", metric=wrong)
    assert cosine(shelf, tmp_path / "wrong") < cosine(shelf, tmp_path / "plain")


def test_a_language_model_comes_closer_with_its_tied_head(shelf, tmp_path):
    """Its predictions, made by the same factors, differ less from the original's."""
    away = []
    for name, metric in (("plain", None), ("ours", shelf / "texts.txt")):
        output = made(shelf, tmp_path / name, "gpt2", metric=metric).output
        assert GPT2.replace("weight", "0.weight") in load_file(output / "model.safetensors")
        likeness = embcompress.compare(output, shelf / "gpt2", shelf / "fresh.txt").likeness
        away.append(likeness.divergence)
    assert away[1] < 0.9 * away[0]


def test_the_errors_shown_are_those_of_the_written_bytes(shelf, tmp_path):
    """Plain, weighted and in the metric, recomputed from a given matrix with NumPy alone."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0]
    matrix = (turn * np.logspace(0, -2, 32)) @ turn.T
    counts = np.arange(94.0)
    ours = made(shelf, tmp_path / "ours", metric=matrix, weights=counts, smoothing=1.0).tables[0]
    dense = embcompress.expand(tmp_path / "ours", output=tmp_path / "dense").output
    before, after = (
        load_file(each / "model.safetensors")[BERT].astype(float) for each in (shelf / "bert", dense)
    )

    def error(weights, form):
        squares = [np.einsum("id,de,ie->i", rows, form, rows) for rows in (after - before, before)]
        return np.sqrt((weights @ squares[0]) / (weights @ squares[1]))

    form = (1 - SHARE) * np.eye(32) + SHARE * matrix * 32 / np.trace(matrix)
    assert ours.relative_error == pytest.approx(error(np.ones(94), np.eye(32)), rel=1e-5)
    assert ours.weighted_error == pytest.approx(error(counts + 1, np.eye(32)), rel=1e-5)
    assert ours.metric_error == pytest.approx(error(counts + 1, form), rel=1e-5)
    assert ours.predicted_error == pytest.approx(ours.metric_error, rel=1e-4)
    assert ours.metric == "a given matrix"


def test_what_was_measured_is_named_everywhere(shelf, tmp_path):
    """In the summary, in JSON, in the record, in the card, by report and by verify."""
    output, given = tmp_path / "small", ("--metric", shelf / "texts.txt", "--corpus", shelf / "texts.txt")
    command = ("factorize", shelf / "bert", "--rank", 8, "-o", output, *given)
    shown = succeed(*command).stdout
    for word in ("error in the metric", "predicted", "weighted error", "unweighted", "texts.txt, 300 texts"):
        assert word in shown
    (table,) = json.loads(succeed(*command, "--force", "--json").stdout)["tables"]
    assert table["metric"] == "texts.txt, 300 texts"
    assert table["metric_error"] < table["weighted_error"] < 1.5 * table["relative_error"]
    with open_checkpoint(output) as written:
        assert written.description is not None
        (record,) = written.description.tables
        assert "--corpus texts.txt --metric texts.txt" in str(written.description.command)
    assert (record.metric, record.metric_error) == (table["metric"], table["metric_error"])
    assert (
        f"{record.metric_error:.4g} in the metric of texts.txt, 300 texts"
        in (output / "README.md").read_text()
    )
    assert "in the metric of texts.txt, 300 texts" in succeed("report", output).stdout
    checked = succeed("verify", output, "--against", shelf / "bert")
    assert "its error in the metric of texts.txt, 300 texts is not measured again" in " ".join(
        checked.stderr.split()
    )
    assert "metric" not in succeed("verify", output).stdout


def test_verify_finds_a_changed_factor(shelf, tmp_path):
    """The plain error is checked as without a metric."""
    output = made(shelf, tmp_path / "small").output
    assert embcompress.verify(output, against=shelf / "bert").is_right
    weights = load_file(output / "model.safetensors")
    weights[BERT.replace("weight", "1.weight")][0, 0] += 1
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    assert not embcompress.verify(output, against=shelf / "bert").is_right


def test_the_same_texts_give_the_same_bytes(shelf, tmp_path):
    """In whatever order they are, and however often each occurs."""
    lines = (shelf / "texts.txt").read_text().splitlines()
    (tmp_path / "texts.txt").write_text("\n".join([*reversed(lines), *lines[:50], "", "  "]) + "\n")
    for name, metric in (("one", shelf / "texts.txt"), ("other", tmp_path / "texts.txt")):
        made(shelf, tmp_path / name, metric=metric)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_columns_and_formats_of_texts_apply(shelf, tmp_path):
    """As they do to --corpus."""
    lines = (shelf / "texts.txt").read_text().splitlines()
    (tmp_path / "texts.csv").write_text("".join(f"{i};{line}\n" for i, line in enumerate(lines)))
    options = ("--text-column", 2, "--no-header", "--delimiter", ";", "--json")
    given = ("--rank", 8, "--dry-run", "--metric", tmp_path / "texts.csv")
    (table,) = json.loads(succeed("factorize", shelf / "bert", *given, *options).stdout)["tables"]
    assert table["metric"] == "texts.csv, 300 texts"
    assert table["predicted_error"] == pytest.approx(
        made(shelf, tmp_path / "small").tables[0].predicted_error
    )


def test_auto_chooses_by_the_error_in_the_metric(shelf, tmp_path):
    """Rivals are compared in it, int8 among them, which stores the same with any."""
    matrix = np.diag(np.where(np.arange(32) < 2, 1.0, 1e-6))
    found = made(shelf, tmp_path / "small", rank=None, ratio=0.7, method="auto", metric=matrix).tables[0]
    assert found.metric_error == pytest.approx(found.predicted_error, rel=0.15)
    assert found.method == min(found.rivals, key=found.rivals.__getitem__)
    assert {"int8", "svd", "pq"} <= {*found.rivals}


def test_a_sample_of_texts_is_drawn_whatever_their_order():
    """So many distinct texts that are not blank, and all if there are fewer."""
    lines = [f"text {i}" for i in range(500)]
    some = drawn(iter([*lines, "", " "]), 40)
    assert len({*some}) == 40
    assert {*drawn([*reversed(lines), *lines], 40)} == {*some}
    assert {*drawn(lines, METRIC_TEXTS)} == {*lines}
    # Neither the first nor the last: about as many of each half.
    assert 10 < sum(int(text.split()[1]) < 250 for text in some) < 30


# ---- what is refused


@pytest.mark.parametrize(
    ("entry", "value"), [("metric", 5), ("metric_error", "0.1"), ("metric_error", 1e300)]
)
def test_a_record_whose_metric_is_none_is_refused(shelf, tmp_path, entry, value):
    """Records may come from anywhere."""
    with open_checkpoint(made(shelf, tmp_path / "small", metric=np.eye(32)).output) as written:
        assert written.description is not None
        record = written.description.to_dict()
    assert parse_description(record, "here") == written.description
    record["tables"][0][entry] = value
    with refused(InputError, "here", entry):
        parse_description(record, "here")


def test_row_126_a_metric_without_a_model_to_run(shelf, tmp_path):
    """A file of weights, an ONNX model or a static model is no directory of transformers."""
    (tmp_path / "texts.txt").write_text("w1 w2\n")
    save_file(load_file(shelf / "bert" / "model.safetensors"), tmp_path / "model.safetensors")
    given = ("--rank", 2, "--metric", tmp_path / "texts.txt")
    assert_refused(tmp_path, "factorize", tmp_path / "model.safetensors", *given, code=2, says="Hugging Face")
    save_static(tmp_path / "static")
    assert_refused(tmp_path, "factorize", tmp_path / "static", *given, code=2, says="static")


@pytest.mark.parametrize("text", ["", "\n \n\t\n"], ids=["empty", "blank"])
def test_row_127_a_metric_of_no_texts(shelf, tmp_path, text):
    """A file without a text says nothing about directions."""
    (tmp_path / "texts.txt").write_text(text)
    with refused(InputError, str(tmp_path / "texts.txt"), "no text"):
        made(shelf, tmp_path / "small", metric=tmp_path / "texts.txt")
    with refused(UsageError, str(tmp_path / "none.txt")):
        made(shelf, tmp_path / "small", metric=tmp_path / "none.txt")


def test_row_128_a_metric_without_transformers(shelf, tmp_path, monkeypatch):
    """The extra is named; a metric that is given needs it not."""
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with refused(UsageError, "'embcompress[transformers]'"):
        made(shelf, tmp_path / "small")
    assert made(shelf, tmp_path / "small", metric=np.eye(32)).written


def test_row_129_gradients_that_are_not_numbers(shelf, tmp_path):
    """A model whose layers hold NaN has none; one that ignores its tokens has only zeros."""
    for name, value, says in (("nan", float("nan"), "NaN"), ("deaf", 0.0, "tokens")):
        model = tf.AutoModel.from_pretrained(shelf / "bert")
        with torch.no_grad():
            model.embeddings.LayerNorm.weight[:] = value
        model.save_pretrained(tmp_path / name)
        tokenizer(tmp_path / name)
        with refused(InputError, says):
            embcompress.factorize(tmp_path / name, rank=8, metric=shelf / "texts.txt")


@pytest.mark.parametrize("method", ["int8", "int4", "int3"])
def test_row_130_a_metric_for_a_method_that_ignores_it(shelf, method):
    """It would take minutes and change nothing."""
    options = ("--ratio", 0.6, "--method", method, "--metric", shelf / "texts.txt")
    assert_refused(shelf, "factorize", shelf / "bert", *options, code=2, says=method)


def test_row_131_a_metric_for_another_table(shelf):
    """Positions are looked up too, but not by token; several tables have no common metric."""
    names = ("--key", "embeddings.position_embeddings.weight")
    options = ("--rank", 2, "--metric", shelf / "texts.txt")
    says = "embeddings.position_embeddings.weight"
    assert_refused(shelf, "factorize", shelf / "bert", *names, *options, code=2, says=says)
    assert_refused(shelf, "factorize", shelf / "bert", *names, "--key", BERT, *options, code=2, says=BERT)


def test_the_scale_of_a_matrix_does_not_matter(shelf, tmp_path):
    """Nor that it is a tensor."""
    errors = [
        made(shelf, tmp_path / f"{place}", metric=torch.diag(torch.arange(1, 33).double()) * scale)
        for place, scale in enumerate((1.0, 1e306, 1e-300))
    ]
    assert len({round(one.tables[0].metric_error, 7) for one in errors}) == 1


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.eye(31), "[31, 31]"),
        (np.ones(32), "[32]"),
        ([["a", "b"]], "numbers"),
        (np.triu(np.ones((32, 32))), "symmetric"),
        (np.full((32, 32), np.nan), "finite"),
        (np.zeros((32, 32)), "above 0"),
        (np.diag([*[1.0] * 31, -1.0]), "-1"),
    ],
    ids=["size", "vector", "words", "not symmetric", "NaN", "zeros", "negative"],
)
def test_row_132_a_matrix_that_is_no_metric(shelf, tmp_path, matrix, says):
    """With what is wrong with it."""
    with refused(UsageError, says):
        made(shelf, tmp_path / "small", metric=matrix)
