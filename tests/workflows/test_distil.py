"""Recovery without labels: measured against the original, and learned from it."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.checkpoints import assert_refused, contents, run, stored, succeed
from helpers.distilling import BERT, GPT2, QUICK, WORDS, bert, compared, gpt2, tokenizer, tune
from helpers.quick import quick
from helpers.refusals import refused
from safetensors.torch import load_file

import embcompress
from embcompress import DistilRecipe, Interrupted, UsageError
from embcompress.pretrained.models import open_pretrained
from embcompress.pretrained.tokens import encoded
from embcompress.training.devices import runtime
from embcompress.training.distillation import choose_trained, held_out
from embcompress.training.likeness import batches_within, measure, neighbours_kept
from embcompress.training.mixing import Mixture
from embcompress.training.recovery import DistilWatcher

# ---- measuring


def test_a_model_is_like_itself(shelf):
    """The original against itself: error 0, cosine 1, every neighbour kept."""
    found = compared(shelf, shelf / "bert")
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.neighbours == 1
    assert found.perplexity is None
    assert found.texts == 80


def test_the_figures_are_those_of_transformers_alone(shelf, tmp_path):
    """Cosine, neighbours and hidden error, text by text and without padding, from the expanded directory."""
    small = shelf / "bert-svd"
    embcompress.expand(small, output=tmp_path / "bert-dense")
    tokens = tf.AutoTokenizer.from_pretrained(shelf / "bert")
    texts = [*dict.fromkeys((shelf / "test.txt").read_text().splitlines())]
    hidden = []
    for path in (tmp_path / "bert-dense", shelf / "bert"):
        model = tf.AutoModel.from_pretrained(path).eval()
        with torch.no_grad():
            hidden.append([model(**tokens(text, return_tensors="pt")).last_hidden_state[0] for text in texts])
    mine, theirs = (torch.stack([states.mean(dim=0) for states in one]) for one in hidden)
    found = compared(shelf, small)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(mine, theirs).mean()), abs=1e-5)
    sets = []
    for rows in (mine, theirs):
        near = torch.nn.functional.normalize(rows, dim=1)
        order = (near @ near.T - 9 * torch.eye(len(near))).argsort(dim=1, descending=True)
        sets.append([{*row[:5].tolist()} for row in order])
    share = np.mean([len(a & b) / 5 for a, b in zip(*sets, strict=True)])
    assert found.neighbours == pytest.approx(share, abs=1e-9)
    small_, large = (torch.cat(one) for one in hidden)
    error = (small_ - large).square().sum() / (large - large.mean(dim=0)).square().sum()
    assert found.error == pytest.approx(float(error), rel=1e-4)
    assert 0.01 < found.error < 2


def test_perplexities_are_those_of_transformers_alone(shelf, tmp_path):
    """Of the original and of the compressed language model, from the loss transformers computes itself."""
    found = compared(shelf, shelf / "gpt2-svd", "gpt2")
    embcompress.expand(shelf / "gpt2-svd", output=tmp_path / "gpt2-dense")
    tokens = tf.AutoTokenizer.from_pretrained(shelf / "gpt2")
    for path, perplexity in (
        (shelf / "gpt2", found.teacher_perplexity),
        (tmp_path / "gpt2-dense", found.perplexity),
    ):
        model = tf.GPT2LMHeadModel.from_pretrained(path).eval()
        total = count = 0
        for text in dict.fromkeys((shelf / "test.txt").read_text().splitlines()):
            ids = tokens(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        assert perplexity == pytest.approx(np.exp(total / count), rel=1e-4)
    assert found.divergence > 0


def test_neighbours_are_counted_by_hand():
    """Four rows of which two change places: the sets of their nearest show it."""
    rows = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [0.1, 0.99]])
    assert neighbours_kept(rows, rows, 1) == 1
    assert neighbours_kept(rows, rows[[0, 2, 1, 3]], 1) == 0
    assert neighbours_kept(rows, rows * 7, 2) == 1, "lengths do not matter"


def test_memory_is_bounded_by_the_ids_of_a_batch(shelf, monkeypatch):
    """Parts of a batch hold each row once and no more ids than allowed; figures stay what they were."""
    lengths = np.array([3, 9, 4, 9, 2])
    parts = batches_within(np.array([4, 1, 3]), lengths, 10)
    assert sorted(np.concatenate(parts)) == [1, 3, 4]
    assert all(len(part) * lengths[part].max() <= 10 for part in parts)
    whole = compared(shelf, shelf / "gpt2-svd", "gpt2")
    monkeypatch.setattr("embcompress.training.likeness._LOGITS", 94 * 20)
    in_parts = compared(shelf, shelf / "gpt2-svd", "gpt2")
    assert in_parts.to_dict() == pytest.approx(whole.to_dict(), rel=1e-4)


def test_evaluate_prints_and_tells_as_json(shelf):
    """The same figures for a person and as one object; TEXTS may be the argument as well."""
    args = ("evaluate", shelf / "gpt2-svd", "--teacher", shelf / "gpt2")
    found = json.loads(succeed(*args, "--texts", shelf / "test.txt", "--json").stdout)
    assert {*found} == {
        *("path", "teacher", "texts_file", "size", "teacher_size", "texts", "error", "cosine"),
        *("neighbours", "teacher_perplexity", "perplexity", "divergence", "notes"),
    }
    assert found["size"] == (shelf / "gpt2-svd" / "model.safetensors").stat().st_size
    shown = succeed(*args, shelf / "test.txt").stdout
    for text in (f"{found['cosine']:.4f}", f"{found['neighbours']:.1%}", f"{found['perplexity']:.2f}"):
        assert text in shown
    assert f"perplexity of the original: {found['teacher_perplexity']:.2f}" in shown


def test_texts_come_from_a_column_and_count_once(shelf, tmp_path):
    """A CSV's column; blank texts and those that were there already are left out."""
    lines = [f'1,"w1 w{i}, w3"' for i in range(12)]
    csv = tmp_path / "texts.csv"
    csv.write_text("\n".join(["id,note", *lines, *lines, "9,   "]) + "\n")
    options = ("--texts", csv, "--text-column", "note", "--json")
    found = json.loads(succeed("evaluate", shelf / "bert-svd", "--teacher", shelf / "bert", *options).stdout)
    assert found["texts"] == 12


