"""fastText models: read, compressed, written again, and composed to words; good and broken."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from helpers import fasttext_models as fasttext
from helpers.checkpoints import assert_refused, succeed, table
from helpers.hostile import assert_harmless, both, needs_proc
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.vectors.fasttext.header import LONGEST_NGRAM, parse_header
from embcompress.checkpoint.vectors.fasttext.subwords import Subwords
from embcompress.data.vectors import read_vectors
from embcompress.data.vectors.words import VectorWords

WORDS = ["the", "of", "日本", "naïve", "</s>", *(f"token{i}" for i in range(75))]
BUCKETS, D = 150, 12
MODEL = fasttext.model(
    WORDS, table(80 + BUCKETS, D), buckets=BUCKETS, minn=2, maxn=4, output=table(80, D, seed=3)
)
LABELS = (b"__label__good", "__label__schlecht für".encode())
CLASSIFIER = replace(
    MODEL, kind=fasttext.SUPERVISED, labels=LABELS, output=table(2, D, seed=4), counts=tuple(range(82))
)
UNKNOWN = ["unseen", "日本語", "a", "то", "<b>", "token99"]


def made(path, model=MODEL):
    path.write_bytes(model.bytes())
    return path


def best(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def assert_composed(found, model, matrix, atol=1e-5):
    for token, vector in zip(found.tokens, found.matrix, strict=True):
        np.testing.assert_allclose(vector, fasttext.vector(model, token, matrix), atol=atol, err_msg=token)


# ---- reading


def test_ngrams_are_those_of_fasttext():
    """Buckets that ``get_subwords`` of fastText 0.9.2 has returned, with -bucket 50000 -minn 2 -maxn 5."""
    header = fasttext.model(["x"] * 237, MODEL.table, buckets=50_000, minn=2, maxn=5).head
    subwords = Subwords(parse_header(header, "here"))
    expected = {
        "日本": [2687, 8587, 13759, 37409, 46157, 35717],
        "kaé": [32560, 28723, 15371, 18943, 7969, 22557, 40745, 12988, 22294, 46781],
        "a<b": [8750, 42838, 34348, 27398, 9568, 36214, 33192, 31131, 45743, 46561],
        "</s>": [],
    }
    for word, buckets in expected.items():
        assert [row - 237 for row in subwords.rows(word.encode())] == buckets


@pytest.mark.parametrize("model", [MODEL, CLASSIFIER], ids=["skipgram", "classifier"])
@pytest.mark.parametrize("name", ["m.bin", "m.bin.gz", "m.zip", "m"])
def test_words_are_composed_of_their_ngrams(tmp_path, model, name):
    """Those that the model knows and those that it does not, from plain and packed files."""
    path, data = tmp_path / name, model.bytes()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("wiki.bin", data)
    else:
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    everything = read_vectors(path)
    assert everything.tokens == tuple(WORDS)
    assert_composed(everything, model, model.table)
    wanted = read_vectors(path, ["of", *UNKNOWN, "naïve", "</s>", ""])
    assert {*wanted.tokens} == {"of", *UNKNOWN, "naïve", "</s>", ""}
    assert_composed(wanted, model, model.table)


def test_a_model_without_ngrams_is_read_like_other_vectors(tmp_path):
    """A word that it does not know gets the vector of its lower case, or none."""
    path = made(tmp_path / "m.bin", fasttext.model(WORDS, MODEL.table[:80]))
    found = read_vectors(path, ["unseen", "token3"])
    assert found.tokens == ("token3",)
    np.testing.assert_array_equal(found.matrix, MODEL.table[8:9])
    np.testing.assert_array_equal(read_vectors(path).matrix, MODEL.table[:80])


def test_a_classifier_of_version_11_has_no_ngrams(tmp_path):
    """fastText ignores their lengths there."""
    path = made(tmp_path / "m.bin", replace(CLASSIFIER, version=11))
    np.testing.assert_array_equal(read_vectors(path, ["of"]).matrix, MODEL.table[1:2])


# ---- compressing


@pytest.mark.parametrize("model", [MODEL, CLASSIFIER], ids=["skipgram", "classifier"])
def test_factorize_and_expand_change_nothing_but_the_table(tmp_path, model):
    """The compressed file composes words from what it decodes to, and expanding gives a model again."""
    path = made(tmp_path / "m.bin", model)
    small = embcompress.factorize(path, rank=5).output
    assert small.name == "m-svd-rank-5.safetensors"
    found = read_vectors(small, [*WORDS, *UNKNOWN])
    assert {*found.tokens} == {*WORDS, *UNKNOWN}
    assert_composed(found, model, best(model.table, 5))
    assert embcompress.verify(small, against=path).is_right
    dense = embcompress.expand(small).output
    assert dense.name == "m-svd-rank-5-dense.bin"
    again = fasttext.read(dense.read_bytes())
    np.testing.assert_allclose(again.table, best(model.table, 5), atol=1e-5)
    assert replace(again, table=model.table).bytes() == model.bytes()
    assert_composed(read_vectors(dense, UNKNOWN), model, again.table)


def test_what_the_compressed_file_holds(tmp_path):
    """NumPy reads words, labels and counts by the names that the reference gives."""
    small = embcompress.factorize(made(tmp_path / "m.bin", CLASSIFIER), rank=5).output
    found = load_file(small)
    assert found["vectors.vocabulary"].tobytes().decode().split("\n") == WORDS
    assert found["fasttext.labels"].tobytes().split(b"\n") == [*LABELS]
    assert found["fasttext.counts"].tolist() == [*range(82)]
    assert found["fasttext.header"].tobytes() == CLASSIFIER.head + b"\0"
    np.testing.assert_array_equal(found["fasttext.output.weight"], CLASSIFIER.output)
    assert found["vectors.0.weight"].shape == (230, 5)


def test_packed_models_come_back_packed(tmp_path):
    """cc.en.300.bin.gz is what people download."""
    (tmp_path / "m.bin.gz").write_bytes(gzip.compress(MODEL.bytes()))
    dense = embcompress.expand(embcompress.factorize(tmp_path / "m.bin.gz", rank=5).output).output
    assert dense.name == "m-svd-rank-5-dense.bin.gz"
    again = fasttext.read(gzip.decompress(dense.read_bytes()))
    np.testing.assert_allclose(again.table, best(MODEL.table, 5), atol=1e-5)


def test_the_output_matrix_is_compressed_if_it_is_named(tmp_path):
    """A note says how; the two tables come back in one model."""
    path = made(tmp_path / "m.bin")
    done = succeed("factorize", path, "--ratio", 0.5)
    assert "--key vectors.weight --key fasttext.output.weight" in done.stderr
    keys = ["vectors.weight", "fasttext.output.weight"]
    small = embcompress.factorize(path, keys=keys, rank=4, output=tmp_path / "s.safetensors").output
    again = fasttext.read(embcompress.expand(small).output.read_bytes())
    np.testing.assert_allclose(again.table, best(MODEL.table, 4), atol=1e-5)
    np.testing.assert_allclose(again.output, best(MODEL.output, 4), atol=1e-5)
    succeed("factorize", made(tmp_path / "c.bin", CLASSIFIER), "--ratio", 0.5)
    with open_checkpoint(tmp_path / "c.bin") as opened:
        assert opened.notes == ()


def test_a_module_loads_the_table(tmp_path):
    """The rest of the model is no weight of it."""
    nn = pytest.importorskip("torch").nn
    small = embcompress.factorize(made(tmp_path / "m.bin"), rank=5).output
    loaded = embcompress.load(nn.ModuleDict({"vectors": nn.Embedding(230, D)}), small)
    weight = loaded["vectors"](pytest.importorskip("torch").arange(230)).detach().numpy()
    np.testing.assert_allclose(weight, best(MODEL.table, 5), atol=1e-5)


# ---- weights


def test_texts_count_for_the_ngrams_of_their_words():
    """A word counts for its row and its n-grams, an unknown one for its n-grams alone."""
    subwords = Subwords(parse_header(MODEL.head, "here"))
    found = VectorWords(WORDS, subwords).count(["the unseen", "The, 日本"]).tokens.tolist()

    def grams(word):
        return [80 + fasttext.bucket(ngram, BUCKETS) for ngram in fasttext.ngrams(word, 2, 4)]

    of_texts = [0, *grams("the"), *grams("unseen"), 0, *grams("The"), *grams(","), 2, *grams("日本")]
    assert found == of_texts


def test_counts_of_words_count_for_their_ngrams(tmp_path):
    """They weigh like the same counts of rows in an array."""
    path = made(tmp_path / "m.bin")
    (tmp_path / "c.txt").write_text("the 500\nof 300\n日本 40\n")
    counts = np.zeros(80 + BUCKETS)
    for word, row, count in (("the", 0, 500), ("of", 1, 300), ("日本", 2, 40)):
        counts[row] += count
        for ngram in fasttext.ngrams(word, 2, 4):
            counts[80 + fasttext.bucket(ngram, BUCKETS)] += count
    texts = embcompress.factorize(path, rank=4, weights=tmp_path / "c.txt", output=tmp_path / "a").output
    array = embcompress.factorize(path, rank=4, weights=counts, output=tmp_path / "b").output
    one, other = load_file(texts), load_file(array)
    np.testing.assert_array_equal(one["vectors.0.weight"], other["vectors.0.weight"])


# ---- quantized models


def quantized_model(*, pruned=None, norms=True):
    """A model with random codes, and the table that they stand for, decoded here."""
    random = np.random.default_rng(5)
    rows = 80 + (BUCKETS if pruned is None else len(pruned))
    books = [random.standard_normal((256, width)).astype("f4") for width in (5, 5, 2)]
    codes = random.integers(0, 256, (rows, 3))
    matrix = np.concatenate([book[codes[:, i]] for i, book in enumerate(books)], 1)
    norm_codes, scales = random.integers(0, 256, rows), random.standard_normal((256, 1)).astype("f4")
    stored = fasttext.quantized(codes, books, *((norm_codes, scales) if norms else ()))
    model = replace(CLASSIFIER, quantized=stored, pruned=pruned)
    return model, matrix * scales[norm_codes] if norms else matrix


@pytest.mark.parametrize("pruned", [None, tuple((3 * i, i) for i in range(50))], ids=["whole", "pruned"])
@pytest.mark.parametrize("norms", [True, False])
def test_a_quantized_model_is_read(tmp_path, pruned, norms):
    """Words are composed from what the codes stand for, of a pruned model only from the n-grams it keeps."""
    model, matrix = quantized_model(pruned=pruned, norms=norms)
    path = made(tmp_path / "m.ftz", model)
    assert_composed(read_vectors(path), model, matrix)
    found = read_vectors(path, [*UNKNOWN, "of"])
    assert "日本語" in found.tokens
    assert_composed(found, model, matrix)


def test_row_104_a_quantized_model_is_reported_and_not_compressed(tmp_path):
    """The report says what it is; the refusal names the file to give instead, in both sizes."""
    path = made(tmp_path / "m.ftz", quantized_model()[0])
    shown = json.loads(succeed("report", path, "--json").stdout)
    assert shown["size"] == path.stat().st_size
    assert "quantized already" in succeed("report", path).output
    says = f"is quantized already, {path.stat().st_size:,} bytes for a table of {4 * 230 * D:,}"
    assert_refused(tmp_path, "factorize", path, "--ratio", 0.5, code=2, says=says)


# ---- bad input


def cut(length):
    return lambda model: model.bytes()[:length]


def header(place, value, form="<i"):
    def change(model):
        data = bytearray(model.bytes())
        struct.pack_into(form, data, place, value)
        return bytes(data)

    return change


def sizes(model, place, rows, columns):
    """The rows and columns before a matrix that begins ``place`` bytes behind the dictionary."""
    data = bytearray(model.bytes())
    struct.pack_into("<2q", data, 92 + len(model.dictionary) + place + 1, rows, columns)
    return bytes(data)


TABLE_END = 17 + 4 * 230 * D
BROKEN = {
    "short": (cut(50), "is cut short after 50 bytes, a fastText model begins with 92"),
    "words": (cut(300), "is cut short in entry 14 of 80"),
    "sizes": (lambda m: m.bytes()[: 92 + len(m.dictionary) + 5], "matrix of 0 × 0"),
    "table": (cut(6000), "matrix of 230 × 12 numbers at byte 1,"),
    "output": (lambda m: m.bytes()[:-1], "matrix of 80 × 12 numbers"),
    "more": (lambda m: m.bytes() + b"\0", "1 bytes follow the output matrix"),
    "version": (header(4, 13), "a fastText model of version 13, accepted are 11 and 12"),
    "dimension": (header(8, 1 << 20), "vectors of 1,048,576 numbers, accepted are 1 to 65,536"),
    "another dimension": (header(8, 11), "shape [230, 12], 80 words and 150 buckets of 11 numbers"),
    "buckets": (header(40, -1), "80 words, 0 labels, -1 buckets"),
    "more buckets": (header(40, 1 << 30), "80 words and 1,073,741,824 buckets"),
    "no words": (header(68, 0), "80 entries, 0 words"),
    "endless words": (header(64, 2**31 - 1), "claims 2,147,483,647 entries, 80 words"),
    "negative words": (header(68, -5), "-5 words"),
    "pruned": (header(84, 0, "<q"), "a pruned model that is not quantized"),
    "endless pruned": (header(84, 1 << 62, "<q"), "claims 4,611,686,018,427,387,904 kept n-grams"),
    "longest": (header(48, LONGEST_NGRAM + 1), "n-grams of up to 65 characters, limit 64"),
    "endless rows": (lambda m: sizes(m, 0, 1 << 62, 1 << 62), "a matrix of 4,611,686,018,427,387,904"),
    "negative rows": (lambda m: sizes(m, 0, -1, 12), "a matrix of -1 × 12"),
    "endless output": (lambda m: sizes(m, TABLE_END, 1 << 62, 12), "a matrix of 4,611,686,018,427,387,904"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_row_102_sizes_that_do_not_fit(tmp_path, name):
    """Cut short, too long, or with headers that claim what is not there."""
    change, says = BROKEN[name]
    (tmp_path / "m.bin").write_bytes(change(MODEL))
    for command in (("factorize", tmp_path / "m.bin", "--rank", 1), ("report", tmp_path / "m.bin")):
        assert_refused(tmp_path, *command, code=3, says=says)
    with pytest.raises(embcompress.InputError):
        read_vectors(tmp_path / "m.bin")


@pytest.mark.parametrize(
    ("words", "change", "says"),
    [
        (("a\nb", "c"), {}, "entry 1, 'a\\nb', holds a line feed"),
        (("a", "x" * 5000), {}, "entry 2: a token of 5,000 bytes, limit 4,096"),
        (("a", "x" * 9000), {}, "entry 2: a token of"),
    ],
    ids=range(3),
)
def test_row_103_broken_dictionaries(tmp_path, words, change, says):
    """A word that nothing else could hold."""
    path = made(tmp_path / "m.bin", fasttext.model(words, table(2, 4), **change))
    assert_refused(tmp_path, "report", path, code=3, says=says)


def test_row_103_words_and_labels_out_of_order(tmp_path):
    """A label among the words, and a word among the labels."""
    data, at = CLASSIFIER.bytes(), CLASSIFIER.bytes().index(b"token0\0") + 15
    (tmp_path / "m.bin").write_bytes(data[:at] + b"\1" + data[at + 1 :])
    assert_refused(tmp_path, "report", tmp_path / "m.bin", code=3, says="'token0', is of kind 1, expected 0")
    at = data.index(LABELS[0]) + len(LABELS[0]) + 9
    (tmp_path / "m.bin").write_bytes(data[:at] + b"\0" + data[at + 1 :])
    assert_refused(tmp_path, "report", tmp_path / "m.bin", code=3, says="is of kind 0, expected 1")


def test_row_105_broken_quantized_matrices(tmp_path):
    """Wherever it is cut, and with sizes that do not fit each other."""
    model, _ = quantized_model()
    data, path = model.bytes(), tmp_path / "m.ftz"
    begin = 92 + len(model.dictionary)
    for length in range(begin + 1, len(data), len(data) // 40):
        path.write_bytes(data[:length])
        assert_refused(tmp_path, "report", path, code=3, says="m.ftz")
    for offset, form, value in (
        (2, "<q", 1 << 60),
        (2, "<q", -1),
        (10, "<q", 13),
        (18, "<i", -1),
        (18, "<i", 2**31 - 1),
        (22 + 690, "<i", 13),
        (22 + 694, "<i", 2**31 - 1),
        (22 + 698, "<i", 0),
        (22 + 702, "<i", -7),
    ):
        broken = bytearray(data)
        struct.pack_into(form, broken, begin + offset, value)
        path.write_bytes(broken)
        assert_refused(tmp_path, "report", path, code=3, says="m.ftz")


def forged(path, target, change):
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, target, metadata)
    return target


def put(name, value):
    return lambda tensors: tensors.update({name: np.frombuffer(value, np.uint8)})


def with_header(**options):
    return put("fasttext.header", replace(CLASSIFIER, **options).head + b"\0")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("fasttext.header"), "holds no fasttext.header"),
        (lambda t: t.pop("fasttext.counts"), "holds no fasttext.counts"),
        (lambda t: t.pop("fasttext.output.weight"), "holds no fasttext.output.weight"),
        (lambda t: t.pop("fasttext.labels"), "does not fit the other tensors"),
        (put("fasttext.header", b""), "is cut short after 0 bytes"),
        (put("fasttext.header", bytes(5000)), "is no header of 5,000 bytes"),
        (with_header(buckets=151), "does not fit the other tensors"),
        (with_header(pruned=((0, 0),) * 150), "does not fit the other tensors"),
        (with_header(words=MODEL.words[:79]), "does not fit the other tensors"),
        (put("fasttext.labels", b"a\nb\nc"), "2 tokens are expected, one per row, there are more"),
        (put("fasttext.labels", b"a"), "2 tokens are expected, one per row, there are 1"),
        (lambda t: t.update({"fasttext.counts": np.zeros(81, np.int64)}), "does not fit the other tensors"),
        (lambda t: t.update({"fasttext.counts": np.zeros(82)}), "does not fit the other tensors"),
        (lambda t: t.update({"fasttext.counts": np.zeros((82, 2), np.int64)}), "does not fit"),
        (lambda t: t.update({"fasttext.output.weight": np.zeros((2, 11), "f4")}), "does not fit"),
        (lambda t: t.update({"fasttext.output.weight": np.zeros(2, "f4")}), "does not fit"),
        (lambda t: t.update({"fasttext.output.weight": np.zeros((2, 12), "f2")}), "does not fit"),
    ],
    ids=range(17),
)
def test_row_110_forged_compressed_models(tmp_path, change, says):
    """What expanding needs is missing or does not fit: nothing is written."""
    small = embcompress.factorize(made(tmp_path / "m.bin", CLASSIFIER), rank=5).output
    path = forged(small, tmp_path / "forged.safetensors", change)
    assert_refused(tmp_path, "expand", path, "-o", tmp_path / "o.bin", code=3, says=says)


@needs_proc
def test_rows_108_and_111_within_the_memory_of_small_files(tmp_path):
    """Nothing that is claimed is believed, and nothing else is opened or run."""
    paths = []
    for number, (change, _) in enumerate(BROKEN.values()):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(change(MODEL))
    bomb = fasttext.model(["a"], table(1, 4))
    (tmp_path / "bomb.bin.gz").write_bytes(gzip.compress(bomb.bytes() + bytes(30 << 20)))
    (tmp_path / "words.bin.gz").write_bytes(gzip.compress(MODEL.head + bytes(30 << 20)))
    jobs = [
        job for path in (*paths, tmp_path / "bomb.bin.gz", tmp_path / "words.bin.gz") for job in both(path)
    ]
    assert_harmless(tmp_path, jobs)
