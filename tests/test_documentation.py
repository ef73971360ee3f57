"""All that README, guides and reference show is run here, and what they say was printed is compared.

A page is played from top to bottom in a folder of its own: each ``sh`` fence line by line, all ``python``
fences in one namespace. A ``text`` fence is what the fence above it prints: its last command, or its code.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from helpers import distilling, fasttext_models, onnx_models
from helpers.sequence_models import bert as classifier_of
from helpers.static_models import encoded, save_static, texts
from safetensors.torch import save_model
from torch import nn

import embcompress
from embcompress.cli import cli

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *EXAMPLES.glob("guides/*.md"), *EXAMPLES.glob("reference/*.md"))
}
OTHER_PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*ROOT.glob("*.md"), *EXAMPLES.rglob("*.md"))
    if path.relative_to(ROOT).as_posix() not in PAGES
}
PLAYED = set()
"""Pages that a test below plays."""

COMPUTED = {"evaluate", "compress"}
"""Commands whose figures come from networks, and differ a little between processors."""

pytestmark = pytest.mark.usefixtures("registered")


class Fence(NamedTuple):
    """A fenced block.

    Attributes:
        language: what is written behind its opening, ``sh``, ``python`` or ``text``.
        text: its lines.
    """

    language: str
    text: str


def fences(text):
    """The fenced blocks of a page; opening and closing fences alternate."""
    parts = re.split(r"^ *```(\w*)\n", text, flags=re.MULTILINE)[1:]
    opened = zip(parts[::4], parts[1::4], parts[2::4], strict=True)
    found = []
    for language, block, closing in opened:
        assert closing == "", f"a fence is not closed before {closing!r}"
        found.append(Fence(language, block))
    return found


def plays(name):
    """Hand a test the name of the page that it plays."""
    PLAYED.add(name)
    return pytest.mark.parametrize("page", [name], ids=[Path(name).stem])


def play(page, **names):
    """Run a page in the working directory.

    Args:
        page: its name.
        names: that its Python code finds defined.

    Returns:
        The names that its Python code leaves, and what all commands and all pieces of Python code print.
    """
    outputs = []
    for fence in fences(PAGES[page]):
        if fence.language == "sh":
            outputs += [(line, run(line)) for line in fence.text.replace("\\\n", "").splitlines()]
        elif fence.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(fence.text, names)
            outputs.append(("", printed.getvalue()))
        else:
            compare(*outputs[-1], fence.text)
    return names, [printed for _, printed in outputs]


def run(line):
    """What a line of a shell prints; installing and making are not done, but what they name is looked up."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.fullmatch(r"install \.(?:\[([\w,]+)\])?", " ".join(arguments))
        assert named, line
        assert {*(named[1] or "").split(",")} <= {"", *extras}, line
        return ""
    if program == "make":
        (target,) = arguments
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        return ""
    assert program == "embcompress", line
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def compare(line, printed, shown):
    """Assert that a command, or code, has printed what is shown, but for blanks at the ends of lines."""
    lines = [text.rstrip() for text in printed.splitlines()]
    if not COMPUTED & {*shlex.split(line)}:
        assert lines == shown.splitlines()
        return
    number = re.compile(r"(?<!\S)[\d.]+(?=%?(?!\S))")  # one that stands alone
    assert [number.sub("#", text).split() for text in lines] == [
        number.sub("#", text).split() for text in shown.splitlines()
    ]
    found, expected = ([float(each) for each in number.findall(text)] for text in (printed, shown))
    assert found == pytest.approx(expected, rel=0.02, abs=0.001)


def intents(**rows):
    """The first so many rows of parts of the intents as CSV files, by name of the file."""
    for name, count in rows.items():
        part = "train" if name == "reviews" else name
        lines = (EXAMPLES / "data" / f"intents_{part}.csv").read_text().splitlines()
        Path(f"{name}.csv").write_text("\n".join(lines[: count + 1]) + "\n")


def own_module():
    """A module of the user's own with a table that a classifier could have."""
    torch.manual_seed(0)
    return nn.ModuleDict({"embedding": nn.Embedding(500, 32), "out": nn.Linear(32, 2)})


def directory(path, build, tokenizer=distilling.tokenizer):
    """A small model of transformers with its tokenizer."""
    Path(path).mkdir()
    size = tokenizer(path)
    torch.manual_seed(0)
    build(size).save_pretrained(path)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@plays("README.md")
def test_readme(page, minilm):
    """The real MiniLM is ten times smaller in its table, keeps what is shown, and loads."""
    Path("model").symlink_to(minilm)
    Path("examples").symlink_to(EXAMPLES)
    save_model(own_module(), "model.safetensors")
    torch.save(own_module().state_dict(), "own.pt")
    embcompress.factorize("own.pt", ratio=0.9, output="small.pt")
    names, _ = play(page, model=own_module())
    assert names["vectors"].shape == (1, 384)
    assert isinstance(names["model"]["embedding"], embcompress.FactorizedEmbedding)


