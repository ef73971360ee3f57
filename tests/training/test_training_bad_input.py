"""Bad input to train, finetune, evaluate and compress: one line, an exit code, nothing lost or left."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import assert_one_line, assert_refused, contents, run, succeed
from helpers.refusals import assert_says
from helpers.weather import LEFT, QUICK, STILL, SUFFIXES, TABLE, tensors, train, weather

from embcompress.workflows import compress as compressing

COMMANDS = ("train", "finetune", "compress", "evaluate")
WRITING = ("train", "finetune", "compress")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Texts, and a dense DAN of them in each format."""
    folder = tmp_path_factory.mktemp("shelf")
    weather(folder / "train.csv")
    for suffix in SUFFIXES:
        train(folder / f"dan{suffix}", folder / "train.csv")
    return folder


@pytest.fixture
def good(shelf):
    """Valid texts."""
    return shelf / "train.csv"


@pytest.fixture(params=SUFFIXES)
def dense(request, shelf, tmp_path):
    """A copy of the DAN, alone in its folder."""
    return Path(shutil.copy(shelf / f"dan{request.param}", tmp_path / f"model{request.param}"))


@pytest.fixture
def model(shelf, tmp_path):
    """A copy of the DAN, for tests that do not depend on its format."""
    return Path(shutil.copy(shelf / "dan.pt", tmp_path / "model.pt"))


def call(command, model, texts, *more):
    """A command on these files; its output would go next to ``model``."""
    output = ("-o", model.with_stem("out"))
    small = ("--arch", "dan", "--hidden", "4", *QUICK)
    return {
        "train": ("train", texts, *output, *small, *more),
        "finetune": ("finetune", model, texts, *output, *QUICK, *more),
        "compress": ("compress", model, texts, *output, "--rank", "2", *QUICK, *more),
        "evaluate": ("evaluate", model, texts, *more),
    }[command]


# ---- texts: rows 41 to 45

GOOD = b"text,label\nsnow,cold\nsun,hot\n"
TEXTS = {
    "empty": (b"", 3, "is empty, expected a header"),
    "header only": (b"text,label\n", 3, "holds no row"),
    "UTF-16": (GOOD.decode().encode("utf-16"), 3, "pass --encoding utf-16"),
    "NUL": (b"text,label\nsn\0w,cold\n", 3, "line 2: holds a NUL"),
    "bad byte": ("text,label\nschön,cold\n".encode("latin-1"), 3, "line 2: byte 0xF6"),
    "misspelt column": (b"text,lable\nsnow,cold\n", 2, "did you mean 'lable'? name it with --label-column"),
    "padded column": (b"text, label\nsnow,cold\n", 2, "differs by spaces or capitals only"),
    "other delimiter": (GOOD.replace(b",", b";"), 2, "pass --delimiter ';'"),
    "column twice": (b"text,label,label\nsnow,cold,cold\n", 3, "appears 2 times in the header"),
    "blank label": (b"text,label\nsnow,cold\nsun, \n", 3, "line 3: a blank label"),
    "ragged": (b"text,label\nsnow,cold\nsun\n", 3, "line 3: 1 field, expected 2"),
    "open quote": (b'text,label\n"snow,cold\nsun,hot\n', 3, "the quote that opens here is still open"),
    "zip": (b"PK\x03\x04" + bytes(60), 3, "a zip archive"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", 3, "git lfs pull"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>\n", 2, "no column 'text'"),
}


