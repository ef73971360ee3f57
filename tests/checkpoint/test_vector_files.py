"""Word vectors as checkpoints: every format is compressed and expanded by the commands, good and broken."""

from __future__ import annotations

import errno
import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fasttext_models, gensim_files
from helpers.checkpoints import (
    assert_one_line,
    assert_refused,
    contents,
    directory,
    run,
    succeed,
    table,
    vectors_file,
)
from helpers.quick import quick
from helpers.refusals import refused
from helpers.registry import EVERY, target
from hypothesis import example, given, settings
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.vectors import streamed
from embcompress.checkpoint.vectors.base import Written
from embcompress.checkpoint.vectors.fasttext import FastText
from embcompress.checkpoint.vectors.gensim import Gensim
from embcompress.checkpoint.vectors.glove import GloVe
from embcompress.checkpoint.vectors.npy import Npy
from embcompress.checkpoint.vectors.registry import VECTOR_FORMATS
from embcompress.checkpoint.vectors.word2vec_binary import Word2VecBinary
from embcompress.checkpoint.vectors.word2vec_text import Word2VecText
from embcompress.data.vectors import read_vectors
from embcompress.data.vectors.words import VectorWords
from embcompress.dtypes import DTYPES

V, D = 400, 24
TOKENS = ["the", "of", "Über", "don't", "日本", "##ing", "3.5", "New_York", "U.S.", "x" * 300]
TOKENS += [f"token{i}" for i in range(V - len(TOKENS))]
MATRIX = table(V, D)
INTENTS = Path(__file__).parents[2] / "examples" / "data" / "intents_train.csv"


# ---- writers and readers, independent of those that are tested


def lines(tokens, matrix):
    return "".join(f"{t} {' '.join(map(str, row))}\n" for t, row in zip(tokens, matrix, strict=True)).encode()


def write_glove(path, tokens, matrix):
    path.write_bytes(lines(tokens, matrix))


def write_word2vec(path, tokens, matrix):
    path.write_bytes(b"%d %d\n" % matrix.shape + lines(tokens, matrix))


def write_binary(path, tokens, matrix):
    entries = (t.encode() + b" " + row.tobytes() + b"\n" for t, row in zip(tokens, matrix, strict=True))
    path.write_bytes(b"%d %d\n" % matrix.shape + b"".join(entries))


def write_npy(path, tokens, matrix):
    np.save(path, matrix)
    path.with_suffix(".vocab.txt").write_bytes("".join(f"{t}\n" for t in tokens).encode())


def read_text(path, *, header):
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert content.endswith(b"\n")
    found = content.decode().split("\n")[:-1]
    if header:
        assert found.pop(0) == f"{V} {D}"
    rows = [line.rsplit(" ", D) for line in found]
    return [row[0] for row in rows], np.array([[float(x) for x in row[1:]] for row in rows], np.float32)


def read_glove(path):
    return read_text(path, header=False)


def read_word2vec(path):
    return read_text(path, header=True)


def read_binary(path):
    data = path.read_bytes()
    head, _, data = data.partition(b"\n")
    count, columns = map(int, head.split())
    tokens, matrix = [], np.empty((count, columns), np.float32)
    for row in range(count):
        token, _, data = data.partition(b" ")
        tokens.append(token.decode())
        matrix[row] = np.frombuffer(data[: 4 * columns], "<f4")
        assert data[4 * columns : 4 * columns + 1] == b"\n"
        data = data[4 * columns + 1 :]
    assert not data
    return tokens, matrix


def read_gensim(path):
    made = gensim_files.load(path)
    assert made.key_to_index == {key: made.index_to_key.index(key) for key in made.index_to_key}
    return made.index_to_key, made.vectors


def read_fasttext(path):
    made = fasttext_models.read(path.read_bytes())
    return [word.decode() for word in made.words], made.table


def read_npy(path):
    vocabulary = path.with_suffix(".vocab.txt").read_text(encoding="utf-8")
    return vocabulary.split("\n")[:-1], np.load(path)


@dataclass(frozen=True)
class Case:
    """A format and a file of it."""

    kind: type
    name: str
    write: Callable
    read: Callable

    @property
    def suffix(self):
        return self.name[len("vectors") :]

    def make(self, folder, tokens=TOKENS, matrix=MATRIX):
        return vectors_file(folder / self.name, self.write, tokens, matrix)