@plays("examples/guides/sentence-encoder.md")
def test_sentence_encoder(page, minilm):
    """The real MiniLM, weighted by texts; report prints what is shown, and transformers loads the result."""
    Path("model").symlink_to(minilm)
    intents(test=30)
    Path("test.csv").rename("texts.csv")
    names, outputs = play(page)
    assert "weighted error" in outputs[1]
    assert embcompress.report("small").compressed[0].weighted_error < 0.12
    assert names["hidden"].shape == (1, 5, 384)
    assert embcompress.verify("copy").is_right
    (table,) = embcompress.report("dense").tables
    assert table.shape == (30522, 384)


@plays("examples/guides/static-models.md")
def test_static_models(page):
    """A directory of model2vec; what is loaded, saved and expanded has the same vectors."""
    save_static(Path("model"), "model2vec")
    Path("texts.csv").write_text("\n".join(["text", *texts()]) + "\n")
    names, outputs = play(page)
    assert "weighted error" in outputs[1]
    assert names["vectors"].shape == (1, 32)
    np.testing.assert_array_equal(encoded(Path("copy"), texts()), encoded(Path("small"), texts()))
    np.testing.assert_allclose(encoded(Path("dense"), texts()), encoded(Path("small"), texts()), atol=1e-6)


@plays("examples/guides/language-model.md")
def test_language_model(page):
    """A tied GPT-2 gives logits, evaluate its perplexity; transformers alone loads DeBERTa with factors."""
    directory("model", distilling.gpt2)
    Path("texts.txt").write_text("\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(80)))
    config = transformers.DebertaV2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        relative_attention=True, position_biased_input=False, type_vocab_size=0, pos_att_type=["p2c"],
    )  # fmt: skip
    transformers.DebertaV2Model(config).save_pretrained("deberta")
    names, outputs = play(page)
    assert "perplexity" in outputs[1]
    assert names["logits"].shape[-1] == len(distilling.WORDS) + 4
    assert 0 < names["model"].config.embedding_size < 32


@plays("examples/guides/text-classifier.md")
def test_text_classifier(page):
    """All intents as shown, a part of them step by step, a small BERT, a module of the user's own."""
    Path("examples").symlink_to(EXAMPLES)
    shutil.copy(EXAMPLES / "text_cnn.py", ".")
    intents(reviews=200, dev=40, test=700)
    Path("glove.txt").write_text("".join(f"{word} {'0.1 -0.2 ' * 16}\n" for word in ("play", "the")))
    lines = (EXAMPLES / "data" / "intents_train.csv").read_text().splitlines()[1:]
    labels = sorted({line.rpartition(",")[2] for line in lines})
    directory("classifier", lambda size: classifier_of(size, labels))
    optimizer = torch.optim.SGD(nn.Linear(8, 2).parameters(), lr=0.1)
    names, outputs = play(page, optimizer=optimizer, loader=range(6))
    assert "pretrained vectors filled 2 rows" in outputs[3]
    for text in (outputs[5], outputs[6], outputs[8], outputs[11], outputs[12]):
        assert float(re.search(r"accuracy ([\d.]+)%", text)[1]) > 0
    assert names["schedule"].last_epoch == 6


@plays("examples/guides/pytorch-files.md")
def test_pytorch_files(page):
    """A training checkpoint with settings and an average, and a whole module."""
    state = own_module().state_dict()
    average = {name: 0.9 * tensor for name, tensor in state.items()}
    settings = {"args": argparse.Namespace(lr=0.001), "epoch": 3}
    torch.save({"model": state, "ema": average, **settings}, "checkpoint.pt")
    torch.save(own_module(), "module.pt")
    names, _ = play(page, model=own_module())
    assert not isinstance(names["model"]["embedding"], nn.Embedding)
    assert names["checkpoint"]["ema"]["embedding.weight"].shape == (500, 32)


@plays("examples/guides/word-vectors.md")
def test_word_vectors(page):
    """Small vectors are compressed, start a classifier, and are text again; NumPy reads factors."""
    intents(reviews=200)
    words = ["play", "the", "weather", *(f"token{i}" for i in range(2000))]
    rows = torch.randn(len(words), 16, generator=torch.Generator().manual_seed(0)).tolist()
    texts = (f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in zip(words, rows, strict=True))
    Path("vectors.txt").write_text("".join(texts))
    embcompress.factorize("vectors.txt", rank=15, output="factors.safetensors")
    buckets = dict(buckets=50, minn=3, maxn=6)
    model = fasttext_models.model(words, np.array([*rows, *rows[:50]], np.float32), **buckets)
    Path("fasttext.bin").write_bytes(model.bytes())
    embcompress.factorize("fasttext.bin", rank=15, output="fasttext.safetensors")
    names, outputs = play(page)
    assert names["found"].tokens == ("weather", "weatherlike")
    assert "pretrained vectors filled 3 rows" in outputs[3]
    assert [line.split()[0] for line in Path("again.txt").read_text().splitlines()] == words
    assert names["tokens"] == words
    assert names["vectors"].shape == (len(words), 16)