@pytest.mark.parametrize("fault", TEXTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_rows_41_to_45_faulty_texts(model, command, fault):
    """Each command names the file and its fault, and changes nothing."""
    content, code, says = TEXTS[fault]
    texts = model.with_name("texts.csv")
    texts.write_bytes(content)
    args = call(command, model, texts)
    assert_refused(model.parent, *args, code=code, says=f"{texts}: ")
    assert_says(run(*args).stderr, says)


@pytest.mark.parametrize("fault", ["empty", "blank label", "other delimiter"])
@pytest.mark.parametrize(
    ("command", "option"), [*((command, "--dev") for command in WRITING), ("compress", "--test")]
)
def test_faulty_dev_and_test_texts(model, good, command, option, fault):
    """They are read before anything is trained or written."""
    content, code, says = TEXTS[fault]
    texts = model.with_name("texts.csv")
    texts.write_bytes(content)
    args = call(command, model, good, option, texts)
    assert_refused(model.parent, *args, code=code, says=f"{texts}: ")
    assert_says(run(*args).stderr, says)


def test_row_44_labels_that_were_not_learned(model, good):
    """The message names a label that the classifier does not know, and its line, in any of the files."""
    strange = model.with_name("strange.csv")
    strange.write_text("text,label\nsnow,cold\nsun,Hot\n")
    says = f"{strange}: line 3: label 'Hot' is not among the 3 known: 'cold', 'hot', 'wet'; 'hot' differs by"
    for command in ("finetune", "compress", "evaluate"):
        assert_refused(model.parent, *call(command, model, strange), code=3, says=says)
    for command in WRITING:
        assert_refused(model.parent, *call(command, model, good, "--dev", strange), code=3, says=says)
    assert_refused(model.parent, *call("compress", model, good, "--test", strange), code=3, says=says)


def test_row_44_one_label_only(model):
    """Nothing can be learned from it; a classifier that knows more can be measured on it."""
    one = model.with_name("one.csv")
    one.write_text("text,label\nsnow,cold\nice,cold\n")
    assert_refused(model.parent, *call("train", model, one), code=3, says="is the only label (rows: 2)")
    succeed(*call("evaluate", model, one))


def test_texts_of_which_none_can_be_held_out(model):
    """Two rows of two labels leave no dev texts."""
    two = model.with_name("two.csv")
    two.write_bytes(GOOD)
    assert_refused(model.parent, *call("train", model, two), code=2, says="no label has 2 texts")


@pytest.mark.parametrize("command", COMMANDS)
def test_texts_that_are_not_there(model, command):
    """A missing file and a directory are usage errors."""
    absent = model.with_name("absent.csv")
    assert_refused(model.parent, *call(command, model, absent), code=2, says=f"{absent}: does not exist")
    absent.mkdir()
    assert_refused(model.parent, *call(command, model, absent), code=2, says="is not a regular file")


# ---- checkpoints


def truncated(path):
    path.write_bytes(path.read_bytes()[:-2000])


def without_record(path):
    torch.save(tensors(path), path)


def of_a_newer_layout(path):
    saved = torch.load(path, weights_only=True)
    saved["classifier"]["layout"] = 99
    torch.save(saved, path)


def short_of_a_row(path):
    saved = torch.load(path, weights_only=True)
    saved["state_dict"][TABLE] = saved["state_dict"][TABLE][:-1].clone()
    torch.save(saved, path)


def of_an_own_module(path):
    saved = torch.load(path, weights_only=True)
    saved["classifier"]["architecture"] |= {"name": "module", "factory": "os:abort"}
    torch.save(saved, path)


def that_calls(path):
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


CHECKPOINTS = {
    "absent": (Path.unlink, 2, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), 3, ""),
    "html": (lambda path: path.write_text("<!DOCTYPE html><html></html>"), 3, ""),
    "pointer": (lambda path: path.write_bytes(TEXTS["pointer"][0]), 3, "git lfs pull"),
    "truncated": (truncated, 3, "download or save it again"),
    "a call": (that_calls, 3, ""),
    "no record": (without_record, 2, "holds no vocabulary, labels and architecture"),
    "newer": (of_a_newer_layout, 3, "layout 99, this version reads 1"),
    "row 46": (short_of_a_row, 3, "the table has rows up to"),
    "own module": (of_an_own_module, 2, "if you trust that code, pass --model os:abort"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
@pytest.mark.parametrize("command", ["finetune", "compress", "evaluate"])
def test_faulty_checkpoints(monkeypatch, model, good, command, fault):
    """Each command names the file and its fault; no code in it is run, and nothing is changed."""
    monkeypatch.chdir(model.parent)
    spoil, code, says = CHECKPOINTS[fault]
    spoil(model)
    args = call(command, model, good)
    assert_refused(model.parent, *args, code=code, says="" if fault == "own module" else f"{model}: ")
    assert_says(run(*args).stderr, says)


def test_a_compressed_classifier_is_not_compressed_again(model, good):
    """compress needs the dense one; finetune accepts it."""
    small = model.with_stem("small")
    succeed("factorize", model, "--rank", "3", "-o", small)
    assert_refused(model.parent, *call("compress", small, good), code=2, says="compressed already")
    succeed(*call("finetune", small, good))


def test_only_factors_of_a_dense_classifier(model, good):
    """There are no factors to train."""
    args = call("finetune", model, good, "--only-factors")
    assert_refused(model.parent, *args, code=2, says="the model has none; factorize it first")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--rank", "2", "--ratio", "0.5"), 2, "rank, ratio; give exactly one of"),
        ((), 2, "targets given: none"),
        (("--rank", "9"), 4, "break-even rank"),
        (("--ratio", "0.999"), 4, "takes at least"),
        (("--rank", "2", "--key", "nothing"), 2, "no such tensor"),
        (("--rank", "2", "--dtype", "int3"), 2, "int3"),
        (("--rank", "2", "--dev-share", "1"), 2, "dev share 1.0"),
        (("--rank", "2", "--learning-rate", "-1"), 2, "learning rate -1.0"),
        (("--rank", "2", "--clip", "0"), 2, "clip 0.0"),
        (("--rank", "2", "--schedule", "calr", "--schedule-option", "window=0"), 2, "window is 0"),
        (
            ("--rank", "2", "--schedule", "calr", "--schedule-option", "width=3"),
            2,
            "no option 'width'; choose from decay",
        ),
        (("--rank", "2", "--plot", "x.jpg"), 2, "use .png, .svg, .pdf"),
        (("--rank", "2", "--resume"), 2, "there is no unfinished run"),
    ],
)
def test_requests_that_cannot_be_met(model, good, options, code, says):
    """Each has its exit code and a message with the limit; nothing is written."""
    args = ("compress", model, good, "-o", model.with_stem("out"), *options)
    assert_refused(model.parent, *args, code=code, says=says)


