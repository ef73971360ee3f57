"""Classifiers of Hugging Face directories: evaluated, trained on and compressed as those made here are."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
import transformers as tf
from helpers.checkpoints import assert_refused, contents, stored, succeed
from helpers.classifying import Strike
from helpers.quick import quick
from helpers.refusals import refused as refused_with
from helpers.sequence_models import LABELS, MODELS, WORDS, bert, gpt2, named, saved, tokenizer
from helpers.weather import result, weather
from safetensors.torch import load_file, save_file

import embcompress
from embcompress import Interrupted, Recipe, Session, UsageError
from embcompress.classifiers.opening import open_classifier, record_of
from embcompress.workflows.finetune import PRETRAINED_RECIPE, usual_recipe

METHODS = {"svd": {"rank": 6}, "pq": {"ratio": 0.5}, "lplr": {"ratio": 0.6}, "int4": {"ratio": 0.8}}
QUICK = Recipe(epochs=3, batch_size=8, optimizer="adamw", learning_rate=3e-3, schedule="constant", clip=1.0)
FLAGS = ("--epochs", "3", "--batch-size", "8", "--learning-rate", "3e-3", "--schedule", "constant")
TABLE = "bert.embeddings.word_embeddings"

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Models, compressed copies of the BERT, and texts; not to be written to."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, count, seed in (("train", 90, 0), ("dev", 30, 1), ("test", 45, 2)):
        weather(folder / f"{name}.csv", count, seed)
    for name, make in MODELS.items():
        saved(folder / name, make())
    for method, target in METHODS.items():
        embcompress.factorize(folder / "bert", method=method, **target, output=folder / f"bert-{method}")
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test wrote to the shelf"


def rows(path):
    with path.open() as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


@torch.no_grad()
def theirs(path, texts):
    """Scores by transformers alone, one text at a time and so without padding."""
    model, tokens = (
        tf.AutoModelForSequenceClassification.from_pretrained(path),
        tf.AutoTokenizer.from_pretrained(path),
    )
    model.eval()
    inputs = [tokens(text, return_tensors="pt", truncation=True, max_length=16) for text in texts]
    for one in inputs:
        one.pop("token_type_ids", None)
    return torch.cat([model(**one).logits for one in inputs])


def accuracy(path, file):
    texts, labels = zip(*rows(file), strict=True)
    found = [LABELS[i] for i in theirs(path, texts).argmax(dim=1).tolist()]
    return sum(map(str.__eq__, found, labels)) / len(labels)


# ---- evaluate and predict


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers(shelf, name):
    """Side by side with padding the scores are those of each text alone, so the labels are too."""
    texts = [text for text, _ in rows(shelf / "test.csv")]
    opened = open_classifier(shelf / name)
    data = opened.record.tokenizer.encode(texts, opened.record.max_length)
    padded = torch.from_numpy(data.padded(torch.arange(len(texts)).numpy(), opened.record.tokenizer.padding))
    with torch.no_grad():
        found = opened.model(padded, torch.from_numpy(data.lengths))
    expected = theirs(shelf / name, texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert embcompress.predict(shelf / name, texts) == tuple(LABELS[i] for i in expected.argmax(dim=1))
    assert len({*embcompress.predict(shelf / name, texts)}) > 1, "a model that answers alike tells nothing"


@pytest.mark.parametrize("method", METHODS)
def test_compressed_ones_are_measured_as_their_expanded_copies(shelf, method, tmp_path):
    """Accuracy is that of transformers on the dense table that the parts stand for."""
    embcompress.expand(shelf / f"bert-{method}", output=tmp_path / "dense")
    found = result("evaluate", shelf / f"bert-{method}", shelf / "test.csv")
    assert found["accuracy"] == pytest.approx(accuracy(tmp_path / "dense", shelf / "test.csv"))


def test_labels_may_be_numbers(shelf, tmp_path):
    """Data sets for such models often have the id of a label; names and numbers mean the same."""
    lines = [("text", "label"), *((text, LABELS.index(label)) for text, label in rows(shelf / "test.csv"))]
    with (tmp_path / "ids.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    by_number, by_name = (
        result("evaluate", shelf / "bert", path) for path in (tmp_path / "ids.csv", shelf / "test.csv")
    )
    assert by_number["accuracy"] == by_name["accuracy"]
    (tmp_path / "ids.csv").write_text("text,label\nsnow,3\n")
    assert_refused(tmp_path, "evaluate", shelf / "bert", tmp_path / "ids.csv", code=3, says="3")


def test_names_that_are_numbers_stay_names(tmp_path):
    """Where a label is called "1", it is that one, whatever its number."""
    path = saved(tmp_path / "model", bert(labels=("1", "0")))
    assert record_of(path).number_of == {"1": 0, "0": 1}


# ---- finetune


def labelled(shelf):
    return embcompress.Texts(shelf / "train.csv", dev=shelf / "dev.csv")


def assert_loads_as_measured(path, dev_accuracy, shelf):
    """Transformers alone finds the accuracy that was told, and better than guessing one of three labels."""
    assert accuracy(path, shelf / "dev.csv") == pytest.approx(dev_accuracy)
    assert dev_accuracy > 0.6


@pytest.mark.parametrize("name", quick(MODELS.keys(), "bert", "llama"))
def test_training_recovers_a_factorized_model(shelf, tmp_path, name):
    """Trained, factorized, trained again: more texts are right, and transformers loads the same."""
    recipe = replace(QUICK, epochs=8)
    dense = embcompress.finetune(shelf / name, labelled(shelf), recipe=recipe, output=tmp_path / "dense")
    assert_loads_as_measured(tmp_path / "dense", dense.dev_accuracy, shelf)
    embcompress.factorize(tmp_path / "dense", rank=2, output=tmp_path / "small", layout="embcompress")
    tuned = embcompress.finetune(
        tmp_path / "small", labelled(shelf), recipe=recipe, output=tmp_path / "tuned"
    )
    assert_loads_as_measured(tmp_path / "tuned", tuned.dev_accuracy, shelf)
    assert tuned.best > 0
    assert tuned.classifier == type(MODELS[name]()).__name__
    before, after = (stored(tmp_path / folder / "model.safetensors") for folder in ("small", "tuned"))
    assert {n: v[:2] for n, v in after.items()} == {n: v[:2] for n, v in before.items()}
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "embcompress"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "int4"])
def test_only_factors_leaves_the_rest(shelf, tmp_path, method):
    """The floats of the factors are trained, and every other tensor is carried byte for byte."""
    done = embcompress.finetune(
        shelf / f"bert-{method}",
        shelf / "train.csv",
        recipe=Recipe(epochs=4, batch_size=8, learning_rate=0.02, only_factors=True),
        output=tmp_path / "tuned",
    )
    assert done.best > 0
    before, after = (stored(p / "model.safetensors") for p in (shelf / f"bert-{method}", tmp_path / "tuned"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(name.startswith(TABLE) for name in changed)
    assert not any(name.endswith("0.codes") for name in changed)


def test_only_factors_of_integers_is_refused(shelf, tmp_path):
    """They have nothing that could be trained."""
    with refused_with(UsageError, "integers"):
        embcompress.finetune(
            shelf / "bert-int4",
            shelf / "train.csv",
            recipe=Recipe(only_factors=True),
            output=tmp_path / "tuned",
        )
    assert not (tmp_path / "tuned").exists()


def test_a_native_form_stays_native(shelf, tmp_path):
    """DeBERTa's own factors are trained by their own names; stock transformers loads the result."""
    embcompress.factorize(shelf / "deberta", rank=6, output=tmp_path / "small", layout="native")
    done = embcompress.finetune(tmp_path / "small", labelled(shelf), recipe=QUICK, output=tmp_path / "tuned")
    assert done.best > 0
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["embedding_size"] == 6
    assert_loads_as_measured(tmp_path / "tuned", done.dev_accuracy, shelf)


