"""Word vectors: every format is written by a small writer of its own here and read back, good and broken."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import fasttext_models
from helpers.checkpoints import directory, raw, table, vectors_file
from helpers.refusals import assert_says
from helpers.refusals import refused as refused_with
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import embcompress
from embcompress.checkpoint.vectors.base import DIMENSION_LIMIT, TOKEN_LIMIT
from embcompress.checkpoint.vectors.fasttext import FastText
from embcompress.checkpoint.vectors.glove import GloVe
from embcompress.checkpoint.vectors.npy import Npy
from embcompress.checkpoint.vectors.stream import LINE_LIMIT
from embcompress.checkpoint.vectors.word2vec_binary import Word2VecBinary
from embcompress.checkpoint.vectors.word2vec_text import Word2VecText
from embcompress.data.vectors import SOURCES, read_vectors, source_of
from embcompress.data.vectors.checkpoint_table import CheckpointTable
from embcompress.errors import EmbcompressError, InputError, UsageError

TOKENS = ["the", "Über", "France", "don't", "FRANCE", "3.5", "日本", "##ing", "naïve", "x" * 300]
MATRIX = table(len(TOKENS), 6)


# ---- writers, each independent of the readers


def lines(tokens, matrix, end="\n"):
    """Token and numbers; ``repr`` of a float32 is read back as the same float32."""
    return "".join(
        f"{token} {' '.join(repr(float(x)) for x in row)}{end}"
        for token, row in zip(tokens, matrix, strict=True)
    )


def glove(path, tokens, matrix):
    path.write_text(lines(tokens, matrix), encoding="utf-8", newline="")


def word2vec_text(path, tokens, matrix):
    head = f"{len(tokens)} {matrix.shape[1]}\n"
    # The C program leaves a space behind the last number.
    path.write_text(head + lines(tokens, matrix, " \n"), encoding="utf-8", newline="")


def windows_text(path, tokens, matrix):
    head = f"\ufeff{len(tokens)} {matrix.shape[1]}\r\n"
    path.write_text(head + lines(tokens, matrix, "\r\n"), encoding="utf-8", newline="")


def tabbed(path, tokens, matrix):
    path.write_text(lines(tokens, matrix).replace(" ", "\t"), encoding="utf-8", newline="")


def binary(path, tokens, matrix, end=b"\n"):
    entries = (t.encode() + b" " + r.astype("<f4").tobytes() for t, r in zip(tokens, matrix, strict=True))
    path.write_bytes(f"{len(tokens)} {matrix.shape[1]}\n".encode() + b"".join(e + end for e in entries))


def binary_without_ends(path, tokens, matrix):
    binary(path, tokens, matrix, b"")


def npy(path, tokens, matrix, convert=np.asarray):
    np.save(path, convert(matrix))
    vocabulary = "".join(f"{token}\n" for token in tokens)
    path.with_suffix(".vocab.txt").write_text(vocabulary, encoding="utf-8", newline="")


def npy_fortran(path, tokens, matrix):
    npy(path, tokens, matrix, np.asfortranarray)


def npy_double(path, tokens, matrix):
    npy(path, tokens, matrix, lambda m: m.astype(">f8"))


def word_piece(tokens):
    """A tokenizer.json that maps tokens to ids, written in another order than that of the ids."""
    vocabulary = {token: number for number, token in reversed(list(enumerate(tokens)))}
    return {"model": {"type": "WordPiece", "vocab": vocabulary}, "added_tokens": []}


def unigram(tokens):
    """A tokenizer.json that lists tokens with scores; the last one is an added token."""
    scored = [[token, -1.5] for token in tokens[:-1]]
    added = [{"id": len(tokens) - 1, "content": tokens[-1], "special": True}]
    return {"model": {"type": "Unigram", "vocab": scored, "unk_id": 0}, "added_tokens": added}


def safetensors_file(path, tokens, matrix):
    save_file({"bias": np.zeros(3, np.float32), "embedding.weight": matrix}, path)
    (path.parent / "tokenizer.json").write_text(json.dumps(unigram(tokens)))


def hugging_face(path, tokens, matrix):
    directory(path, [{"model.embed_tokens.weight": matrix}])
    (path / "tokenizer.json").write_text(json.dumps(word_piece(tokens)))


def directory_with_vocabulary(path, tokens, matrix):
    directory(path, [{"model.embed_tokens.weight": matrix}])
    (path / "tokenizer.json").unlink()
    (path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")


def torch_classifier(path, tokens, matrix):
    state = {"embedding.weight": torch.from_numpy(matrix.copy())}
    record = {"tokenizer": {"rule": "words", "vocabulary": list(tokens)}}
    torch.save({"state_dict": state, "classifier": record}, path)


def torch_model(path, tokens, matrix, *, zipped=True):
    state = {"wte.weight": torch.from_numpy(matrix.copy())}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    path.with_name("vocab.txt").write_text("\r\n".join(tokens), encoding="utf-8", newline="")


def legacy_torch_model(path, tokens, matrix):
    torch_model(path, tokens, matrix, zipped=False)


def safetensors_classifier(path, tokens, matrix):
    record = {"tokenizer": {"rule": "tokenizer.json", "json": json.dumps(word_piece(tokens))}}
    save_file({"embedding.weight": matrix}, path, {"classifier": json.dumps(record)})


@dataclass(frozen=True)
class Case:
    """A format, a file name and what writes it; a map from tokens has none twice."""

    kind: type
    name: str
    write: Callable
    is_map: bool = False

    def make(self, folder, tokens=TOKENS, matrix=MATRIX):
        return vectors_file(folder / self.name, self.write, tokens, matrix)


CASES = [
    Case(GloVe, "glove.6B.txt", glove),
    Case(GloVe, "glove.txt.gz", glove),
    Case(GloVe, "tabs.txt", tabbed),
    Case(Word2VecText, "w2v.vec", word2vec_text),
    Case(Word2VecText, "w2v.txt.gz", word2vec_text),
    Case(Word2VecText, "windows.txt", windows_text),
    Case(Word2VecBinary, "w2v.bin", binary),
    Case(Word2VecBinary, "GoogleNews.bin", binary_without_ends),
    Case(Word2VecBinary, "w2v.bin.gz", binary),
    Case(FastText, "ft.bin", fasttext_models.write),
    Case(FastText, "ft.bin.gz", fasttext_models.write),
    Case(Npy, "w2v.300d.npy", npy),
    Case(Npy, "fortran.npy", npy_fortran),
    Case(Npy, "double.npy", npy_double),
    Case(CheckpointTable, "model.safetensors", safetensors_file),
    Case(CheckpointTable, "directory", hugging_face, is_map=True),
    Case(CheckpointTable, "with-vocab", directory_with_vocabulary),
    Case(CheckpointTable, "pytorch_model.bin", torch_model),
    Case(CheckpointTable, "legacy.bin", legacy_torch_model),
    Case(CheckpointTable, "classifier.pt", torch_classifier),
    Case(CheckpointTable, "classifier.safetensors", safetensors_classifier, is_map=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
streamed = [case for case in CASES if case.kind in (GloVe, Word2VecText, Word2VecBinary)]


def recognized(path):
    return type(source_of(path))


def refused(path, says, wanted=None, kind=InputError):
    """Reading ends in one printable line that names the file and says what is wrong."""
    with pytest.raises(kind) as caught:
        read_vectors(path, wanted)
    assert type(caught.value) is kind
    assert_says(str(caught.value), says)
    assert str(path.name) in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.remedy


# ---- contract


def test_every_format_is_tested():
    """A new member of the registry needs a writer here."""
    assert {case.kind for case in CASES} == {type(kind) for kind in SOURCES}


@every_case
def test_all_vectors_are_read_back(tmp_path, case):
    """Tokens and float32 values are exactly those written, in the order of the file."""
    told = []
    found = read_vectors(str(case.make(tmp_path)), progress=lambda *step: told.append(step))
    assert found.tokens == tuple(TOKENS)
    np.testing.assert_array_equal(found.matrix, MATRIX, strict=True)
    assert {stage for stage, _, _ in told} == {"reading vectors"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2] > 0


@every_case
def test_wanted_vectors_only(tmp_path, case):
    """Wanted tokens that the file holds are returned in its order, the others not at all."""
    found = read_vectors(case.make(tmp_path), ["absent", "naïve", "the", "3.5", "日本"])
    assert found.tokens == ("the", "3.5", "日本", "naïve")
    np.testing.assert_array_equal(found.matrix, MATRIX[[0, 5, 6, 8]], strict=True)


@every_case
def test_a_wanted_token_takes_the_first_that_lower_cases_to_it(tmp_path, case):
    """Only where no exact one exists, before or behind; upper case is never made."""
    tokens = ["Paris", "PARIS", "Rome", "oslo", "OSLO", "Bern", "x", "y", "z", "rome"]
    found = read_vectors(case.make(tmp_path, tokens), {"paris", "rome", "oslo", "BERN", "Bern"})
    assert found.tokens == ("paris", "rome", "oslo", "Bern")
    np.testing.assert_array_equal(found.matrix, MATRIX[[0, 9, 3, 5]])


@pytest.mark.parametrize("case", [c for c in CASES if not c.is_map], ids=lambda case: case.name)
@pytest.mark.parametrize("wanted", [None, ["a", "b"]], ids=["all", "wanted"])
def test_of_equal_tokens_the_first_is_taken(tmp_path, case, wanted):
    """As gensim does it."""
    tokens = ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    found = read_vectors(case.make(tmp_path, tokens), wanted)
    assert found.tokens == ("a", "b")
    np.testing.assert_array_equal(found.matrix, MATRIX[:2])


@every_case
def test_the_format_is_recognized(tmp_path, case):
    """By its own name, and where it is one file by its contents alone."""
    path = case.make(tmp_path)
    assert recognized(path) is case.kind
    if path.is_file():
        assert recognized(path.rename(tmp_path / "vectors")) is case.kind


@every_case
def test_none_found_is_a_usage_error(tmp_path, case):
    """Vectors of another language must not pass for a table of random rows."""
    path = case.make(tmp_path)
    refused(path, "none of its 10 tokens is one of the 2 wanted, 'ny', 'og'", ["og", "ny"], UsageError)


@every_case
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_kept_numbers_must_be_finite(tmp_path, case, wrong):
    """A NaN would spread through every sum; one in a row that is not wanted is not even read."""
    matrix = MATRIX.copy()
    matrix[3, 1] = wrong
    path = case.make(tmp_path, matrix=matrix)
    places = {GloVe: "line 4", Word2VecText: "line 5", Word2VecBinary: "entry 4"}
    refused(path, f"{places.get(case.kind, 'row 3')}: number 2 is {wrong}")
    refused(path, f"number 2 is {wrong}", ["don't"])
    assert read_vectors(path, ["the", "3.5"]).tokens == ("the", "3.5")


def test_values_beyond_float32_are_no_numbers_here(tmp_path):
    """They would silently become infinite."""
    glove(tmp_path / "a.txt", ["a", "b"], np.array([[1.0, 2.0], [1e300, 1.0]]))
    refused(tmp_path / "a.txt", "line 2: number 1 is inf in float32")
    npy(tmp_path / "a.npy", ["a", "b"], np.array([[1.0, 2.0], [1.0, -1e39]]))
    refused(tmp_path / "a.npy", "row 1: number 2 is -inf in float32")


words = st.text(st.characters(codec="utf-8", exclude_characters=" \t\n\r\v\f"), min_size=1, max_size=8)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), case=st.sampled_from(streamed + [c for c in CASES if c.kind is Npy]))
def test_any_vectors_are_read_back(tmp_path_factory, data, case):
    """Whatever the tokens and the numbers, denormals and negative zeros included."""
    tokens = data.draw(st.lists(words.filter(lambda w: not w.startswith("\ufeff")), min_size=1, max_size=5))
    dimension = data.draw(st.integers(1, 4))
    rows = st.lists(numbers, min_size=dimension, max_size=dimension)
    matrix = np.array([data.draw(rows) for _ in tokens], np.float32)
    found = read_vectors(case.make(tmp_path_factory.mktemp("any"), tokens, matrix))
    expected = {}
    for token, row in zip(tokens, matrix, strict=True):
        expected.setdefault(token, row.tobytes())
    assert dict(zip(found.tokens, (r.tobytes() for r in found.matrix), strict=True)) == expected


@pytest.mark.parametrize("write", [glove, word2vec_text])
def test_tokens_of_text_may_hold_spaces(tmp_path, write):
    """As in glove.840B, where the numbers are the last d fields."""
    tokens = ["the", ". . .", "at name@domain.com", "route 66", "1 1/2", "4 . 5"]
    write(tmp_path / "a.txt", tokens, MATRIX[:6])
    found = read_vectors(tmp_path / "a.txt", tokens)
    assert found.tokens == tuple(tokens)
    np.testing.assert_array_equal(found.matrix, MATRIX[:6])


@pytest.mark.parametrize("case", streamed, ids=lambda case: case.name)
def test_tokens_that_are_no_utf_8_do_no_harm(tmp_path, case):
    """GoogleNews holds some that were cut in the middle of a letter; they get replacement characters."""
    path = case.make(tmp_path)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        content = file.read().replace("日本".encode(), "日本".encode()[:5] + b"\xff")
    with opened(path, "wb") as file:
        file.write(content)
    assert read_vectors(path).tokens[6] == "日\ufffd\ufffd"
    assert read_vectors(path, ["日本", "3.5"]).tokens == ("3.5",)


def test_large_files_pass_through_many_chunks(tmp_path):
    """Entries that lie across the boundary of two chunks are read like any other."""
    matrix = table(3000, 300)
    tokens = [f"w{'x' * (i % 7)}{i}" for i in range(3000)]
    wanted = tokens[::3]
    for name, write in (("a.bin", binary), ("b.bin", binary_without_ends), ("c.bin.gz", binary)):
        told = [0]
        path = Case(Word2VecBinary, name, write).make(tmp_path, tokens, matrix)
        found = read_vectors(path, wanted, progress=lambda *step, told=told: told.append(step[1]))
        assert told[-1] == path.stat().st_size
        assert max(np.diff(told)) < 2 << 20
        assert found.tokens == tuple(wanted)
        np.testing.assert_array_equal(found.matrix, matrix[::3])
    short = matrix.round(2)
    found = read_vectors(Case(GloVe, "a.txt.gz", glove).make(tmp_path, tokens, short), wanted)
    np.testing.assert_array_equal(found.matrix, short[::3])
    path = Case(CheckpointTable, "big", hugging_face).make(tmp_path, tokens[:2900], np.tile(matrix, (4, 4)))
    found = read_vectors(path, ["w", *wanted, tokens[2898]])  # several blocks; a table that is padded
    assert found.tokens == tuple(w for w in wanted if w in tokens[:2900])
    np.testing.assert_array_equal(found.matrix, np.tile(matrix[:2900:3], (1, 4)))


# ---- real models


def test_minilm(minilm):
    """The table of the real model, by its real tokenizer."""
    with safe_open(minilm / "model.safetensors", framework="numpy") as file:
        expected = file.get_tensor("embeddings.word_embeddings.weight")
    tokens = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(tokens) == 30522
    found = read_vectors(minilm, {"movie", "Film", "##ing", "zzz", "[CLS]", "good"})
    assert set(found.tokens) == {"movie", "##ing", "[CLS]", "good"}
    for token, row in zip(found.tokens, found.matrix, strict=True):
        np.testing.assert_array_equal(row, expected[tokens.index(token)])
    everything = read_vectors(minilm / "model.safetensors")
    assert everything.tokens == tuple(tokens)
    np.testing.assert_array_equal(everything.matrix, expected, strict=True)


def test_a_compressed_table_is_decoded(tmp_path):
    """A checkpoint that this tool made is as good a source as any."""
    path = Case(CheckpointTable, "model.safetensors", safetensors_file).make(
        tmp_path, [f"t{i}" for i in range(64)], table()
    )
    embcompress.factorize(path, rank=5, output=tmp_path / "small.safetensors")
    u, s, vh = np.linalg.svd(table().astype(np.float64), full_matrices=False)
    best = (u[:, :5] * s[:5]) @ vh[:5]
    found = read_vectors(tmp_path / "small.safetensors", ["t3", "t40"])
    np.testing.assert_allclose(found.matrix, best[[3, 40]], atol=1e-5)


def test_nothing_here_imports_torch():
    """It would cost more than the reading."""
    program = "import sys, embcompress.data.vectors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- bad input


def test_what_does_not_exist_is_a_usage_error(tmp_path):
    """So is a pipe, which would block, and what has no tokens beside it."""
    refused(tmp_path / "a.txt", "does not exist", kind=UsageError)
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a regular file", kind=UsageError)
    np.save(tmp_path / "a.npy", MATRIX)
    refused(tmp_path / "a.npy", "needs its tokens in a.vocab.txt", kind=UsageError)
    save_file({"embedding.weight": MATRIX}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "nothing says which tokens", kind=UsageError)
    save_file({"a.embedding.weight": MATRIX, "b.embedding.weight": table(9, 6)}, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "2 tables are equally likely", kind=UsageError)
    with pytest.raises(UsageError) as caught:
        read_vectors(tmp_path / "b.safetensors")
    assert "--key" not in str(caught.value)
    save_file({"bias": MATRIX[0]}, tmp_path / "c.safetensors")
    with pytest.raises(UsageError) as caught:
        read_vectors(tmp_path / "c.safetensors")
    assert str(caught.value).count("c.safetensors") == 1


@pytest.mark.parametrize(
    "name", ["a.txt", "a.vec", "a.bin", "a.npy", "a.safetensors", "a.pt", "a", "a.txt.gz"]
)
def test_files_that_hold_nothing(tmp_path, name):
    """An empty file, a compressed empty file, and what stands in a repository for a large one."""
    path = tmp_path / name
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_bytes(gzip.compress(b""))
    refused(path, "is empty")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(path, "is a git-lfs pointer")


def test_a_file_of_no_known_format(tmp_path):
    """Every known one is named."""
    (tmp_path / "notes").write_text("these are notes, and no vectors\n")
    refused(tmp_path / "notes", "is not a known file of word vectors")
    refused(tmp_path / "notes", "word2vec binary")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a 1 2\nb 1 2\nc 1\n", "line 3: 1 numbers, expected 2"),
        ("a 1 2\nb\n", "line 2: 0 numbers, expected 2"),
        ("a 1 2\n\nb 1.5 2 3\n", "line 3: 3 numbers, expected 2"),
        ("a 1 2\nb 1.5 2.5 3.5\n", "line 2: 3 numbers, expected 2"),
        ("a 1 2\nb 1 2x\n", "line 2: '2x' is not a number, expected are a token and 2 numbers"),
        ("a 1 2\nb 1_0 2\n", "line 2: '1_0' is not a number"),
        ("a 1 2\nb 0x1 2\n", "line 2: '0x1' is not a number"),
        ("a 1 2\nb 1,5 2\n", "line 2: '1,5' is not a number"),
        ("a 1 2\nb  2\n", "line 2: 1 numbers, expected 2"),
        ("a 1 2\n 1\n", "line 2: 1 numbers, expected 2"),
        ("a 1 2\nb nan 2\n", "line 2: number 1 is nan"),
        ("a 1 x\nb 1 2\n", "line 1: 'x' is not a number"),
        (". . . 1 2\n", "line 1: '.' is not a number"),
        ("hello\n", "line 1: vectors of 0 numbers, accepted are 1 to 65,536"),
        ("a" + " 1" * (DIMENSION_LIMIT + 1), "line 1: vectors of 65,537 numbers"),
        (
            "a 1 2\nb 1 2\n" + "c" * (TOKEN_LIMIT + 1) + " 1 2\n",
            "line 3: a token of 4,097 bytes, limit 4,096",
        ),
        ("a 1 2\nb \x1b[2J 2\n", r"'\x1b[2J' is not a number"),
        ("\n \n\t\n", "holds nothing but blank lines"),
        ("a 1 2\nb " + "1" * (LINE_LIMIT + (2 << 20)), "line 2 has more than 4,194,304 bytes"),
    ],
    ids=range(19),
)
def test_broken_glove_text(tmp_path, text, says):
    """The line, what it holds and what was expected."""
    (tmp_path / "a.txt").write_bytes(text.encode())
    refused(tmp_path / "a.txt", says)


@pytest.mark.parametrize("text", ["a 1 2\nb 1\nc 1 2\n", "2 2\na 1 2\nb 1\n"], ids=["glove", "word2vec"])
def test_lines_that_are_not_wanted_must_be_whole_too(tmp_path, text):
    """A ragged line is noticed whoever it belongs to; its numbers are not looked at."""
    (tmp_path / "a.txt").write_text(text)
    refused(tmp_path / "a.txt", "1 numbers, expected 2", ["a"])
    refused(tmp_path / "a.txt", "1 numbers, expected 2", ["c"])
    (tmp_path / "a.txt").write_text(text.replace("b 1\n", "b 1 x\n"))
    assert read_vectors(tmp_path / "a.txt", ["a"]).tokens == ("a",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3 2\na 1 2\nb 1 2\n", "line 1 claims 3 vectors, the file holds 2"),
        ("1 2\na 1 2\nb 1 2\n", "line 1 claims 1 vectors, the file holds more"),
        ("2 3\na 1 2\nb 1 2\n", "line 2: 2 numbers, expected 3"),
        ("2 1\na 1 2.5\n", "line 1 claims 2 vectors, the file holds 1"),
        ("0 2\n", "line 1 claims 0 vectors"),
        ("2 0\na\nb\n", "line 1: vectors of 0 numbers"),
        ("2 65537\na 1\n", "line 1: vectors of 65,537 numbers"),
        ("9" * 100 + " 2\na 1 2\n", "line 1 claims a size of 100 digits, limit 18"),
        ("999999999999999999 2\na 1 2\n", "claims 999,999,999,999,999,999 vectors, the file holds 1"),
        ("5 2\n", "claims 5 vectors, the file holds 0"),
    ],
    ids=range(10),
)
def test_broken_word2vec_text(tmp_path, text, says):
    """What the header claims must be what follows."""
    (tmp_path / "a.vec").write_text(text)
    refused(tmp_path / "a.vec", says)


def test_the_first_line_must_be_right_whoever_it_belongs_to(tmp_path):
    """It says how many numbers the others have."""
    (tmp_path / "a.txt").write_text("a 1 x\nb 1 2\n")
    refused(tmp_path / "a.txt", "line 1: 'x' is not a number", ["b"])


ONE = b"a " + bytes(8) + b"\n"


@pytest.mark.parametrize(
    ("data", "says", "zipped"),
    [
        (
            b"3 2\n" + ONE * 2,
            "claims 3 vectors of 2 numbers, at least 31 bytes; the file has 26",
            "entry 3 of 3: 1 bytes",
        ),
        (
            b"2 2\n" + b"aaa" + ONE + ONE[:7],
            "is cut short in entry 2 of 2: 8 bytes",
            "in entry 2 of 2: 8 bytes",
        ),
        (b"1 2\n" + ONE + ONE, "claims 1 vectors, the file holds more", "claims 1 vectors"),
        (b"2 2\n" + ONE + ONE[1:-2], "is cut short in entry 2 of 2: 8 bytes", "entry 2 of 2"),
        (
            b"1 4\n" + b"a" * 9000 + bytes(16),
            "entry 1: no space ends its token within 4,096 bytes",
            "entry 1",
        ),
        (b"0 2\n", "claims 0 vectors", "claims 0 vectors"),
        (b"1 70000\n" + bytes(9), "vectors of 70,000 numbers", "vectors of 70,000 numbers"),
        (b"1" * 90 + b" 2\n" + ONE, "a size of 90 digits", "a size of 90 digits"),
        (b"123456789012345678 2\n" + ONE, "123,456,789,012,345,678 vectors", "in entry 2 of 123,456"),
        (b"word2vec\n" + ONE, "line 1 is 'word2vec', expected the number of vectors", "line 1 is 'word2vec'"),
        (bytes(100), "line 1 is", "line 1 is"),
    ],
    ids=range(11),
)
def test_broken_word2vec_binary(tmp_path, data, says, zipped):
    """The entry, and what the header claims against what the file holds, compressed or not."""
    (tmp_path / "a.bin").write_bytes(data)
    refused(tmp_path / "a.bin", says)
    (tmp_path / "a.bin.gz").write_bytes(gzip.compress(data))
    refused(tmp_path / "a.bin.gz", zipped)


@pytest.mark.parametrize("case", streamed, ids=lambda case: case.name)
def test_gzip_streams_that_are_cut_or_damaged(tmp_path, case):
    """Wherever it is cut, what came before is not taken for the whole; its checksum is checked."""
    whole = gzip.compress(case.make(tmp_path).read_bytes()) if case.name[-2:] != "gz" else None
    whole = whole or case.make(tmp_path).read_bytes()
    path = tmp_path / "cut.gz"
    for length in range(2, len(whole), 7):
        path.write_bytes(whole[:length])
        refused(path, "the gzip stream is cut short")
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    refused(path, "the gzip stream is corrupt")
    path.write_bytes(whole[:20] + b"\xff" * 8 + whole[28:])
    refused(path, "the gzip stream is")


def test_cut_binaries_are_refused_wherever_they_are_cut(tmp_path):
    """Not one byte can be missing but the last line feed."""
    path = tmp_path / "a.bin"
    binary(path, TOKENS[:4], MATRIX[:4])
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_vectors(path)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([["a", 1]], object), "elements are object"),
        (np.zeros((2, 3), np.int64), "elements are int64, supported are float16, float32 and float64"),
        (np.zeros((2, 3), np.complex64), "elements are complex64"),
        (np.zeros((2, 3), [("a", "f4")]), "elements are [('a', '<f4')]"),
        (np.zeros(6, np.float32), "shape [6], a matrix"),
        (np.zeros((2, 3, 1), np.float32), "shape [2, 3, 1], a matrix"),
        (np.zeros((0, 3), np.float32), "shape [0, 3], a matrix"),
        (np.zeros((2, 65537), np.float16), "vectors of 65,537 numbers"),
        (np.zeros((3, 2), np.float32), "2 lines, the matrix beside it has 3 rows"),
        (np.zeros((1, 2), np.float32), "2 lines, the matrix beside it has 1 rows"),
    ],
    ids=range(10),
)
def test_matrices_of_another_kind(tmp_path, array, says):
    """Objects are not unpickled, integers are no vectors, and each row has one token."""
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    (tmp_path / "a.vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "a.npy", ["a", "b"])
    assert_says(str(caught.value), says)


def test_broken_npy_files(tmp_path):
    """Cut, longer than they say, of sizes that cannot be, or with a vocabulary that has holes."""
    path = tmp_path / "a.npy"
    npy(path, TOKENS, MATRIX)
    whole = path.read_bytes()
    for data, says in [
        (whole[:-1], "shape [10, 6] of float32 takes 368 bytes, the file has 367"),
        (whole + b"\0", "takes 368 bytes, the file has 369"),
        # How many bits it has, and whether it is known, depends on the machine.
        (whole.replace(b"'<f4',", b"'f16',") + 3 * whole[-240:], "a.npy: "),
        (whole[:70], "is not a readable .npy file"),
        (whole[:6] + b"\x09" + whole[7:], "is not a readable .npy file (version (9, 0))"),
        (gzip.compress(whole), "is not a readable .npy file"),
        (whole.replace(b"(10, 6), ", b"(-1, -60)", 1), "shape [-1, -60]"),
        (whole.replace(b"(10, 6), }", b"(9**9,6),}", 1), "is not a readable .npy file"),
        (whole.replace(b"(10, 6), }    ", b"(99999999, 6)}", 1), "takes 2,400,000,104 bytes"),
    ]:
        path.write_bytes(data)
        refused(path, says)
    path.write_bytes(whole)
    for text, says in [("a\n\nb\n", "line 2: a vector without a token"), ("", "is empty")]:
        path.with_suffix(".vocab.txt").write_text(text)
        with pytest.raises(InputError) as caught:
            read_vectors(path)
        assert_says(str(caught.value), says)


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ({}, "holds no map from tokens to ids under model.vocab"),
        ({"model": {"vocab": 5}}, "holds no map"),
        ({"model": {"vocab": ["a", "b"]}}, "holds no map"),
        ({"model": {"vocab": {"a": "b"}}}, "holds no map"),
        ({"model": {"vocab": {"a": 1.0}}}, "holds no map"),
        ({"model": {"vocab": {"a": True}}}, "holds no map"),
        ({"model": {"vocab": {"a": []}}}, "holds no map"),
        ({"model": {"vocab": [[1, 2]]}}, "holds no map"),
        ({"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}, "holds no map"),
        ({"model": {"vocab": {}}, "added_tokens": 7}, "holds no map"),
        ({"model": {"vocab": {}}}, "names no tokens at all"),
        ({"model": {"vocab": {"a": 64}}}, "token 'a' has number 64, the table has 64 rows"),
        ({"model": {"vocab": {"a": -1}}}, "token 'a' has number -1"),
        ([], "holds no JSON object"),
    ],
    ids=range(14),
)
def test_broken_tokenizers(tmp_path, tokenizer, says):
    """A tokenizer.json that is none, or that belongs to a larger table; as a file and in a record."""
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "a.safetensors")
    assert_says(str(caught.value), says)
    record = {"tokenizer": {"json": json.dumps(tokenizer)}}
    save_file({"embedding.weight": table()}, tmp_path / "b.safetensors", {"classifier": json.dumps(record)})
    refused(tmp_path / "b.safetensors", "holds no map" if tokenizer == [] else says)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000], ids=["empty", "cut", "deep"])
def test_records_with_a_tokenizer_that_is_no_json(tmp_path, text):
    """Refused like any other that maps no tokens."""
    record = {"tokenizer": {"json": text}}
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors", {"classifier": json.dumps(record)})
    refused(tmp_path / "a.safetensors", "holds no map from tokens to ids")


def test_an_added_token_is_what_its_id_stands_for(tmp_path):
    """It takes the place of what the model has there."""
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors")
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 1, "content": "<s>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_vectors(tmp_path / "a.safetensors").tokens == ("a", "<s>")


@pytest.mark.parametrize("vocabulary", [None, "ab", ["a", 1], ["a"] * 63, ["a"] * 65, {"a": 1}], ids=str)
def test_broken_records_of_classifiers(tmp_path, vocabulary):
    """A record of ours names exactly one token a row; a file beside it is no substitute."""
    record = {"tokenizer": {"rule": "words", "vocabulary": vocabulary}}
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors", {"classifier": json.dumps(record)})
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    refused(tmp_path / "a.safetensors", "its classifier record")


@pytest.mark.parametrize("record", [None, 5, [], {}, {"tokenizer": "words"}], ids=str)
def test_records_that_name_no_tokenizer_are_passed_over(tmp_path, record):
    """Other tools may use the same key."""
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors", {"classifier": json.dumps(record)})
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert read_vectors(tmp_path / "a.safetensors").tokens == ("a", "b")


def test_a_vocabulary_longer_than_the_table(tmp_path):
    """It belongs to another model; a shorter one may, as tables are padded."""
    save_file({"embedding.weight": table()}, tmp_path / "a.safetensors")
    (tmp_path / "vocab.txt").write_text("".join(f"t{i}\n" for i in range(65)))
    with refused_with(InputError, "vocab.txt: token 't64' has number 64, the table has 64 rows"):
        read_vectors(tmp_path / "a.safetensors")


def test_tables_that_are_no_word_vectors(tmp_path):
    """Rows of too many numbers, and two tables of which nothing says which is meant."""
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    save_file({"embedding.weight": np.ones((2, 65537), np.float32)}, tmp_path / "wide.safetensors")
    refused(tmp_path / "wide.safetensors", "2 rows of 65,537 numbers", kind=UsageError)
    save_file({"a.embedding.weight": table(), "b.embedding.weight": table(60)}, tmp_path / "two.safetensors")
    embcompress.factorize(
        tmp_path / "two.safetensors", rank=3, all_tables=True, output=tmp_path / "small.safetensors"
    )
    refused(tmp_path / "small.safetensors", "2 compressed tables: a.embedding", kind=UsageError)


def test_a_broken_checkpoint_is_told_by_its_own_format(tmp_path):
    """The errors of the checkpoint pass through."""
    refused(raw(tmp_path / "a.safetensors", b"{}", length=10**9), "header length")
    (tmp_path / "a.pt").write_bytes(b"no torch file at all")
    refused(tmp_path / "a.pt", "a.pt")


def peak(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_follows_what_is_kept_not_what_is_claimed(tmp_path):
    """Neither a header nor a bomb of lines or of one line makes it grow."""
    claims, bomb, line = tmp_path / "claims.bin.gz", tmp_path / "bomb.txt.gz", tmp_path / "line.gz"
    claims.write_bytes(gzip.compress(b"999999999999999999 65536\na " + bytes(1 << 18), 1))
    assert peak(lambda: refused(claims, "is cut short in entry 2")) < 8 << 20
    zeros = b" 0" * 1000 + b"\n"
    bomb.write_bytes(gzip.compress(b"a" + zeros + (b"b" + zeros) * 16_000, 1))
    assert bomb.stat().st_size < 1 << 20
    assert peak(lambda: read_vectors(bomb, ["a"])) < 8 << 20
    line.write_bytes(gzip.compress(b"a 0 0\n" + bytes(32 << 20), 1))
    assert peak(lambda: refused(line, "line 2 has more than")) < 24 << 20


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["a.txt", "a.vec", "a.bin", "a.npy", "a", "a.gz", "a.safetensors", "a.pt"]),
    data=st.one_of(
        st.binary(max_size=200),
        st.text("0123456789 .-e\n\tnaif", max_size=80).map(str.encode),
        st.tuples(
            st.sampled_from([b"2 3\n", b"1 1\n", b"\x93NUMPY\x01\0\x16\0"]), st.binary(max_size=60)
        ).map(b"".join),
    ),
)
@example("a.npy", b"\x93NUMPY\x01\0\x38\0{'descr':(),'fortran_order':False,'shape':(2,3)}       \n")
def test_no_bytes_raise_anything_but_our_errors(tmp_path_factory, name, data):
    """Whatever a file holds, it is read or refused in one line."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(data)
    (folder / "a.vocab.txt").write_text("a\nb\n")
    try:
        found = read_vectors(folder / name)
    except EmbcompressError:
        return
    assert found.matrix.shape[0] == len(found.tokens) == len(set(found.tokens))
    assert np.isfinite(found.matrix).all()


@settings(max_examples=100, deadline=None)
@given(
    case=st.sampled_from([c for c in CASES if not c.name.endswith("gz") and c.write is not hugging_face]),
    at=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
)
def test_no_damaged_byte_raises_anything_but_our_errors(tmp_path_factory, case, at, byte):
    """One byte of a good file is replaced."""
    path = case.make(tmp_path_factory.mktemp("damage"))
    if path.is_dir():
        path = path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] = byte
    path.write_bytes(data)
    try:
        found = read_vectors(path)
    except EmbcompressError:
        return
    assert found.matrix.shape[0] == len(found.tokens)