CASES = [
    Case(GloVe, "vectors.txt", write_glove, read_glove),
    Case(GloVe, "vectors.txt.gz", write_glove, read_glove),
    Case(GloVe, "vectors", write_glove, read_glove),
    Case(Word2VecText, "vectors.vec", write_word2vec, read_word2vec),
    Case(Word2VecText, "vectors.w2v", write_word2vec, read_word2vec),
    Case(Word2VecBinary, "vectors.bin", write_binary, read_binary),
    Case(FastText, "vectors.bin", fasttext_models.write, read_fasttext),
    Case(Gensim, "vectors.kv", gensim_files.write, read_gensim),
    Case(Npy, "vectors.npy", write_npy, read_npy),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
GLOVE = CASES[0]


def best(matrix, rank):
    """The truncated SVD, in float64."""
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def error_of(found, matrix):
    return np.linalg.norm(found.astype(np.float64) - matrix) / np.linalg.norm(matrix.astype(np.float64))


# ---- contract


def test_every_format_is_tested():
    """A new member of the registry needs a writer and a reader here."""
    assert {case.kind for case in CASES} == {type(kind) for kind in VECTOR_FORMATS}


@every_case
def test_factorize_and_expand_give_the_best_approximation_in_the_same_format(tmp_path, case):
    """Both outputs get the right suffix by themselves, tokens keep their rows, the input its bytes."""
    path = case.make(tmp_path)
    before = contents(tmp_path)
    succeed("factorize", path, "--rank", 6)
    small = tmp_path / "vectors-svd-rank-6.safetensors"
    succeed("expand", small)
    tokens, matrix = case.read(tmp_path / f"vectors-svd-rank-6-dense{case.suffix}")
    assert tokens == TOKENS
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, best(MATRIX, 6), atol=1e-5)
    assert contents(tmp_path).items() >= before.items()
    assert len(contents(tmp_path)) == len(before) + 2 + (case.kind in (Npy, Gensim))
    with open_checkpoint(path) as opened:
        assert opened.form(dense=True).name == type(opened._kind).name == case.kind.name


@every_case
def test_a_compressed_file_is_read_without_this_package(tmp_path, case):
    """The factors have the usual names, the tokens are bytes separated by line feeds."""
    embcompress.factorize(case.make(tmp_path), rank=6, output=tmp_path / "small.safetensors")
    found = load_file(tmp_path / "small.safetensors")
    extras = {name for name in found if name.startswith(("fasttext.", "gensim."))}
    assert set(found) == {"vectors.0.weight", "vectors.1.weight", "vectors.vocabulary", *extras}
    assert bool(extras) == (case.kind in (FastText, Gensim))
    assert found["vectors.vocabulary"].dtype == np.uint8
    assert found["vectors.vocabulary"].tobytes().decode().split("\n") == TOKENS
    product = found["vectors.0.weight"] @ found["vectors.1.weight"].T
    np.testing.assert_allclose(product, best(MATRIX, 6), atol=1e-5)
    with safe_open(tmp_path / "small.safetensors", framework="numpy") as file:
        record = json.loads(file.metadata()["embcompress.vectors"])
    assert record == {"format": case.kind.name, "suffix": case.suffix}


@every_case
def test_integers_lose_what_they_say_they_lose(tmp_path, case):
    """The error of the expanded file is the measured one, and verify accepts it."""
    path, small = case.make(tmp_path), tmp_path / "small.safetensors"
    result = embcompress.factorize(path, method="int8", ratio=0.5, output=small)
    _, matrix = case.read(embcompress.expand(small).output)
    assert error_of(matrix, MATRIX) == pytest.approx(result.tables[0].relative_error, rel=1e-4)
    assert error_of(matrix, MATRIX) < 0.01
    (again,) = embcompress.report(small, against=path).compressed
    assert again.measured_error == pytest.approx(again.recorded_error, rel=1e-5)
    assert embcompress.verify(small, against=path).is_right


@pytest.mark.parametrize("method", quick(EVERY, "svd", "int3", "pq", "screen+int4"))
def test_every_method_is_stored_and_expanded(tmp_path, method):
    """The text holds what the parts decode to, to the last bit of a float32."""
    matrix, tokens = table(800, 32), [f"t{i}" for i in range(800)]
    GLOVE.write(tmp_path / "v.txt", tokens, matrix)
    small = embcompress.factorize(tmp_path / "v.txt", method=method, **target(method)).output
    succeed("expand", small, "-o", tmp_path / "back.txt")
    found = read_vectors(tmp_path / "back.txt")
    assert found.tokens == tuple(tokens)
    np.testing.assert_array_equal(found.matrix, read_vectors(small).matrix)