def test_max_length_cuts_texts(shelf):
    """Of one token less, one id less is read; more than the model has places is never asked for."""
    model = open_pretrained(shelf / "bert")
    text = [" ".join(WORDS[:60])]
    assert encoded(model, text, 9).texts.lengths.tolist() == [9]
    assert encoded(model, text, 200).texts.lengths.tolist() == [16]
    config = tf.RobertaConfig(vocab_size=94, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                              num_attention_heads=1, max_position_embeddings=12, pad_token_id=1)  # fmt: skip
    roberta = replace(model, model=tf.RobertaModel(config).eval())
    data = encoded(roberta, text, 200)
    assert data.texts.lengths.tolist() == [10], "it counts positions from behind the padding on"
    assert roberta(*data.tensors(np.array([0]), torch.device("cpu"))).hidden.shape == (1, 10, 8)


# ---- learning


LEARNING = {
    f"{name}, {kind}, {train}": (name, kind, train)
    for name in ("bert", "gpt2")
    for kind in ("svd", "pq")
    for train in ("factors", "norms", "first", "all")
}


@pytest.mark.parametrize(
    ("name", "kind", "train"),
    quick(LEARNING, "bert, svd, first", "gpt2, pq, norms", "bert, pq, factors", "gpt2, svd, all"),
)
def test_learning_from_the_teacher_repairs(shelf, tmp_path, name, kind, train):
    """On texts never seen the error falls; the output loads with load, and expands."""
    result = tune(shelf, tmp_path / "tuned", name, kind, train=train)
    before = compared(shelf, shelf / f"{name}-{kind}", name)
    after = compared(shelf, tmp_path / "tuned", name)
    bound = {"factors": 0.97, "norms": 0.95, "first": 0.95, "all": 0.8}[train]
    assert after.loss < bound * before.loss, (before, after)
    if train == "all":
        assert after.error < 0.8 * before.error
        assert after.cosine > before.cosine
    assert result.best > 0
    assert result.after.loss == pytest.approx(result.checks[result.best].held_out.loss, rel=0.02)
    build = {"bert": bert, "gpt2": gpt2}[name]
    loaded = embcompress.load(build(len(WORDS) + 4), tmp_path / "tuned").eval()
    assert any("Factorized" in type(m).__name__ or "Coded" in type(m).__name__ for m in loaded.modules())
    ids = torch.tensor([[2, 7, 9, 50, 3]])
    embcompress.expand(tmp_path / "tuned", output=tmp_path / "dense")
    dense = type(loaded).from_pretrained(tmp_path / "dense").eval()
    with torch.no_grad():
        torch.testing.assert_close(dense(ids)[0], loaded(ids)[0], atol=1e-3, rtol=1e-3)