def test_shards_and_half_precision_stay(shelf, tmp_path):
    """A directory in float16 and in parts comes out in float16 and in the same parts."""
    path = saved(tmp_path / "model", bert().half(), max_shard_size="20kB")
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(shards) > 2
    embcompress.factorize(path, rank=6, output=tmp_path / "small")
    longer = replace(QUICK, epochs=8)
    done = embcompress.finetune(tmp_path / "small", labelled(shelf), recipe=longer, output=tmp_path / "tuned")
    assert done.best > 0
    assert_loads_as_measured(tmp_path / "tuned", done.dev_accuracy, shelf)
    assert sorted(file.name for file in (tmp_path / "tuned").glob("*.safetensors")) == shards
    state = {n: v for shard in shards for n, v in load_file(tmp_path / "tuned" / shard).items()}
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_the_usual_recipe_is_gentle(shelf):
    """What is given changes it; another optimizer of the same family keeps its rate."""
    assert usual_recipe(shelf / "bert") == PRETRAINED_RECIPE
    assert PRETRAINED_RECIPE.learning_rate < 1e-3
    assert PRETRAINED_RECIPE.clip == 1
    assert usual_recipe(shelf / "train.csv") != PRETRAINED_RECIPE


def test_flags_and_results_are_those_of_other_classifiers(shelf, tmp_path):
    """The command line trains, keeps a history, and says the same as Python."""
    found = result("finetune", shelf / "bert-svd", shelf / "train.csv", "--dev", shelf / "dev.csv", *FLAGS,
                   "-o", tmp_path / "tuned", "--history", tmp_path / "run.jsonl")  # fmt: skip
    assert found["dev_accuracy"] == pytest.approx(accuracy(tmp_path / "tuned", shelf / "dev.csv"))
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 4
    again = embcompress.finetune(
        shelf / "bert-svd",
        embcompress.Texts(shelf / "train.csv", dev=shelf / "dev.csv"),
        recipe=QUICK,
        output=tmp_path / "again",
    )
    assert again.dev_accuracy == found["dev_accuracy"]
    assert contents(tmp_path / "again") == contents(tmp_path / "tuned")