@every_case
def test_report_tells_what_factorize_then_does(tmp_path, case):
    """Ranks, errors, and the size of the .safetensors file, whatever the size of the text."""
    path = case.make(tmp_path)
    report = embcompress.report(path)
    (dense,) = report.tables
    assert (report.format, report.size) == ("word vectors", sum(f.stat().st_size for f in tmp_path.iterdir()))
    assert (dense.name, dense.shape, dense.dtype, dense.heads) == ("vectors.weight", (V, D), "float32", 0)
    assert 0.8 < dense.share < 1
    for option in dense.options[:2]:
        result = embcompress.factorize(path, ratio=option.ratio)
        assert result.tables[0].rank == option.rank
        assert result.tables[0].relative_error == pytest.approx(option.relative_error, rel=1e-4)
        assert result.output.stat().st_size == pytest.approx(option.model_bytes, abs=1500)
        assert result.output.stat().st_size == result.size_after
    small = json.loads(succeed("report", result.output, "--against", path, "--json").stdout)
    assert small["format"] == "word vectors"


@every_case
def test_training_reads_the_compressed_vectors(tmp_path, case):
    """It uses their own vocabulary, whatever tokenizer is next to them."""
    path = case.make(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    small = embcompress.factorize(path, rank=6).output
    found = read_vectors(small, ["the", "日本", "absent"])
    assert found.tokens == ("the", "日本")
    np.testing.assert_allclose(found.matrix, best(MATRIX, 6)[[0, 4]], atol=1e-5)
    assert read_vectors(path, ["the", "日本"]).matrix.tobytes() == MATRIX[[0, 4]].tobytes()


@every_case
def test_max_size_bounds_the_file(tmp_path, case):
    """The limit includes tokens and record."""
    result = embcompress.factorize(case.make(tmp_path), max_size=24_000)
    assert 22_000 < result.output.stat().st_size <= 24_000


@every_case
def test_a_dry_run_writes_nothing(tmp_path, case):
    """The plan is complete, and names the output."""
    path = case.make(tmp_path)
    before = contents(tmp_path)
    told = json.loads(succeed("factorize", path, "--ratio", 0.5, "--dry-run", "--json").stdout)
    assert contents(tmp_path) == before
    assert told["output"].endswith("vectors-svd-ratio-0.5.safetensors")
    assert told["tables"][0]["rank"] == 11


@every_case
def test_outputs_are_the_same_bytes_again(tmp_path, case):
    """Also with gzip, which could store name and time."""
    path = case.make(tmp_path)
    found = []
    for name in "ab":
        small = embcompress.factorize(path, rank=3, output=tmp_path / f"{name}.safetensors").output
        dense = embcompress.expand(small, output=tmp_path / f"{name}{case.suffix}").output
        found.append((small.read_bytes(), dense.read_bytes()))
    assert found[0] == found[1]


# ---- numbers


@settings(max_examples=200, deadline=None)
@given(arrays(np.uint32, (3, 5)))
@example(np.array([[0x15AE43FD, 0x95AE43FD, 0, 1, 0x80000000]] * 3, np.uint32))
def test_numbers_as_text_read_back_to_the_same_float32(tmp_path_factory, bits):
    """They have the fewest digits, as NumPy prints them, except one number that needs more."""
    matrix = bits.view(np.float32)
    matrix[~np.isfinite(matrix)] = 0.1
    path = tmp_path_factory.mktemp("any") / "v.txt"
    GloVe().write(path, Written((3, 5), DTYPES["F32"], [b"a", b"b", b"c"], [matrix], lambda _: None))
    fields = [line.split()[1:] for line in path.read_text().splitlines()]
    found = np.array([[float(x) for x in row] for row in fields], np.float32)
    assert found.tobytes() == matrix.tobytes()
    for text, value in zip(np.ravel(fields), matrix.ravel(), strict=True):
        assert text == str(value) or (abs(value) == np.float32(7.03853069e-26) and len(text) <= 15)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_matrices_keep_their_type(tmp_path, dtype, order):
    """They are written in little-endian row order, whatever the input's."""
    matrix = np.asarray(MATRIX, dtype, order=order)
    write_npy(tmp_path / "v.npy", TOKENS, matrix)
    result = embcompress.factorize(tmp_path / "v.npy", rank=6, output=tmp_path / "small.safetensors")
    tokens, found = read_npy(embcompress.expand(result.output).output)
    assert tokens == TOKENS
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_allclose(
        found.astype(float), best(matrix, 6), atol=2e-3 if found.dtype == np.float16 else 1e-5
    )
    with open_checkpoint(tmp_path / "v.npy") as opened:
        np.testing.assert_array_equal(opened.rows("vectors.weight", 7, 90), matrix[7:90].astype(found.dtype))


@pytest.mark.parametrize("wrong", ["nan", "-inf"])
@every_case
def test_what_is_not_finite_is_refused_unless_it_is_to_be_zero(tmp_path, case, wrong):
    """As in any other table, NaN and infinity are refused or replaced."""
    matrix = MATRIX.copy()
    matrix[7, 3] = float(wrong)
    path = case.make(tmp_path, matrix=matrix)
    says = "1 of 400 rows hold NaN or infinity, the first is row 7"
    assert_refused(tmp_path, "factorize", path, "--rank", 3, code=3, says=says)
    succeed("factorize", path, "--rank", 24 - 2, "--nan", "zero", "-o", tmp_path / "s.safetensors")
    succeed("expand", tmp_path / "s.safetensors", "-o", tmp_path / f"back{case.suffix}")
    _, found = case.read(tmp_path / f"back{case.suffix}")
    assert abs(found[7, 3]) < 0.1


# ---- tokens


def test_tokens_that_stand_twice_keep_their_rows(tmp_path):
    """Nothing is dropped; a note says so."""
    for case in CASES:
        (folder := tmp_path / case.kind.__name__ / case.name).mkdir(parents=True)
        tokens = [*TOKENS[:-2], "the", "of"]
        path = case.make(folder, tokens)
        done = succeed("factorize", path, "--rank", 6, "-o", folder / "small.safetensors")
        assert "note: rows of tokens that have an earlier row: 2; they are kept" in done.stderr
        found, matrix = case.read(embcompress.expand(folder / "small.safetensors").output)
        assert found == tokens
        np.testing.assert_allclose(matrix, best(MATRIX, 6), atol=1e-5)


@pytest.mark.parametrize("case", CASES[:-3], ids=lambda case: case.name)
def test_bytes_that_are_no_utf_8_are_carried(tmp_path, case):
    """GoogleNews holds tokens that were cut in the middle of a letter."""
    path = case.make(tmp_path)
    zipped = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    content = content.replace("日本".encode(), b"\xe6\x97\xff")
    path.write_bytes(gzip.compress(content) if zipped else content)
    dense = embcompress.expand(embcompress.factorize(path, rank=6).output).output
    written = gzip.decompress(dense.read_bytes()) if zipped else dense.read_bytes()
    assert b"\n\xe6\x97\xff " in written


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.name)
def test_tokens_of_text_may_hold_spaces(tmp_path, case):
    """As in glove.840B."""
    tokens = ["the", ". . .", "at name@domain.com", "route 66", *TOKENS[4:]]
    dense = embcompress.expand(embcompress.factorize(case.make(tmp_path, tokens), rank=6).output).output
    assert case.read(dense)[0] == tokens