def test_a_rate_of_nothing_repairs_nothing(shelf, tmp_path):
    """The negative control: with the same steps at a rate that moves no weight the error stays."""
    tune(shelf, tmp_path / "tuned", learning_rate=1e-12)
    before, after = compared(shelf, shelf / "bert-svd"), compared(shelf, tmp_path / "tuned")
    assert after.error == pytest.approx(before.error, rel=1e-4)


def test_the_best_state_is_kept(shelf, tmp_path):
    """At a rate that ruins the model the output is the input, which a note says, and the record too."""
    result = tune(shelf, tmp_path / "tuned", learning_rate=30.0, epochs=1)
    assert result.best == 0
    assert "improved nothing" in result.notes[-1]
    assert result.checks[-1].held_out.loss > result.checks[0].held_out.loss
    tensors = [load_file(path / "model.safetensors") for path in (shelf / "bert-svd", tmp_path / "tuned")]
    assert all(torch.equal(tensors[0][n], tensors[1][n]) for n in tensors[0])
    table = json.loads((tmp_path / "tuned" / "config.json").read_text())["quantization_config"]["tables"][0]
    assert not table["trained"]


@pytest.mark.parametrize(("kind", "parts"), [("svd", {"0.weight", "1.weight"}), ("pq", None)])
def test_what_is_not_trained_stays_byte_for_byte(shelf, tmp_path, kind, parts):
    """--train factors changes the floats of the factors alone, norms these and LayerNorms; codes never."""
    original = stored(shelf / f"bert-{kind}" / "model.safetensors")
    for train in ("factors", "norms", "all"):
        tune(shelf, tmp_path / train, kind=kind, train=train, epochs=1)
        written = stored(tmp_path / train / "model.safetensors")
        assert written.keys() == original.keys()
        assert all(written[n][:2] == original[n][:2] for n in original), "types and shapes"
        changed = {n for n in original if written[n] != original[n]}
        factors = {n for n in changed if n.startswith(BERT)}
        assert factors
        assert not any(n.endswith(("0.codes", "0.rates", "0.hot", "0.extra")) for n in factors)
        if parts is not None:
            assert factors == {f"{BERT}.{part}" for part in parts}
        others = changed - factors
        if train == "factors":
            assert not others
        elif train == "norms":
            assert others == {n for n in original if "LayerNorm" in n}
        else:
            assert "encoder.layer.0.output.dense.weight" in others
            assert not any(n.startswith("pooler") for n in changed), "it has no part in the hidden states"
        config = json.loads((tmp_path / train / "config.json").read_text())
        assert config["quantization_config"]["tables"][0]["trained"]
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / train / file).read_bytes() == (shelf / "bert" / file).read_bytes()


