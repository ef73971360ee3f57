"""Word vectors that gensim has saved: every protocol and class, with their arrays inside or beside."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from helpers import fasttext_models as fasttext
from helpers import gensim_files as gensim
from helpers.checkpoints import assert_refused, succeed, table
from helpers.hostile import assert_harmless, both, needs_proc

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.vectors import read_vectors

WORDS = ["the", "of", "日本", "New York", "", *(f"token{i}" for i in range(55))]
MATRIX = table(60, 8)
HELD = gensim.attributes(WORDS, MATRIX)
BUCKETS = 90
MODEL = fasttext.model(WORDS, table(60 + BUCKETS, 8), buckets=BUCKETS, minn=3, maxn=5)
WITH_NGRAMS = {
    **{name: value for name, value in HELD.items() if name != "vectors"},
    "vectors_vocab": MODEL.table[:60],
    "vectors_ngrams": MODEL.table[60:],
    "min_n": 3,
    "max_n": 5,
    "bucket": BUCKETS,
    "compatible_hash": True,
}
UNKNOWN = ["unseen", "日本語"]


def best(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def assert_read(path):
    found = read_vectors(path)
    assert found.tokens == tuple(WORDS)
    np.testing.assert_array_equal(found.matrix, MATRIX)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("apart", [(), ("vectors",)], ids=["inside", "beside"])
def test_keyed_vectors_of_every_protocol(tmp_path, protocol, apart):
    """The copy has the keys, their counts, and the vectors that the factors multiply to."""
    path = gensim.save(tmp_path / "w.kv", "KeyedVectors", HELD, protocol=protocol, apart=apart)
    assert_read(path)
    with open_checkpoint(path) as opened:
        assert opened.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    small = embcompress.factorize(path, rank=3).output
    assert embcompress.verify(small, against=path).is_right
    again = gensim.load(embcompress.expand(small).output)
    assert again.index_to_key == WORDS
    assert again.key_to_index == {word: row for row, word in enumerate(WORDS)}
    assert (again.vector_size, again.next_index) == (8, 60)
    assert again.expandos["count"].tolist() == HELD["expandos"]["count"].tolist()
    np.testing.assert_allclose(again.vectors, best(MATRIX, 3), atol=1e-5)


@pytest.mark.parametrize("apart", [(), ("vectors", "syn1neg")], ids=["inside", "beside"])
def test_the_vectors_of_a_model(tmp_path, apart):
    """A note says that the rest of it is not taken."""
    held = {
        "wv": ("KeyedVectors", HELD),
        "syn1neg": MATRIX,
        "random": np.random.RandomState(1),
        "hashfxn": hash,
    }
    path = gensim.save(tmp_path / "w.model", "Word2Vec", held, apart=apart, inner=["wv"])
    assert_read(path)
    done = succeed("factorize", path, "--rank", 3)
    assert "of which only the vectors are taken" in done.stderr
    dense = embcompress.expand(tmp_path / "w-svd-rank-3.safetensors").output
    assert dense.name == "w-svd-rank-3-dense.kv"
    np.testing.assert_allclose(gensim.load(dense).vectors, best(MATRIX, 3), atol=1e-5)


def test_vectors_of_gensim_3(tmp_path):
    """Their keys are in ``index2word``, their counts in objects of their own, which are not carried."""
    with gensim.classes() as found:
        entries = {}
        for row, word in enumerate(WORDS):
            entries[word] = found["Vocab"]()
            vars(entries[word]).update(index=row, count=7)
        thing = found["Word2VecKeyedVectors"]()
        vars(thing).update(index2word=WORDS, vocab=entries, vectors=MATRIX, vector_size=8)
        (tmp_path / "w.kv").write_bytes(pickle.dumps(thing, 2))
    assert_read(tmp_path / "w.kv")


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_type(tmp_path, dtype, order):
    """They are written in little-endian row order."""
    matrix = np.asarray(MATRIX, dtype, order=order)
    path = gensim.save(tmp_path / "w.kv", "KeyedVectors", {**HELD, "vectors": matrix})
    np.testing.assert_array_equal(read_vectors(path).matrix, matrix.astype(np.float32))
    found = gensim.load(embcompress.expand(embcompress.factorize(path, rank=3).output).output).vectors
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_allclose(found.astype(float), best(matrix, 3), atol=2e-3 if dtype == "<f2" else 1e-5)


@pytest.mark.parametrize("apart", [(), ("vectors_vocab", "vectors_ngrams")], ids=["inside", "beside"])
@pytest.mark.parametrize("is_model", [False, True])
def test_ngrams_come_back_as_a_model_of_fasttext(tmp_path, apart, is_model):
    """Words are composed as gensim composes them, unknown ones too."""
    if is_model:
        held, kind = {"wv": ("FastTextKeyedVectors", WITH_NGRAMS)}, "FastText"
        path = gensim.save(tmp_path / "f.model", kind, held, apart=apart, inner=["wv"])
    else:
        path = gensim.save(tmp_path / "f.kv", "FastTextKeyedVectors", WITH_NGRAMS, apart=apart)
    for source, matrix in ((path, MODEL.table), (None, best(MODEL.table, 5))):
        place = source or embcompress.factorize(path, rank=5, output=tmp_path / "s.safetensors").output
        found = read_vectors(place, [*WORDS, *UNKNOWN])
        assert {*found.tokens} == {*WORDS, *UNKNOWN}
        for token, vector in zip(found.tokens, found.matrix, strict=True):
            np.testing.assert_allclose(vector, fasttext.vector(MODEL, token, matrix), atol=1e-5)
    dense = embcompress.expand(tmp_path / "s.safetensors").output
    assert dense.name == "s-dense.bin"
    again = fasttext.read(dense.read_bytes())
    assert (again.words, again.counts) == (MODEL.words, tuple(range(3, 63)))
    assert (again.buckets, again.minn, again.maxn, again.kind) == (BUCKETS, 3, 5, fasttext.SKIPGRAM)
    np.testing.assert_allclose(again.table, best(MODEL.table, 5), atol=1e-5)
    assert replace(again, table=MODEL.table).output.shape == (0, 8)


# ---- bad input


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


@needs_proc
def test_row_108_code_in_a_pickle_is_never_run(tmp_path):
    """In the place of the vectors, beside them, of the keys, of the object; in the array beside."""
    shell = Shell(f"touch {tmp_path / 'ran'}")
    changed = ("vectors", "index_to_key", "__numpys", "expandos")
    paths = [
        gensim.save(tmp_path / f"{name}.kv", "KeyedVectors", {**HELD, name: shell}, apart=("x",))
        for name in changed[:2]
    ]
    objects = np.empty(60, object)
    objects[:] = [shell] * 60
    paths.append(gensim.save(tmp_path / "objects.kv", "KeyedVectors", {**HELD, "vectors": objects}))
    beside = {**HELD, "vectors": MATRIX}
    paths.append(gensim.save(tmp_path / "beside.kv", "KeyedVectors", beside, apart=("vectors",)))
    np.save(tmp_path / "beside.kv.vectors.npy", objects, allow_pickle=True)
    paths.append(gensim.save(tmp_path / "wv.model", "Word2Vec", {"wv": shell}))
    whole = (tmp_path / "beside.kv").read_bytes()
    paths.append(tmp_path / "cut.kv")
    paths[-1].write_bytes(whole[:-40])
    paths.append(tmp_path / "named.kv")  # a call of a name in gensim, which would import it
    paths[-1].write_bytes(b"\x80\x02cgensim.models.word2vec\nWord2Vec\nX\x04\0\0\0evil\x85R.")
    assert_harmless(tmp_path, [job for path in paths for job in both(path)])
    harmless = gensim.save(tmp_path / "other.kv", "KeyedVectors", {**HELD, "comment": shell})
    good = gensim.save(tmp_path / "good.kv", "KeyedVectors", HELD)
    for path in (harmless, good):  # what is not taken is not looked at
        succeed("report", path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("Doc2Vec", {}, "is a gensim.models.doc2vec.Doc2Vec of gensim"),
        ("KeyedVectors", {"index_to_key": [1, *WORDS[1:]]}, "key 0 is a int, not a text"),
        ("KeyedVectors", {"index_to_key": ["a\nb", *WORDS[1:]]}, "key 0, 'a\\nb', is no text of one line"),
        ("KeyedVectors", {"index_to_key": ["\ud800", *WORDS[1:]]}, "key 0, '\\ud800', is no text"),
        ("KeyedVectors", {"index_to_key": ["x" * 5000, *WORDS[1:]]}, "key 0: a token of 5,000 bytes"),
        ("KeyedVectors", {"index_to_key": WORDS[1:]}, "F32 of shape [60, 8], floats of 59 rows"),
        ("KeyedVectors", {"index_to_key": []}, "KeyedVectors"),
        ("KeyedVectors", {"vectors": None}, "holds no vectors or syn0"),
        ("KeyedVectors", {"vectors": MATRIX[0]}, "F32 of shape [8], floats of 60 rows"),
        ("KeyedVectors", {"vectors": MATRIX.astype(np.int64)}, "I64 of shape [60, 8]"),
        ("KeyedVectors", {"vectors": MATRIX.astype(np.complex64)}, "do not fit each other"),
        ("KeyedVectors", {"vectors": {}}, "holds no vectors"),
        ("FastTextKeyedVectors", {"min_n": None}, "n-grams of None to 5"),
        ("FastTextKeyedVectors", {"max_n": 400}, "n-grams of up to 400 characters, limit 64"),
        ("FastTextKeyedVectors", {"bucket": 91}, "vectors_ngrams is F32 of shape [90, 8], floats of 91 rows"),
        ("FastTextKeyedVectors", {"compatible_hash": False}, "not hashed"),
        ("FastTextKeyedVectors", {"vectors_vocab": MATRIX[:, :7]}, "vectors of [7, 8] numbers"),
    ],
    ids=range(17),
)
def test_row_108_other_objects_and_keys(tmp_path, kind, change, says):
    """What it is, and what can be done."""
    held = {**(WITH_NGRAMS if kind == "FastTextKeyedVectors" else HELD), **change}
    path = gensim.save(tmp_path / "w.kv", kind, held)
    assert_refused(tmp_path, "report", path, code=3, says=says)
    assert_refused(tmp_path, "factorize", path, "--rank", 2, code=3, says=says)


def test_row_109_arrays_that_are_missing_or_do_not_fit(tmp_path):
    """The file that is missing is named; another matrix is refused, and links lead to nothing but files."""
    path = gensim.save(tmp_path / "w.kv", "KeyedVectors", HELD, apart=("vectors",))
    beside = tmp_path / "w.kv.vectors.npy"
    whole = beside.read_bytes()
    for array, says in ((MATRIX[:59], "F32 of shape [59, 8]"), (MATRIX.astype("i8"), "int64")):
        np.save(beside, array)
        assert_refused(tmp_path, "report", path, code=3, says=says)
    beside.write_bytes(whole[:-1])
    assert_refused(tmp_path, "report", path, code=3, says="w.kv.vectors.npy")
    beside.unlink()
    assert_refused(tmp_path, "report", path, code=2, says="needs its array in w.kv.vectors.npy beside it")
    beside.symlink_to("/dev/zero")
    assert_refused(tmp_path, "report", path, code=2, says="w.kv.vectors.npy")


def test_row_109_arrays_in_the_pickle_that_do_not_fit(tmp_path):
    """Bytes, shape and type are compared before anything is made of them."""
    path = gensim.save(tmp_path / "w.kv", "KeyedVectors", HELD, protocol=3)
    data = path.read_bytes()
    shape = b"K\x3cK\x08\x86"  # 60, 8
    assert data.count(shape) == 1
    for other in (b"K\x3cK\x09\x86", b"K\xffK\xff\x86", b"J\xff\xff\xff\xffK\x08\x86", b"NN\x86"):
        path.write_bytes(data.replace(shape, other))
        assert_refused(tmp_path, "report", path, code=3, says="w.kv")
    path.write_bytes(data.replace(b"X\x02\0\0\0f4", b"X\x02\0\0\0O8"))
    assert_refused(tmp_path, "report", path, code=3, says="w.kv")