def test_a_name_decides_whether_text_is_compressed(tmp_path):
    """Plain text of a gzip file, and the other way round."""
    small = embcompress.factorize(CASES[1].make(tmp_path), rank=6).output
    succeed("expand", small, "-o", tmp_path / "plain.txt")
    succeed("expand", small, "-o", tmp_path / "packed.vec.gz")
    assert read_glove(tmp_path / "plain.txt")[0] == TOKENS
    assert gzip.decompress((tmp_path / "packed.vec.gz").read_bytes()) == (tmp_path / "plain.txt").read_bytes()


# ---- weights


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "the 5000\nof 5000\nabsent 7\n日本 5000\n"),
        ("c.csv", "token,n\nthe,5000\nof,5000\n日本,5000\n"),
    ],
)
def test_weights_by_the_tokens_of_the_file(tmp_path, name, text):
    """Rows of counted tokens are kept better; for a repeated token its first row."""
    path = GLOVE.make(tmp_path, [*TOKENS[:-1], "of"])
    (tmp_path / name).write_text(text, encoding="utf-8")
    small = tmp_path / "small.safetensors"
    weights = ("--weights", tmp_path / name, "--smoothing", 1)
    succeed("factorize", path, "--rank", 3, *weights, "-o", small)
    found, plain = read_glove(embcompress.expand(small).output)[1], best(MATRIX, 3)
    counted = [0, 1, 4]
    assert error_of(found[counted], MATRIX[counted]) < 0.1 * error_of(plain[counted], MATRIX[counted])
    assert error_of(found[[-1]], MATRIX[[-1]]) > 0.3
    assert embcompress.verify(small, against=path, weights=tmp_path / name, smoothing=1).is_right
    succeed("report", path, *weights)