def test_the_first_layers_are_trained_by_the_states_after_them(shelf, tmp_path):
    """What lies above stays byte for byte; the states are those that transformers gives."""
    original = stored(shelf / "bert-svd" / "model.safetensors")
    tune(shelf, tmp_path / "tuned", train="first")
    written = stored(tmp_path / "tuned" / "model.safetensors")
    changed = {n for n in original if written[n] != original[n]}
    assert {n.split(".")[2] for n in changed if n.startswith("encoder")} == {"0"}, "one layer of two"
    assert {n.partition(".")[0] for n in changed} == {"embeddings", "encoder"}
    student = open_pretrained(shelf / "gpt2-svd")
    ids, mask = torch.tensor([[2, 7, 9, 50, 3], [2, 8, 3, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.no_grad():
        states = student.states_after(student.layers[0], ids, mask)
        wanted = student.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        whole = student(ids, mask).hidden  # the hook is gone
    torch.testing.assert_close(states, wanted)
    assert whole.shape == states.shape
    with refused(UsageError, "--train all"):
        student.states_after(torch.nn.Linear(1, 1), ids, mask)


def test_row_135_layers_that_are_not_known_are_not_trained_alone(shelf):
    """ALBERT runs one layer many times: by default all of it is trained, and "first" is refused."""
    config = tf.AlbertConfig(vocab_size=94, hidden_size=8, embedding_size=8, intermediate_size=8,
                             num_hidden_layers=3, num_attention_heads=2)  # fmt: skip
    albert = replace(open_pretrained(shelf / "bert-svd"), model=tf.AlbertModel(config))
    assert albert.layers == ()
    assert DistilRecipe().settled(causal=False, layers=len(albert.layers)).train == "all"
    with refused(UsageError, "--train all"):
        choose_trained(albert, "first")


def test_what_is_usual_follows_from_the_model():
    """Encoders and language models differ; what is chosen stays."""
    assert DistilRecipe().settled(causal=False, layers=2) == DistilRecipe("first", mixture=0.5)
    assert DistilRecipe().settled(causal=True, layers=2) == DistilRecipe("all", mixture=0.0)
    chosen = DistilRecipe("norms", mixture=0.2)
    assert chosen.settled(causal=True, layers=2) == chosen


def test_drawn_tokens_take_the_place_of_some():
    """As many and as often as asked for, the same at the same step, never special ones."""
    shares = np.array([50.0, 3.0, 0.0, 1.0, 20.0, 0.0])
    mixture = Mixture(shares, (0, 4), 0.25, 1)
    tokens = torch.full((500, 40), 2)
    tokens[:, 0], tokens[:, -1] = 0, 4
    mixed = mixture(tokens, 3, 0)
    assert (mixed[:, 0] == 0).all()
    assert (mixed[:, -1] == 4).all()
    counts = torch.bincount(mixed[:, 1:-1].flatten(), minlength=6) / (500 * 38)
    assert counts.tolist() == pytest.approx([0, 0.25 * 0.75, 0.75, 0.25 * 0.25, 0, 0], abs=0.01)
    assert torch.equal(mixed, mixture(tokens, 3, 0))
    for step, part in ((4, 0), (3, 1)):
        assert not torch.equal(mixed, mixture(tokens, step, part))
    for unmixed in (Mixture(shares, (0, 4), 0.0, 1), Mixture(shares * 0, (), 0.5, 1)):
        assert torch.equal(unmixed(tokens, 0, 0), tokens)


def test_integers_train_everything_around_them(shelf, tmp_path):
    """A table in integers has no floats to train alone; with all the rest it is repaired."""
    with refused(UsageError, "--train"):
        tune(shelf, tmp_path / "tuned", kind="int3", train="factors")
    tune(shelf, tmp_path / "tuned", kind="int3", train="all")
    before, after = compared(shelf, shelf / "bert-int3"), compared(shelf, tmp_path / "tuned")
    assert after.error < 0.8 * before.error


def test_shards_prefixes_and_half_precision(shelf, tmp_path):
    """Shards of float16 whose names lack the architecture's prefix come out as they were, and repaired."""
    model = tf.GPT2LMHeadModel.from_pretrained(shelf / "gpt2").half()
    model.transformer.save_pretrained(tmp_path / "original", max_shard_size="8KB")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (tmp_path / "original" / "config.json").write_text(json.dumps(config))
    tokenizer(tmp_path / "original")
    embcompress.factorize(tmp_path / "original", rank=6, output=tmp_path / "small")
    result = embcompress.distil(
        tmp_path / "small", tmp_path / "original", shelf / "train.txt", output=tmp_path / "tuned",
        recipe=DistilRecipe(**QUICK),
    )  # fmt: skip
    assert result.after.loss < 0.8 * result.before.loss
    kept = [(p.name, stored(p).keys()) for p in sorted((tmp_path / "small").glob("*.safetensors"))]
    assert len(kept) > 1
    assert kept == [(p.name, stored(p).keys()) for p in sorted((tmp_path / "tuned").glob("*.safetensors"))]
    assert {t[0] for p in (tmp_path / "tuned").glob("*.safetensors") for t in stored(p).values()} == {"F16"}


def test_the_same_seed_is_the_same_model(shelf, tmp_path):
    """Twice the same bytes, with another seed others."""
    for output, seed in (("a", 0), ("b", 0), ("c", 1)):
        tune(shelf, tmp_path / output, epochs=1, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first != other


def test_minutes_end_a_run(shelf, tmp_path):
    """However many epochs are allowed; the checks still come at fifths of it."""
    result = tune(shelf, tmp_path / "tuned", epochs=None, minutes=0.02)
    assert 0.5 < result.checks[-1].seconds < 10
    assert 3 <= len(result.checks) <= 6
    assert result.steps > 5


def test_texts_set_aside_are_not_learned_from():
    """2 %, at least 32 and at most 500, never more than a fifth; the two parts have no text in common."""
    for count, share in ((40, 8), (1000, 32), (10_000, 200), (100_000, 500)):
        train, held = held_out(count, 3)
        assert len(held) == share
        assert sorted([*train, *held]) == [*range(count)]
    assert (held_out(1000, 3)[1] != held_out(1000, 4)[1]).any()


class Presser(DistilWatcher):
    """Presses Ctrl-C at the first step past half of the run."""

    def __init__(self):
        self.pressed = False

    def step(self, share, *_):
        if share > 0.5 and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_the_best_so_far(shelf, tmp_path):
    """NAME.interrupted is a whole directory, better than the input; beside the state, nothing else."""
    with pytest.raises(Interrupted, match=r"tuned\.interrupted") as stop:
        tune(shelf, tmp_path / "tuned", options={"watcher": Presser()})
    assert stop.value.exit_code == 130
    left = {"tuned.interrupted", "tuned.resume"}
    assert {p.name for p in tmp_path.iterdir()} == left
    after = compared(shelf, tmp_path / "tuned.interrupted")
    assert after.error < 0.9 * compared(shelf, shelf / "bert-svd").error
    with pytest.raises(Interrupted, match="nothing is better"):
        tune(shelf, tmp_path / "ruined", learning_rate=30.0, options={"watcher": Presser()})
    assert {p.name for p in tmp_path.iterdir()} == left | {"ruined.resume"}


def test_distil_prints_before_and_after(shelf, tmp_path):
    """A line a check on stderr, a table on stdout; JSON is one object with all checks; -q is silent."""
    args = ("distil", shelf / "bert-svd", "--teacher", shelf / "bert", "--texts", shelf / "train.txt")
    options = ("--epochs", 2, "--learning-rate", "3e-3", "--batch-size", 16, "--max-length", 12, "--seed", 1)
    done = succeed(*args, *options, "-o", tmp_path / "one")
    found = json.loads(succeed(*args, *options, "-o", tmp_path / "two", "--json").stdout)
    for likeness in (found["before"], found["after"]):
        assert f"{likeness['cosine']:.4f}" in done.stdout
        assert f"{likeness['neighbours']:.1%}" in done.stdout
    assert f"wrote {tmp_path / 'one'}" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("step")]
    assert len(lines) == len(found["checks"])
    assert "untrained" in lines[0]
    assert max(map(len, lines)) < 80  # columns, which most terminals have
    assert (found["train"], found["mixture"]) == ("first", 0.5)
    assert found["learning_rate"] == 3e-3
    quiet = run(*args, *options, "-o", tmp_path / "three", "-q")
    assert (quiet.exit_code, quiet.output) == (0, "")


# ---- refusals


def test_bad_input_is_refused_in_a_line(shelf, tmp_path):
    """Each with the remedy, and nothing is left."""
    few, nothing = tmp_path / "few.txt", tmp_path / "nothing.txt"
    few.write_text("w1\nw2\n")
    nothing.write_text("\n \n")
    small, teacher, texts = (
        shelf / "bert-svd",
        ("--teacher", shelf / "bert"),
        ("--texts", shelf / "train.txt"),
    )
    file = small / "model.safetensors"
    absent = tmp_path / "absent"
    refused = [
        (2, "not a Hugging Face directory", small, ("--teacher", shelf), texts),
        (2, "not a Hugging Face directory", file, teacher, texts),
        (2, "does not exist", small, teacher, ("--texts", absent)),
        (3, "holds 2 distinct texts", small, teacher, ("--texts", few)),
        (3, "holds 0 distinct texts", small, teacher, ("--texts", nothing)),
        (2, "the teacher", small, ("--teacher", shelf / "gpt2"), texts),
    ]
    for code, says, path, *more in refused:
        args = [one for pair in more for one in pair]
        assert_refused(tmp_path, "evaluate", path, *args, code=code, says=says)
        assert_refused(tmp_path, "distil", path, *args, "-o", tmp_path / "out", code=code, says=says)
    distil = ("distil", small, *teacher, *texts, "-o", tmp_path / "out")
    for says, *options in (
        ("learning_rate -1.0", "--learning-rate", "-1"),
        ("learning_rate nan", "--learning-rate", "nan"),
        ("minutes 0.0", "--minutes", "0"),
        ("mixture 1.5", "--mixture", "1.5"),
        ("mixture nan", "--mixture", "nan"),
    ):
        assert_refused(tmp_path, *distil, *options, code=2, says=says)
    assert_refused(tmp_path, "distil", shelf / "bert", *teacher, *texts, "-o", tmp_path / "out", code=2,
                   says="holds no compressed table")  # fmt: skip
    assert_refused(tmp_path, "distil", small, *teacher, *texts, "-o", small, code=2, says="the input itself")


def test_models_that_cannot_be_built_are_refused(shelf, tmp_path):
    """Code of their own, an encoder with a decoder, no tokenizer, tokens without rows, lacking weights."""

    def changed(name, **config):
        path = tmp_path / name
        path.mkdir()
        for file in (shelf / "bert-svd").iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        found = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**found, **config}))
        return path

    def refused(path, code, says):
        args = ("--teacher", shelf / "bert", "--texts", shelf / "test.txt")
        assert_refused(tmp_path, "evaluate", path, *args, code=code, says=says)

    refused(changed("own", architectures=["MyOwnModel"]), 2, "has no architecture MyOwnModel")
    refused(changed("other", architectures=["BertForMaskedLM"]), 2, "missing from the file")
    refused(changed("unknown", model_type="nonsense"), 3, "transformers cannot load it")
    code = changed("code", model_type="nonsense", auto_map={"AutoConfig": "code.Config"})
    (code / "code.py").write_text("raise SystemExit('the code of a directory was run')")
    refused(code, 3, "transformers cannot load it")
    refused(changed("decoder", is_encoder_decoder=True), 2, "encoder-decoder")
    bare = changed("bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    refused(bare, 2, "has no tokenizer")
    beyond = changed("beyond")
    text = (beyond / "tokenizer.json").read_text()
    (beyond / "tokenizer.json").write_text(text.replace('"w5": 9,', '"w5": 5000,'))
    refused(beyond, 3, "token 5,000")


def test_options_of_classifiers_and_teachers_are_told_apart(shelf):
    """Each with what is wrong, in click's words."""
    small, texts = shelf / "bert-svd", shelf / "test.txt"
    teacher = ("--teacher", shelf / "bert")
    for says, *args in (
        ("Missing argument 'TEXTS'", small),
        ("Missing argument 'TEXTS'", small, *teacher),
        ("--texts is for --teacher", small, "--texts", texts),
        ("one file of texts", small, texts, "--texts", texts, *teacher),
        ("--label-column is for classifiers", small, texts, *teacher, "--label-column", "x"),
        ("--model is for classifiers", small, texts, *teacher, "--model", "a:b"),
    ):
        done = run("evaluate", *args)
        assert done.exit_code == 2
        assert says in done.stderr


def test_without_transformers_the_extra_is_named(shelf, monkeypatch):
    """Nothing else is imported in its place."""
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with refused(UsageError, "'embcompress[transformers]'"):
        embcompress.compare(shelf / "bert-svd", shelf / "bert", shelf / "test.txt")


def test_recipes_refuse_what_cannot_be():
    """Each with the value."""
    for wrong in ({"train": "some"}, {"epochs": 0}, {"batch_size": 0}, {"max_length": 1}, {"seed": -1}):
        with refused(UsageError, str(next(iter(wrong.values())))):
            DistilRecipe(**wrong)


def test_tied_heads_train_with_the_factors(shelf):
    """A language model's head shares its factors: one parameter under both names, its bias left alone."""
    student = open_pretrained(shelf / "gpt2-svd")
    named = choose_trained(student, "factors")
    assert {*named} == {f"{n}.{i}.weight" for n in (GPT2, "lm_head") for i in (0, 1)}
    assert named[f"{GPT2}.0.weight"] is named["lm_head.0.weight"]


def test_padding_changes_nothing(shelf):
    """Hidden states of a text do not depend on the texts beside it, so that batches may be of any kind."""
    pair = [open_pretrained(shelf / name) for name in ("bert-svd", "bert")]
    data = encoded(pair[0], (shelf / "test.txt").read_text().splitlines(), 16)
    alone = [measure(*pair, data.take(np.array([i])), runtime("cpu")).likeness for i in range(6)]
    together = measure(*pair, data.take(np.arange(6)), runtime("cpu")).likeness
    assert together.cosine == pytest.approx(np.mean([one.cosine for one in alone]), abs=1e-6)
    other = measure(*pair, replace(data, padding=7).take(np.arange(6)), runtime("cpu")).likeness
    assert other.cosine == pytest.approx(together.cosine, abs=1e-6)