@pytest.mark.parametrize("at", [1, 13])
def test_an_interrupted_run_goes_on_to_the_bit(shelf, tmp_path, at):
    """Stopped after a step and resumed, the files are those of a run that was not stopped."""
    arguments = {"path": shelf / "bert-pq", "texts": shelf / "train.csv", "recipe": QUICK}
    embcompress.finetune(**arguments, output=tmp_path / "whole")
    with pytest.raises(Interrupted):
        embcompress.finetune(**arguments, output=tmp_path / "parts", session=Session(watcher=Strike(at)))
    assert not (tmp_path / "parts").exists()
    if at > 12:
        texts = [text for text, _ in rows(shelf / "test.csv")]
        assert len(embcompress.predict(tmp_path / "parts.interrupted", texts)) == len(texts)
    embcompress.finetune(**arguments, output=tmp_path / "parts", session=Session(resume=True))
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_compress_does_all_of_it(shelf, tmp_path):
    """Counted, factorized, trained and measured in one go."""
    embcompress.finetune(shelf / "bert", shelf / "train.csv", recipe=QUICK, output=tmp_path / "dense")
    done = embcompress.compress(
        tmp_path / "dense",
        shelf / "train.csv",
        ratio=0.7,
        recipe=QUICK,
        test=shelf / "test.csv",
        output=tmp_path / "small",
    )
    assert done.before.confusion.accuracy == pytest.approx(accuracy(tmp_path / "dense", shelf / "test.csv"))
    assert done.after.confusion.accuracy == pytest.approx(accuracy(tmp_path / "small", shelf / "test.csv"))
    assert done.after.confusion.accuracy > done.before.confusion.accuracy  # which QUICK has not taught all
    assert done.factorized.tables[0].ratio >= 0.7


# ---- what is refused


def changed_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def no_head(path):
    tf.BertModel(tf.BertConfig.from_pretrained(path)).save_pretrained(path)


def regression(path):
    changed_config(path, id2label={"0": "score"}, label2id={"score": 0})


def several(path):
    changed_config(path, problem_type="multi_label_classification")


def alike(path):
    changed_config(path, id2label={"0": "a", "1": "a", "2": "b"})


def headless_file(path):
    state = load_file(path / "model.safetensors")
    save_file({n: v for n, v in state.items() if "classifier" not in n}, path / "model.safetensors")


def no_tokenizer(path):
    for file in path.glob("tokenizer*"):
        file.unlink()


def larger_tokenizer(path):
    tokenizer(path, words=[*WORDS, "one", "more"])


def no_padding(path):
    tokenizer(path, pad_token=None)


def not_finite(path):
    state = load_file(path / "model.safetensors")
    state["classifier.bias"][1] = torch.inf
    save_file(state, path / "model.safetensors")


def own_code(path):
    changed_config(path, architectures=["MadeUpForSequenceClassification"])


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (no_head, 2, "a BertModel does not label texts"),
        (regression, 2, "a model for regression"),
        (several, 2, "multi_label_classification"),
        (alike, 3, "two labels the same name"),
        (headless_file, 2, "2 missing from the file: classifier."),
        (no_tokenizer, 2, "has no tokenizer"),
        (larger_tokenizer, 3, f"token ids go up to {len(WORDS) + 1}"),
        (no_padding, 2, "no padding token"),
        (not_finite, 3, "not finite"),
        (own_code, 2, "MadeUpForSequenceClassification"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("command", ["finetune", "evaluate"])
def test_what_cannot_be_trained_is_refused(shelf, tmp_path, spoil, code, says, command):
    """One line with the reason, and nothing is written."""
    path = saved(tmp_path / "model", bert())
    spoil(path)
    more = ("-o", tmp_path / "tuned") if command == "finetune" else ()
    assert_refused(tmp_path, command, path, shelf / "train.csv", *more, code=code, says=says)


def test_a_decoder_needs_to_know_its_padding(shelf, tmp_path):
    """It looks for the last token that is none."""
    path = saved(tmp_path / "model", gpt2())
    changed_config(path, pad_token_id=None)
    assert_refused(tmp_path, "evaluate", path, shelf / "test.csv", code=2, says="padding token")


def test_encoders_with_decoders_and_own_modules_are_refused(shelf, tmp_path):
    """Neither has scores that could be asked for in this way."""
    sizes = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = tf.BartConfig(vocab_size=len(WORDS), **sizes, **heads, **named())
    path = saved(tmp_path / "model", tf.BartForSequenceClassification(config))
    assert_refused(tmp_path, "evaluate", path, shelf / "test.csv", code=2, says="encoder-decoder")
    own = ("evaluate", shelf / "bert", shelf / "test.csv", "--model", "a.b:c")
    assert_refused(tmp_path, *own, code=2, says="leave out --model")


def test_long_texts_are_cut_as_the_model_was_taught(shelf, tmp_path):
    """The last special token stays, and no text has more tokens than the model positions."""
    long = "snow " * 100
    (tmp_path / "long.csv").write_text(f"text,label\n{long},cold\nsun,hot\n")
    record = record_of(shelf / "bert")
    found = record.tokenizer.encode([long], record.max_length)
    assert found.lengths.tolist() == [16]
    assert found.tokens[-1] == 3
    succeed("evaluate", shelf / "bert", tmp_path / "long.csv")