def test_weights_by_the_words_of_texts(tmp_path):
    """The same as by the counts of these words."""
    path = GLOVE.make(tmp_path)
    (tmp_path / "texts.txt").write_text("The end of the day.\nIn the U.S. they don't know Über\n", "utf-8")
    counts = np.zeros(V)
    for token, count in {"the": 3, "of": 1, "U.S.": 1, "don't": 1, "Über": 1}.items():
        counts[TOKENS.index(token)] = count
    texts = embcompress.factorize(path, rank=6, corpus=tmp_path / "texts.txt", output=tmp_path / "a").output
    array = embcompress.factorize(path, rank=6, weights=counts, output=tmp_path / "b").output
    one, other = load_file(texts), load_file(array)
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in other.items()
    }
    (tmp_path / "texts.txt").write_text("nothing here\n")
    says = "holds no text to count tokens in"
    assert_refused(
        tmp_path, "factorize", path, "--rank", 6, "--corpus", tmp_path / "texts.txt", code=3, says=says
    )


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Paris paris PARIS", [0, 1, 1]),
        ("Rome ROME rome", [2, 2, 2]),
        ("oslo, Oslo.", [3, 7, 3, 6]),
        ("e.g. (e.g.)", [5, 6, 4, 6]),
        ("nothing", []),
        ("", []),
    ],
    ids=range(6),
)
def test_words_find_their_rows(text, rows):
    """A word is looked up unchanged, in lower case, then by a token's lower case; whole, then in parts."""
    tokens = ["Paris", "paris", "Rome", "OSLO", "g", "e.g.", ".", ",", "paris", "oslO"]
    assert [*VectorWords(tokens).count([text]).tokens] == rows


# ---- with models


def test_a_module_loads_the_compressed_vectors(tmp_path):
    """An embedding under the table's name gets them; the tokens are not a weight."""
    small = embcompress.factorize(GLOVE.make(tmp_path), rank=6).output
    model = embcompress.load(nn.ModuleDict({"vectors": nn.Embedding(V, D)}), small)
    found = model["vectors"](torch.arange(V)).detach().numpy()
    np.testing.assert_allclose(found, best(MATRIX, 6), atol=1e-5)
    with refused(embcompress.UsageError, "compressed"):
        embcompress.load(nn.ModuleDict({"vectors": nn.Embedding(V, D)}), tmp_path / "vectors.txt")
    with refused(embcompress.UsageError, "vectors"):
        embcompress.load(nn.ModuleDict({"other": nn.Linear(2, 2)}), small)


def test_a_classifier_starts_from_the_compressed_vectors(tmp_path):
    """train --vectors reads them like the original."""
    tokens = ["play", "the", "weather", *TOKENS[3:]]
    small = embcompress.factorize(GLOVE.make(tmp_path, tokens), rank=6).output
    few = tmp_path / "few.csv"
    few.write_text("\n".join(INTENTS.read_text().splitlines()[:200]) + "\n")
    shape = ("--arch", "dan", "--hidden", 4, "--epochs", 1)
    done = succeed("train", few, *shape, "--vectors", small, "-o", tmp_path / "m.pt")
    assert "pretrained vectors filled 3 rows" in done.output