# ---- what is in the way


@pytest.mark.parametrize("command", WRITING)
def test_an_existing_output_is_kept_without_force(dense, good, command):
    """A second run is refused until --force is given; then the output is replaced."""
    place = dense.with_stem("out")
    place.write_bytes(b"precious")
    args = call(command, dense, good)
    assert_refused(dense.parent, *args, code=2, says=f"{place}: exists already; pass --force")
    succeed(*args, "--force")
    assert {*tensors(place)} & {TABLE, LEFT}


@pytest.mark.parametrize("command", WRITING)
def test_an_existing_history_or_plot_is_kept_without_force(model, good, command):
    """They may be the only ones of a long run, so they are not replaced."""
    for option, name in (("--history", "run.jsonl"), ("--plot", "run.png")):
        model.with_name(name).write_text("precious")
        args = call(command, model, good, option, model.with_name(name))
        assert_refused(model.parent, *args, code=2, says=f"{name}: exists already; pass --force")
    succeed(*args, "--force")
    assert model.with_name("run.png").read_bytes().startswith(b"\x89PNG")


def test_an_input_is_never_the_output(model, good):
    """Checkpoint, texts, dev and test texts are not overwritten, with or without --force."""
    texts, dev = (Path(shutil.copy(good, model.with_name(f"{name}.pt"))) for name in ("texts", "dev"))
    cases = [
        *(("train", texts, "--dev", dev, "-o", place) for place in (texts, dev)),
        *(("finetune", model, texts, "--dev", dev, "-o", place) for place in (model, texts, dev)),
        *(("compress", model, texts, "--rank", "2", "--test", dev, "-o", p) for p in (model, texts, dev)),
    ]
    says = "is the input itself; name another output"
    for case in cases:
        assert_refused(model.parent, *case, "--force", code=2, says=says)


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.PT"])
def test_a_new_classifier_needs_the_suffix_of_a_format(good, tmp_path, name):
    """train has no input whose format it could use."""
    says = "choose from .safetensors, .pt"
    assert_refused(tmp_path, "train", good, "-o", tmp_path / name, code=2, says=says)