@plays("examples/guides/onnx.md")
def test_onnx(page):
    """onnxruntime alone runs what factorize and expand write."""
    onnx_models.saved(Path("model.onnx"), onnx_models.model())
    play(page)
    ids = np.arange(6).reshape(1, 6)
    first, *others = (
        onnx_models.outputs(Path(f"{name}.onnx"), ids=ids)[0] for name in ("model", "small", "dense")
    )
    for other in others:
        np.testing.assert_allclose(other, first, atol=0.1)


@plays("examples/guides/recovery.md")
def test_recovery(page):
    """A small BERT is compared with its original, and learns from it."""
    directory("original", distilling.bert)
    Path("texts.txt").write_text("\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(80)))
    _, outputs = play(page)
    assert "cosine" in outputs[1]
    assert json.loads(outputs[3])["cosine"] > 0.5


@plays("examples/reference/command-line.md")
def test_command_line(page, minilm):
    """The plans that are shown can be reached, and verify prints what is shown for the real MiniLM."""
    Path("model").symlink_to(minilm)
    save_model(own_module(), "model.safetensors")
    Path("counts.csv").write_text("".join(f"{token},{500 - token}\n" for token in range(500)))
    _, outputs = play(page)
    assert "dry run" in outputs[0]
    assert Path("small.safetensors").stat().st_size < 60_000
    assert embcompress.report("weighted.safetensors").compressed[0].weighted_error is not None


@plays("examples/reference/python.md")
def test_python(page):
    """Functions and load on a module of the user's own; a classifier retrained and asked."""
    save_model(own_module(), "model.safetensors")
    intents(reviews=200)
    new = embcompress.NewClassifier(arch="dan", dimension=16, hidden=(16,))
    embcompress.train("reviews.csv", new=new, recipe=embcompress.Recipe(epochs=1), output="model.pt")
    embcompress.factorize("model.pt", ratio=0.5, output="small.pt")
    names, outputs = play(page, model=own_module())
    assert isinstance(names["model"]["embedding"], embcompress.FactorizedEmbedding)
    assert outputs[0].startswith("3 ")


# ---- pages as such


@pytest.mark.parametrize("page", PAGES)
def test_all_fences_are_run(page):
    """A page with fences has a test above; a fence is code, or what the code right before it prints."""
    found = fences(PAGES[page])
    assert {fence.language for fence in found} <= {"sh", "python", "text"}
    assert page in PLAYED or not found, "write a test that plays this page"
    for before, fence in pairwise([Fence("", ""), *found]):
        assert fence.language != "text" or before.language in {"sh", "python"}, fence.text


def test_the_readme_is_short():
    """What takes longer to read belongs into a guide; the picture loads at once."""
    assert len((ROOT / "README.md").read_bytes()) <= 8_000
    assert (EXAMPLES / "reference" / "error-over-ratio.png").stat().st_size < 200_000


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_links_lead_somewhere(page):
    """Files and headings that a page links to are there."""
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code({**PAGES, **OTHER_PAGES}[page])):
        if re.match(r"https?://", link):
            continue
        name, _, heading = link.partition("#")
        target = folder / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if heading:
            assert heading in headings(target.read_text()), f"{page}: {link}"


def without_code(text):
    """A page without its fences."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(text):
    """What the headings of a page are called in links, by the rules of GitHub."""
    found = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


def test_every_page_is_linked_from_the_readme():
    """Guides and reference are found from the first page."""
    for page in PAGES.keys() - {"README.md"}:
        assert f"]({page})" in PAGES["README.md"], page


def test_every_option_is_documented():
    """An option that joins a command must be explained on a page."""
    text = "\n".join(PAGES.values())
    for command in cli.commands.values():
        for option in (o for o in command.params if isinstance(o, click.Option)):
            assert any(re.search(rf"{flag}(?![\w-])", text) for flag in option.opts), (
                f"{command.name} {option.opts}"
            )


def test_every_exit_code_is_documented():
    """So must a new exit code."""
    codes = {error.exit_code for error in vars(embcompress.errors).values() if hasattr(error, "exit_code")}
    assert codes == {1, 2, 3, 4, 130}
    (paragraph,) = re.findall(r"Exit codes.*?\n\n", PAGES["examples/reference/command-line.md"], re.DOTALL)
    for code in (0, *codes):
        assert re.search(rf"\b{code} \w+", paragraph)


def test_nothing_is_left_to_fill_in():
    """No figure of a page is a placeholder."""
    for page, text in PAGES.items():
        assert "@@" not in text, page


def test_make_targets_exist():
    """Each make target that a page names is in the Makefile; the README has the two that developers need."""
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in PAGES.values() for target in re.findall(r"`make\s([\w-]+)`", text)}
    assert targets >= {"bench", "fuzz", "test-slow"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert re.search(r"^make demo\b", PAGES["README.md"], re.MULTILINE)
    assert re.search(r"^make test\b", PAGES["README.md"], re.MULTILINE)