@pytest.mark.parametrize("name", ["vectors.txt", "small.safetensors"])
def test_vectors_are_no_model(tmp_path, name):
    """Commands that need a model say so in one line."""
    path = GLOVE.make(tmp_path)
    embcompress.factorize(path, rank=6, output=tmp_path / "small.safetensors")
    path, texts = tmp_path / name, tmp_path / "t.csv"
    texts.write_text("text,label\na,x\nb,y\n")
    for command in (
        ("finetune", path, texts, "-o", tmp_path / "o.pt"),
        ("evaluate", path, texts),
        ("compress", path, texts, "--ratio", 0.5),
        ("distil", path, "--teacher", path, "--texts", texts, "-o", tmp_path / "o"),
        ("factorize", path, "--rank", 3, "--importance", texts, "-o", tmp_path / "o.safetensors"),
    ):
        assert_refused(tmp_path, *command, code=2, says=name)
    with pytest.raises(embcompress.UsageError):
        embcompress.predict(path, ["a"])


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin"])
def test_a_directory_has_no_word_vectors(tmp_path, name):
    """A file of vectors does not hold the weights of a model, and is refused."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    write_binary(tmp_path / "m" / name, TOKENS, MATRIX)
    assert_refused(tmp_path, "factorize", tmp_path / "m", "--rank", 3, code=3, says=name)


# ---- outputs


def test_names_must_fit_the_format(tmp_path):
    """A compressed file cannot be named as text, nor text as .bin."""
    path = GLOVE.make(tmp_path)
    small = embcompress.factorize(path, rank=6, output=tmp_path / "small").output
    for name, says in [("o.txt", "safetensors, and .txt means"), ("o.pt", ".pt means torch")]:
        assert_refused(tmp_path, "factorize", path, "--rank", 6, "-o", tmp_path / name, code=2, says=says)
    for name, says in [
        ("o.bin", "GloVe text, and .bin means torch or fastText model or word2vec binary"),
        ("o.npy", "and .npy means NumPy matrix"),
        ("o.safetensors", "and .safetensors means safetensors"),
    ]:
        assert_refused(tmp_path, "expand", small, "-o", tmp_path / name, code=2, says=says)
    save_file({"embedding.weight": MATRIX}, tmp_path / "m.safetensors")
    succeed("factorize", tmp_path / "m.safetensors", "--rank", 6, "-o", tmp_path / "model.txt")


def test_what_headers_can_refuse_is_refused_before_the_file_is_read(tmp_path, monkeypatch):
    """A gigabyte of text is not parsed to say that the output exists."""
    path = GLOVE.make(tmp_path)
    (tmp_path / "o.safetensors").touch()
    monkeypatch.setattr(GloVe, "entries", lambda *_: pytest.fail("was read"))
    for options in (
        ("-o", tmp_path / "o.safetensors"),
        ("-o", tmp_path / "no" / "o"),
        ("-o", tmp_path / "o.pt"),
    ):
        assert run("factorize", path, "--rank", 3, *options).exit_code == 2
    assert run("expand", path, "-o", tmp_path / "p.txt").exit_code == 2
    assert run("finetune", path, path, "-o", tmp_path / "o.pt").exit_code == 2


def test_a_vocabulary_that_is_there_already_stays(tmp_path):
    """Matrix and vocabulary are written together, or not at all."""
    small = embcompress.factorize(CASES[-1].make(tmp_path), rank=6).output
    place, vocabulary = tmp_path / "o.npy", tmp_path / "o.vocab.txt"
    vocabulary.write_text("mine\n")
    assert_refused(tmp_path, "expand", small, "-o", place, code=2, says="o.vocab.txt: exists already")
    succeed("expand", small, "-o", place, "--force")
    assert read_npy(place)[0] == TOKENS
    own = ("-o", tmp_path / "vectors.npy")
    assert_refused(tmp_path, "factorize", *own[1:], "--rank", 3, *own, code=2, says="is the input itself")


def test_vocabulary_and_matrix_must_both_stay_as_they_are(tmp_path):
    """If either changes while it is read, there is no output."""
    path = CASES[-1].make(tmp_path)
    vocabulary = tmp_path / "vectors.vocab.txt"

    def meddle(stage, done, total):
        if stage == "verify" and done == total:
            vocabulary.write_text(vocabulary.read_text().replace("the", "eht"))

    with refused(embcompress.InputError, "changed"):
        embcompress.factorize(path, rank=6, output=tmp_path / "o.safetensors", progress=meddle)
    assert not (tmp_path / "o.safetensors").exists()


def test_no_room_for_the_rows(tmp_path, monkeypatch):
    """The message says which place is full, and what to do."""
    path = GLOVE.make(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streamed, "write_all", full)
    says = "cannot take 38,400 bytes of vectors (No space left on device); set the environment"
    assert_refused(tmp_path, "factorize", path, "--rank", 3, code=1, says=says)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Rows are kept on disk; of tokens only their bytes are in memory."""
    path = tmp_path / "v.txt"
    with path.open("w") as file:
        for i in range(10_000):
            file.write(f"token{i}" + f" {i % 97 / 10}" * 200 + "\n")
    tracemalloc.start()
    try:
        with open_checkpoint(path) as opened:
            assert opened.tensors["vectors.weight"].nbytes == 8_000_000
            assert [*opened.rows("vectors.weight", 9_999, 10_000)[0, :2]] == [np.float32(0.8)] * 2
        assert tracemalloc.get_traced_memory()[1] < 7 << 20
    finally:
        tracemalloc.stop()