@pytest.mark.parametrize("command", ["finetune", "compress"])
def test_the_format_stays(dense, good, command):
    """An output named like the other format is refused."""
    place = dense.with_name("out" + {".pt": ".safetensors", ".safetensors": ".pt"}[dense.suffix])
    args = (*call(command, dense, good), "-o", place)
    assert_refused(dense.parent, *args, code=2, says=f"{place.suffix} means")


# ---- defects


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("victim", ["texts.csv", "dev.csv", "out.pt"])
def test_a_history_never_replaces_an_input_or_the_output(model, good, command, victim):
    """--force is for the output of earlier runs; otherwise the texts would be lost."""
    texts, dev = (Path(shutil.copy(good, model.with_name(name))) for name in ("texts.csv", "dev.csv"))
    more = ("--dev", dev, "--history", model.with_name(victim), "-q", "--force")
    assert_refused(model.parent, *call(command, model, texts, *more), code=2, says=victim)


@pytest.mark.parametrize(("option", "name"), [("--plot", "p.png"), ("--history", "h.jsonl")])
def test_history_and_plot_need_a_directory(model, good, option, name):
    """The error comes before the training."""
    args = call("finetune", model, good, option, model.parent / "absent" / name)
    assert_refused(model.parent, *args, code=2, says="there is no directory")


def test_vectors_are_never_the_output(model, good):
    """They are an input like the texts."""
    args = ("train", good, "--vectors", model, "-o", model, *STILL, "-q", "--force")
    assert_refused(model.parent, *args, code=2, says="is the input itself")


def test_row_33_weights_that_are_not_finite(model, good):
    """A classifier whose scores are NaN predicts nothing; its accuracy would be a wrong number."""
    saved = torch.load(model, weights_only=True)
    saved["state_dict"]["output.bias"][0] = torch.nan
    torch.save(saved, model)
    for command in ("evaluate", "finetune", "compress"):
        assert_refused(model.parent, *call(command, model, good), code=3, says="not finite")


def test_a_run_that_diverges_writes_json(model, good):
    """A loss that is NaN or infinite is null; any JSON parser reads history and result."""
    history, leap = model.with_name("h.jsonl"), ("--optimizer", "sgd", "--learning-rate", "1e30")
    done = succeed(*call("finetune", model, good, *leap, "--history", history, "--json"))

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for text in (*history.read_text().splitlines(), done.stdout):
        json.loads(text, parse_constant=refuse)


def test_compress_plans_before_it_works(monkeypatch, model, good):
    """A target that cannot be met is refused before the dense classifier is measured."""
    monkeypatch.setattr(compressing, "measure", lambda *_: pytest.fail("work before the plan"))
    for options in ((), ("--rank", "9")):
        done = run("compress", model, good, *options)
        assert done.exit_code in {2, 4}, done.exception


def test_compress_names_the_users_output(model, good):
    """Messages name the user's output, not a staging file."""
    done = run("compress", model, good, "--rank", "2", "-o", model.with_name("out.safetensors"))
    assert_one_line(done.stderr, f"Error: {model.with_name('out.safetensors')}: the output has the format")


def test_a_new_file_has_the_usual_permissions(good, tmp_path):
    """It has the permissions of the user's other new files, in both formats."""
    mask = os.umask(0o022)
    try:
        for suffix in SUFFIXES:
            train(tmp_path / f"new{suffix}", good)
            assert stat.S_IMODE((tmp_path / f"new{suffix}").stat().st_mode) == 0o644, suffix
    finally:
        os.umask(mask)


OWN = """
from torch import nn

class Wide(nn.Module):
    def __init__(self, tokens, labels, padding):
        super().__init__()
        self.embedding = nn.Embedding(tokens, labels + 1, padding_idx=padding)

    def forward(self, tokens, lengths):
        return self.embedding(tokens).sum(1)
"""


def test_a_module_with_other_scores_is_refused(monkeypatch, good, tmp_path):
    """One score more than labels would be trained, and could be predicted."""
    (tmp_path / "scoresofown.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    before = contents(tmp_path)
    done = run("train", good, "-o", "own.pt", "--model", "scoresofown:Wide", "-q")
    assert done.exit_code == 2
    assert_one_line(done.stderr, "scoresofown:Wide")
    assert contents(tmp_path) == before