def test_nothing_here_imports_torch(tmp_path):
    """Importing it would take longer than the work."""
    path = GLOVE.make(tmp_path)
    program = (
        "import sys, embcompress\n"
        f"small = embcompress.factorize({str(path)!r}, rank=6).output\n"
        "embcompress.expand(small)\nembcompress.report(small)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- bad input

GOOD = "a 1 2 3\nb 4 5 6\nc 7 8 9\n"


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("v.txt", GOOD + "d 1 2\n", 3, "line 4: 2 numbers, expected 3 as in the first line"),
        ("v.txt", GOOD + "d 1.5 2 3 4\n", 3, "line 4: 4 numbers, expected 3"),
        ("v.txt", GOOD + "d 1 x 3\n", 3, "line 4: 'x' is not a number"),
        ("v.txt", GOOD + "d 1 1e300 3\n", 3, "line 4: number 2 is inf in float32"),
        ("v.txt", GOOD + "d 1 nan 3\n", 3, "the first is row 3"),
        ("v.txt", GOOD + " 1 2\n", 3, "line 4: 2 numbers, expected 3"),
        ("v.txt", "3 3\n" + GOOD + "d 1 2 3\n", 3, "line 1 claims 3 vectors, the file holds more"),
        ("v.vec", "9 3\n" + GOOD, 3, "line 1 claims 9 vectors, the file holds 3"),
        ("v.vec", "0 3\n", 3, "line 1 claims 0 vectors"),
        ("v.bin", b"2 2\na " + bytes(8) + b"\nb " + bytes(3), 3, "at least 22 bytes; the file has 20"),
        ("v.bin", b"2 2\naaaa " + bytes(8) + b"\nb " + bytes(7), 3, "is cut short in entry 2 of 2"),
        ("v.bin", b"1 2\na\nb " + bytes(8) + b"\n", 3, "entry 1: token 'a\\nb' holds a line feed"),
        ("v.txt.gz", gzip.compress(GOOD.encode() * 9)[:-12], 3, "the gzip stream is cut short"),
        ("v.txt.gz", gzip.compress(GOOD.encode())[:12], 3, "the gzip stream is cut short"),
        ("v.npy", b"\x93NUMPY", 2, "needs its tokens in v.vocab.txt beside it"),
        ("v.txt", "", 3, "is not a known checkpoint"),
        ("v.txt", "these are notes\nand no vectors\n", 3, "is not a known checkpoint"),
        ("v.txt", "chapter 1\nchapter 2\n", 3, "is not a known checkpoint"),
        ("v.txt", "about 1 2 3\nand then they left\n", 3, "is not a known checkpoint"),
        ("v.bin", bytes(200), 3, "v.bin"),
        ("v", b"\0" * 9 + b"a 1 2 3\n", 3, "is not a known checkpoint"),
    ],
    ids=range(21),
)
def test_row_58_broken_files(tmp_path, name, content, code, says):
    """One line says what is wrong and what to do, and nothing is written."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (("factorize", path, "--rank", 1), ("report", path)):
        assert_refused(tmp_path, *command, code=code, says=says)


def _saved(path, array, vocabulary="a\nb\nc\n"):
    np.save(path, array, allow_pickle=True)
    path.with_suffix(".vocab.txt").write_text(vocabulary)


@pytest.mark.parametrize(
    ("array", "vocabulary", "says"),
    [
        (np.array([["a", {}]], object), "a\n", "elements are object"),
        (
            np.ones((3, 2), np.int64),
            "a\nb\nc\n",
            "elements are int64, supported are float16, float32 and float64",
        ),
        (np.ones(3, np.float32), "a\nb\nc\n", "shape [3], a matrix"),
        (np.ones((3, 2), np.float32), "a\nb\n", "2 lines, the matrix beside it has 3 rows"),
        (np.ones((3, 2), np.float32), "a\nb\nc\nd\n", "4 lines, the matrix beside it has 3 rows"),
        (np.ones((3, 2), np.float32), "a\n\nc\n", "line 2: a vector without a token"),
        (np.ones((3, 2), np.float32), "", "is empty"),
    ],
    ids=range(7),
)
def test_row_58_broken_matrices(tmp_path, array, vocabulary, says):
    """No object is unpickled, and every row has one token."""
    _saved(tmp_path / "v.npy", array, vocabulary)
    for command in (("factorize", tmp_path / "v.npy", "--rank", 1), ("report", tmp_path / "v.npy")):
        assert_refused(tmp_path, *command, code=3, says=says)


def forged(path, target, change):
    """A copy of a compressed file with other tensors or metadata."""
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


def _record(text):
    return lambda _, metadata: metadata.update({"embcompress.vectors": text})


def _tokens(array):
    return lambda tensors, _: tensors.update({"vectors.vocabulary": array})


def _joined(*tokens):
    return _tokens(np.frombuffer("\n".join(tokens).encode(), np.uint8))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_record("{"), "the metadata under embcompress.vectors is not JSON"),
        (_record("5"), "is not a format and a suffix"),
        (_record('{"format": "GloVe text", "suffix": "/../x"}'), "is not a format and a suffix"),
        (_record('{"format": "GloVe text", "suffix": 3}'), "is not a format and a suffix"),
        (_record('{"format": "LexVec", "suffix": ".lex"}'), "in the format 'LexVec'; install a newer"),
        (lambda t, _: t.pop("vectors.vocabulary"), "holds no vectors.vocabulary"),
        (_tokens(np.zeros((3, 3), np.uint8)), "vectors.vocabulary is not a list of bytes"),
        (_tokens(np.zeros(3, np.float32)), "vectors.vocabulary is not a list of bytes"),
        (_tokens(np.zeros(0, np.uint8)), "400 tokens are expected, one per row, there are 1"),
        (_joined(*TOKENS[:-1]), "400 tokens are expected, one per row, there are 399"),
        (_joined(*TOKENS, "x"), "400 tokens are expected, one per row, there are more"),
        (_joined(*TOKENS[:-1], "x" * 5000), "a token of 5,000 bytes, limit 4,096"),
        (_joined(*TOKENS[:-1], "3.5 0.5"), "25 numbers, expected 24"),
    ],
    ids=range(13),
)
def test_row_58_forged_compressed_files(tmp_path, change, says):
    """A record or vocabulary that does not fit is refused, and no text is left behind."""
    small = embcompress.factorize(GLOVE.make(tmp_path), rank=6).output
    path = forged(small, tmp_path / "forged.safetensors", change)
    assert_refused(tmp_path, "expand", path, "-o", tmp_path / "o.txt", code=3, says=says)


def test_a_suffix_that_lies_is_refused(tmp_path):
    """The output of expanding does not get the name of another format."""
    small = embcompress.factorize(GLOVE.make(tmp_path), rank=6).output
    record = '{"format": "GloVe text", "suffix": ".safetensors"}'
    path = forged(small, tmp_path / "forged.safetensors", _record(record))
    assert_refused(tmp_path, "expand", path, code=2, says=".safetensors means safetensors")


def test_compressed_vectors_may_be_renamed_and_copied(tmp_path):
    """They are recognized by their contents, also without the suffix and with a reordered header."""
    small = embcompress.factorize(GLOVE.make(tmp_path), rank=6).output
    plain = small.rename(tmp_path / "renamed")
    assert read_glove(embcompress.expand(plain, output=tmp_path / "o.txt").output)[0] == TOKENS
    copied = forged(plain, tmp_path / "copied.safetensors", lambda *_: None)
    assert read_glove(embcompress.expand(copied).output)[0] == TOKENS


def test_a_directory_beside_it_all(tmp_path):
    """A directory is still opened as a model."""
    path = directory(tmp_path / "m", [{"model.embed_tokens.weight": MATRIX}])
    with open_checkpoint(path) as opened:
        assert opened.format == "directory"
    done = run("report", tmp_path / "none.txt")
    assert done.exit_code == 2
    assert_one_line(done.stderr, "does not exist")
