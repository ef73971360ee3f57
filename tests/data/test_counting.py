"""Token counts from files, with csv as oracle, and from texts, with collections.Counter and transformers."""

from __future__ import annotations

import csv
import gc
import io
import itertools
import json
import math
import pickle
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, contents, directory, stored, succeed, table
from helpers.refusals import CODES, assert_says
from helpers.refusals import refused as refused_with
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from embcompress.checkpoint import open_checkpoint
from embcompress.data.counting import count_texts, read_counts, read_texts
from embcompress.data.encoded import Encoded
from embcompress.data.tokenizing import tokenizer_of
from embcompress.errors import InputError, UsageError

VOCABULARY = {"the": 0, "cat": 1, "7": 2, "##s": 3, '"': 4, ",": 5, "a\nb": 6, "é": 7, "": 8}
ROWS = 10
FROM_0 = "expected a number from 0 to 1e+15"


def unasked():
    raise AssertionError("the vocabulary was asked for")


def write(folder, content, name="counts.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def array(folder, values, **how):
    np.save(folder / "counts.npy", values, **how)
    return folder / "counts.npy"


def counted(path, rows=ROWS, vocabulary=VOCABULARY):
    return read_counts(path, rows, lambda: vocabulary).tolist()


def by_id(path, rows=ROWS):
    """The counts of a file that must be read without the vocabulary."""
    return read_counts(path, rows, unasked).tolist()


def at(**counts):
    """Ten counts, those of rows ``r0`` … as given and all others 0."""
    return [float(counts.get(f"r{row}", 0)) for row in range(ROWS)]


def refused(path, kind, *says, read=counted):
    """Reading ends in one line of ``kind`` that holds all of ``says``, and leaves everything as it was."""
    before = contents(path.parent)
    with pytest.raises((UsageError, InputError)) as caught:
        read(path)
    assert type(caught.value) is kind
    assert caught.value.exit_code == CODES[kind]
    assert caught.value.remedy
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: ")
    assert_says(line, *says)
    assert contents(path.parent) == before


# ---- counts in .csv and .tsv

tokens = st.sampled_from([*VOCABULARY, "dog", "0", "007", "３"]) | st.text(
    st.sampled_from("\",;\n\r\t '|é\u2028#7") | st.characters(codec="utf-8", exclude_characters="\0"),
    max_size=6,
)
numbers = st.integers(0, 10**15) | st.floats(0, 1e15)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(st.tuples(tokens, numbers), min_size=1, max_size=12),
    header=st.sampled_from([None, "token", " Token", "TOKEN", "word", "subword, if any"]),
    tsv=st.booleans(),
    mark=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    known=st.sets(tokens, max_size=6),
)
@example([("7", 1), ("0", 2)], "token", False, False, "\n", set())
@example([("7", 1), ("0", 2)], None, False, False, "\n", set())
def test_what_csv_writes_is_counted(tmp_path_factory, lines, header, tsv, mark, end, known):
    """Any tokens, however quoted, add up to what a Counter has; those the model lacks are passed over."""
    vocabulary = {token: row for row, token in enumerate(sorted(known | {"the", "7"}))}
    written = io.StringIO(newline="")
    writer = csv.writer(written, "excel-tab" if tsv else "excel", quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerows([(header, "count")] if header else [])
    writer.writerows((token, f" {count!r}") for token, count in lines)
    path = tmp_path_factory.mktemp("counts") / ("counts.TSV" if tsv else "counts.csv")
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + written.getvalue().encode())

    numbered = all(re.fullmatch(r"\d+", token) for token, _ in lines)
    expected = Counter()
    if numbered and (header is None or header.strip().lower() != "token"):
        past = [token for token, _ in lines if int(token) >= len(vocabulary)]
        if past:
            refused(path, InputError, "id '", read=lambda path: by_id(path, len(vocabulary)))
            return
        for token, count in lines:
            expected[int(token)] += count
        found = by_id(path, len(vocabulary))
    else:
        for token, count in lines:
            if token in vocabulary:
                expected[vocabulary[token]] += count
        if not expected.keys():
            says = f"none of its {len(lines)} tokens is one of the model's {len(vocabulary)}"
            refused(path, UsageError, says, read=lambda path: counted(path, len(vocabulary), vocabulary))
            return
        found = counted(path, len(vocabulary), vocabulary)
    assert found == pytest.approx([expected[row] for row in range(len(vocabulary))], rel=1e-12)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("the,3\n7,2\n", at(r0=3, r2=2)),  # one word, so all are tokens
        ("0,3\n7,2\n", at(r0=3, r7=2)),  # all whole numbers: ids
        ("token,count\n7,2\n", at(r2=2)),  # the header says what they are
        ("id,count\n7,2\n", at(r7=2)),
        (" ID , n\n007,2\n7,1\n", at(r7=3)),
        ("word,count\n7,2\n", at(r7=2)),  # a header that says neither leaves it to the numbers
        ("word,count\n7,2\nthe,1\n", at(r0=1, r2=2)),
        ("7,2\n-1,5\n", at(r2=2)),  # no id is below 0, so these are tokens, and the model has no -1
        ("7,2\n²,5\n", at(r2=2)),
        ("the,1\ndog,9\nthe,2.5\nthe,1e1\n", at(r0=13.5)),
        ("7,1\n7,2\n9,0\n", at(r7=3)),
        ('"""",1\n",",2\n"a\nb",3\n"",4\n', at(r4=1, r5=2, r6=3, r8=4)),
        ("\n\nthe,1\n\n\r\ncat,2", at(r0=1, r1=2)),  # blank lines, and no end behind the last
        ("the,0\n", at()),
        ("the, 5 \n", at(r0=5)),
        ("the ,5\ncat,1\n", at(r1=1)),  # spaces belong to a token
        ("The,5\ncat,1\n", at(r1=1)),  # and so do capitals
    ],
)
def test_tokens_and_ids_are_told_apart(tmp_path, content, expected):
    """The header decides, else the numbers; ids are read without a look at the vocabulary."""
    assert counted(write(tmp_path, content)) == expected
    assert counted(write(tmp_path, content.replace(",", "\t"), "counts.tsv")) == (
        expected if '","' not in content else at(r4=1, r6=3, r8=4)
    )


def test_the_vocabulary_is_asked_for_tokens_only(tmp_path):
    """A checkpoint without a tokenizer takes ids and arrays: they need none."""
    assert by_id(write(tmp_path, "id,count\n3,4\n")) == at(r3=4)
    assert by_id(array(tmp_path, np.arange(ROWS))) == list(range(ROWS))
    with pytest.raises(AssertionError, match="asked for"):
        by_id(write(tmp_path, "the,4\n"))


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("token,count\nthe,3\ncat,x\n", 3, f"count 'x', {FROM_0}"),
        ("the,3\ncat,x\n", 2, f"count 'x', {FROM_0}"),  # only the first line can be a header
        ("the,3\ncat,\n", 2, f"count '', {FROM_0}"),
        ("token,count\ntoken,count\nthe,1\n", 2, "count 'count'"),
        ("token,count\nthe,-1\n", 2, f"count '-1', {FROM_0}"),
        ("the,-1e-9\n", 1, "count '-1e-9'"),
        ("the,nan\n", 1, f"count 'nan', {FROM_0}"),
        ("the,1\ncat,-nan\n", 2, "count '-nan'"),
        ("the,inf\n", 1, f"count 'inf', {FROM_0}"),
        ("the,1e400\n", 1, "count '1e400'"),
        ("the,-inf\n", 1, "count '-inf'"),
        ("the,1;2\ncat,0x10\n", 2, "count '0x10'"),
        ("\n\nthe,1\n\n\ncat,x\n", 6, "count 'x'"),  # blank lines are lines
        ('"a\nb",1\n"the",2\ncat,x\n', 4, "count 'x'"),  # and a token may have several
        ('the,1\n"a\nb",x\n', 2, "count 'x'"),  # told by the first of them
        ("the,1,2\n", 1, "3 fields, expected a token or id and a count"),
        ("the,1\ncat\n", 2, "1 field, expected a token or id and a count"),
        ("the 1\n", 1, "1 field"),
        ("token,count,share\n", 1, "3 fields"),
        ("the,1,000\n", 1, "3 fields"),
        ("id,count\n3,1\n10,1\n", 3, "id '10', the table has rows up to 9"),
        ("10,1\n", 1, "id '10', the table has rows up to 9"),
        ("id,count\nthe,1\n", 2, "id 'the'"),
        ("id,count\n-1,1\n", 2, "id '-1'"),
        ("id,count\n1.0,1\n", 2, "id '1.0'"),
        ("id,count\n,1\n", 2, "id ''"),
        ("id,count\n²,1\n", 2, "id '²'"),
        ('id,count\n"1\n2",1\n', 2, "id '1\\n2'"),
        ("id,count\n\n0,1\n\n99999999999999999999,1\n", 5, "id '99999999999999999999'"),
        ('the,1\n"cat,2\n', 2, "the quote that opens here is still open"),
        ('the,1\n"cat"s,2\n', 2, "after the closing quote"),
        (b"the,1\ncat,2\n\xff,3\n", 3, "byte 0xFF after '' is not UTF-8"),
        ("the,1\n\0,3\n", 2, "holds a NUL"),
        ("the,1\n\x1b[2J,\x1b[2J\n", 2, "count '\\x1b[2J'"),
    ],
)
def test_lines_that_cannot_be_counted_are_told_by_their_number(tmp_path, content, line, says):
    """Each is refused with its line, what stands there and what was expected."""
    refused(write(tmp_path, content), InputError, f": line {line}: ", says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no count"),
        (b"\n\n", "holds no count"),
        (b"token,count\n", "holds no count"),
        ("the,1\n".encode("utf-16"), "is UTF-16-LE text"),
        (b"\x1f\x8b\x08\0", "is compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ],
)
def test_files_without_counts_are_refused(tmp_path, content, says):
    """An empty file, one of a header only, and what is no text."""
    refused(write(tmp_path, content), InputError, says)


def test_counts_of_another_model_are_refused(tmp_path):
    """Not one token of the model's: the request is wrong, and the remedy is to count again."""
    path = write(tmp_path, "Ġthe,3\nĠcat,2\n")
    refused(path, UsageError, "none of its 2 tokens is one of the model's 9", "pass the texts with --corpus")


@pytest.mark.parametrize("name", ["none.csv", "none.npy", "none"])
def test_no_file(tmp_path, name):
    """A path that is no file is a matter of the request, whatever its suffix."""
    refused(tmp_path / name, UsageError, "does not exist", ".csv, .tsv, .txt or .npy")
    (tmp_path / name).mkdir()
    refused(tmp_path / name, UsageError, "is not a regular file", ".csv, .tsv, .txt or .npy")


@pytest.mark.parametrize("name", ["counts.dat", "counts.npz", "counts"])
def test_other_suffixes_are_refused(tmp_path, name):
    """What read_counts documents: a file of no such suffix is a matter of the request."""
    refused(write(tmp_path, "0,1\n", name), UsageError, ".csv, .tsv, .txt or .npy")


def test_an_id_of_any_length_is_refused_with_its_line(tmp_path):
    """Python converts 4,300 digits at most; a file may hold more."""
    refused(write(tmp_path, f"0,1\n{'9' * 5000},1\n"), InputError, ": line 2: id '999", "rows up to 9")


def test_there_is_one_header(tmp_path):
    """A line that is no count is refused below a header with a blank name too."""
    refused(write(tmp_path, ",count\nthe,x\ncat,1\n"), InputError, ": line 2: ", "count 'x'")


# ---- counts in .npy


@pytest.mark.parametrize("kind", ["u1", "i4", "<i8", ">u8", "f2", ">f4", "f8", "longdouble"])
def test_arrays_of_any_number_type_are_read(tmp_path, kind):
    """Whole numbers and floats of either byte order become float64."""
    values = np.array([0, 3, 1, 200, 0, 0, 7, 1, 1, 9])
    path = array(tmp_path, values.astype(kind))
    found = read_counts(path, ROWS, unasked)
    assert found.dtype == np.float64
    assert found.tolist() == values.tolist()
    np.save(tmp_path / "COUNTS.NPY.npy", values)
    (tmp_path / "COUNTS.NPY.npy").rename(tmp_path / "COUNTS.NPY")
    assert by_id(tmp_path / "COUNTS.NPY") == values.tolist()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.ones(9), "counts are float64 [9], expected 10 numbers"),
        (np.ones(11, np.int32), "counts are int32 [11], expected 10 numbers"),
        (np.ones((10, 1)), "counts are float64 [10, 1], expected 10 numbers"),
        (np.ones((2, 5)), "counts are float64 [2, 5]"),
        (np.array(3), "counts are int64 []"),
        (np.array([], np.float32), "counts are float32 [0]"),
        (np.ones(10, bool), "counts are bool [10]"),
        (np.ones(10, complex), "counts are complex128 [10]"),
        (np.array(["1"] * 10), "counts are <U1 [10]"),
        (np.zeros(10, "M8[s]"), "counts are datetime64[s] [10]"),
        (np.zeros(10, [("id", "i4"), ("count", "i4")]), "[10], expected 10 numbers"),
        (np.array([0] * 9 + [-1]), f"count -1 in row 9, {FROM_0}"),
        (np.array([0, 0, np.nan, -1] + [0] * 6), f"count nan in row 2, {FROM_0}"),
        (np.array([0, np.inf] * 5, "f2"), f"count inf in row 1, {FROM_0}"),
        (np.array([1] * 8 + [-np.inf] * 2), f"count -inf in row 8, {FROM_0}"),
    ],
)
def test_arrays_that_are_no_counts_are_refused(tmp_path, values, says):
    """The kind and shape that are there, or the first number that is no count and its row."""
    refused(array(tmp_path, values), InputError, says)


class Explosive:
    """Unpickling one writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_objects_are_refused_unread(tmp_path):
    """An array of objects is a pickle, and so is what np.load takes for one: neither is unpacked."""
    trap = tmp_path / "sprung"
    with open(tmp_path / "real.npy", "wb") as file:
        np.save(file, np.array([Explosive(trap)] * ROWS, object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Explosive(trap)))
    for name in ("real.npy", "bare.npy"):
        refused(tmp_path / name, InputError, "is not a NumPy array", "numpy.save")
        assert not trap.exists()
    with pytest.warns(ResourceWarning):  # the control: it does go off, and nobody closes what it opened
        pickle.loads((tmp_path / "bare.npy").read_bytes())
    assert trap.exists()


def header(text, data=b"\0" * 80):
    """A .npy file of version 1 with this header, however wrong it is."""
    padded = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + data


def described(shape, descr="'<f8'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


BROKEN = {
    "empty": b"",
    "text": b"hello, world",
    "magic only": b"\x93NUMPY",
    "version": b"\x93NUMPY\x09\x00" + b"\0" * 80,
    "cut short": header(described("(10,)"), b"\0" * 79),
    "no dict": header("[]"),
    "negative": header(described("(-1,)")),
    "no type": header(described("(10,)", "'no'")),
    "lfs": b"version https://git-lfs.github.com/spec/v1\n",
}
UNCAUGHT = {
    "open bracket": header("("),
    "indent": header("\n   x\n y"),
    "beyond int64": header(described(f"(1{'0' * 30},)")),
    "zip": b"PK\x03\x04" + b"\0" * 80,
    "huge": header(described("(1000000000000000,)")),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_arrays_are_refused(tmp_path, content):
    """A file that is no array, or less of one than it says."""
    refused(write(tmp_path, content, "counts.npy"), InputError, "is not a NumPy array", "numpy.save")


@pytest.mark.parametrize("content", UNCAUGHT.values(), ids=UNCAUGHT)
def test_arrays_broken_in_rarer_ways_are_refused(tmp_path, content):
    """TokenError, IndentationError, OverflowError, BadZipFile, MemoryError: all mean a broken file."""
    refused(write(tmp_path, content, "counts.npy"), InputError, "is not a NumPy array", "numpy.save")


def test_an_archive_of_arrays_is_refused_and_closed(tmp_path):
    """An .npz under the name of an .npy is told as what it is, and leaves no open file."""
    np.savez(tmp_path / "counts.npz", counts=np.ones(ROWS))
    path = (tmp_path / "counts.npz").rename(tmp_path / "counts.npy")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refused(path, InputError, "counts are NpzFile, expected 10 numbers")
        gc.collect()
    assert not [warning for warning in seen if str(path) in str(warning.message)]


# ---- texts

line_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=20)
csv_texts = st.text(
    st.sampled_from('",;\n\r\t é\u2028') | st.characters(codec="utf-8", exclude_characters="\0"), max_size=20
)


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(line_texts, min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    name=st.sampled_from(["texts.txt", "texts", "texts.md"]),
)
def test_each_line_is_a_text(tmp_path_factory, lines, end, last, name):
    """Only LF and CRLF end a line: what Unicode calls a line's end belongs to the text."""
    path = tmp_path_factory.mktemp("texts") / name
    path.write_bytes((end.join(lines) + end * last).encode())
    whole = lines if last or lines[-1] else lines[:-1]
    if lines[0].startswith("\ufeff"):
        whole = [lines[0][1:], *whole[1:]]
    assert [*read_texts(path)] == whole


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(csv_texts, csv_texts), max_size=8), tsv=st.booleans(), mark=st.booleans())
def test_a_column_of_a_csv_is_read(tmp_path_factory, rows, tsv, mark):
    """Texts of a CSV or TSV are those that csv.DictReader has, of several lines and quoted ones too."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, "excel-tab" if tsv else "excel", quoting=csv.QUOTE_ALL)
    writer.writerows([("label", "a text"), *rows])
    path = tmp_path_factory.mktemp("texts") / ("texts.tsv" if tsv else "texts.CSV")
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + written.getvalue().encode())
    if ("label", "a text") in rows:
        refused(path, InputError, "the header appears here again", read=lambda p: [*read_texts(p, "a text")])
        return
    oracle = csv.DictReader(
        io.StringIO(written.getvalue(), newline=""), dialect="excel-tab" if tsv else "excel"
    )
    assert [*read_texts(path, "a text")] == [row["a text"] for row in oracle] == [b for _, b in rows]


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("t.csv", "utterance,label\na,b\n", UsageError, ("line 1: no column 'text'", "--text-column")),
        ("t.csv", "Text\na\n", UsageError, ("'Text' differs by spaces or capitals only", "--text-column")),
        ("t.csv", "text,text\na,b\n", InputError, ("column 'text' appears 2 times",)),
        ("t.csv", "text,label\na,b\nc\n", InputError, ("line 3: 1 field, expected 2",)),
        ("t.csv", "text,label\na,b\nc,d,e\n", InputError, ("line 3: 3 fields", "in quotes")),
        ("t.csv", 'text\na\n"b\n', InputError, ("line 3: the quote that opens here",)),
        ("t.csv", "", InputError, ("is empty",)),
        ("t.csv", b"text\na\n\xe9\n", InputError, ("line 3: byte 0xE9 after '' is not UTF-8",)),
        (
            "t.txt",
            b"a\nb caf\xe9\n",
            InputError,
            ("line 2: byte 0xE9 after 'b caf' is not UTF-8", "--encoding cp1252"),
        ),
        ("t.txt", "a\n\n\0\n", InputError, ("line 3: holds a NUL",)),
        ("t.txt", "a\n".encode("utf-16"), InputError, ("is UTF-16-LE text", "pass --encoding utf-16")),
        ("t.txt", b"\x1f\x8b\x08\0", InputError, ("the gzip stream is cut short", "download it again")),
        ("t.txt", b"ok\n" + b"x" * (1 << 20) + b"y\n", InputError, ("line 2: a record of more than",)),
    ],
)
def test_texts_that_cannot_be_read(tmp_path, name, content, kind, says):
    """Told by the line; a column that is not there is a matter of the request."""
    refused(write(tmp_path, content, name), kind, *says, read=lambda path: [*read_texts(path)])


def test_no_texts(tmp_path):
    """A path that is no file is a matter of the request."""
    for make, says in ((None, "does not exist"), ("mkdir", "is not a regular file")):
        if make:
            (tmp_path / "none.txt").mkdir()
        refused(tmp_path / "none.txt", UsageError, says, ".txt", read=lambda path: [*read_texts(path)])


@pytest.mark.parametrize("name", ["t.txt", "t.tsv"])
def test_the_limit_is_that_of_a_line(tmp_path, name):
    """More than a record may hold in all its lines is read, each of them a text."""
    path = write(tmp_path, "text\n" + ("x" * 100_000 + "\n") * 15, name)
    assert [len(text) for text in read_texts(path)] == [4] * (name == "t.txt") + [100_000] * 15


@pytest.mark.parametrize("name", ["t.txt", "t.csv"])
def test_texts_come_one_by_one(tmp_path, name):
    """What stands before a broken line is read before the line is met: nothing is read ahead."""
    path = write(tmp_path, b"text\nfirst\nsecond\n\xff\n", name)
    texts = read_texts(path)
    expected = ["text", "first", "second"] if name == "t.txt" else ["first", "second"]
    assert [*itertools.islice(texts, len(expected))] == expected
    with refused_with(InputError, "line 4"):
        next(texts)


# ---- counting


def encoder(ids):
    """Splits at white space and looks each word up; calls are noted in ``seen``."""
    seen = []

    def encode(texts):
        seen.append([*texts])
        return Encoded.of([ids[word] for word in text.split()] for text in texts)

    return encode, seen


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from("abcdef"), max_size=9).map(" ".join), max_size=30))
def test_counts_are_those_of_a_counter(texts):
    """Row by row what collections.Counter has; rows without a token are 0, and so is all for no texts."""
    ids = {"a": 0, "b": 3, "c": 1, "d": 6, "e": 7, "f": 8}
    expected = Counter(ids[word] for text in texts for word in text.split())
    found = count_texts(texts, encoder(ids)[0], 12, "model")
    assert found.dtype == np.float64
    assert found.tolist() == [expected[row] for row in range(12)]


def test_texts_are_counted_batch_by_batch():
    """Texts are taken from a generator as they are encoded, and counts of all batches add up."""
    total, given_out = 7000, 0

    def texts():
        nonlocal given_out
        for number in range(total):
            given_out += 1
            yield "a" if number % 7 else "b a"

    encode, seen = encoder({"a": 1, "b": 2})
    passed = 0

    def watched(batch):
        nonlocal passed
        passed += len(batch)
        assert given_out == passed, "texts wait to be encoded"
        return encode(batch)

    assert count_texts(texts(), watched, 4, "model").tolist() == [0, 7000, 1000, 0]
    assert len(seen) > 2
    assert max(map(len, seen)) <= 4096
    assert sum(map(len, seen)) == total


def test_a_token_beyond_the_table_is_refused():
    """The last row is one, the next is not; the error names both, and the tokenizer."""
    encode, _ = encoder({"a": 0, "z": 1234})
    assert count_texts(["a", "z"], encode, 1235, "m.pt").tolist()[-1] == 1
    with refused_with(InputError, "m.pt: token 1,234, the table has rows up to 1,233"):
        count_texts(iter(["a", "z"]), encode, 1234, "m.pt")


# ---- with the checkpoint's own tokenizer

SENTENCES = [
    "A man is playing a guitar.",
    "Das Mädchen isst einen Apfel, nicht wahr?",
    "",
    "   ",
    "unbelievably 🤖 naïve \u2028 [MASK] [CLS] tokenization 東京",
    "word " * 700,  # more than the model reads, and than its tokenizer.json cuts at
    "short",
]


def test_minilm_counts_are_those_of_transformers(minilm):
    """All tokens of all texts, whole, with one [CLS] and one [SEP] a text and no padding."""
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(minilm)
    expected = Counter()
    for text in SENTENCES:
        expected.update(tokenizer(text, truncation=False, padding=False)["input_ids"])
    with open_checkpoint(minilm) as checkpoint:
        own = tokenizer_of(checkpoint)
    found = count_texts(iter(SENTENCES), own.count, 30522, str(minilm))
    assert {row: found[row] for row in np.flatnonzero(found)} == expected
    cls, sep, pad, word = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[PAD]", "word"])
    assert found[cls] == len(SENTENCES) + 1  # one is written out in a text
    assert found[sep] == len(SENTENCES)
    assert found[pad] == 0
    assert found[word] == 700


def test_minilm_texts_weigh_through_its_directory(minilm, tmp_path):
    """factorize --corpus gives the bytes that transformers' counts give, special tokens counted."""
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(minilm)
    texts = [text for text in SENTENCES if text.strip()]
    expected = np.zeros(30522)
    for text in texts:
        np.add.at(expected, tokenizer(text, truncation=False)["input_ids"], 1)
    model = directory(tmp_path / "model", [{"embeddings.word_embeddings.weight": table(30522, 4)}])
    (model / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
    write(tmp_path, "\n".join(texts), "texts.txt")
    array(tmp_path, expected)
    without = expected.copy()
    without[[101, 102]] = 0
    np.save(tmp_path / "without.npy", without)
    made = []
    for how in (("--corpus", "texts.txt"), ("--weights", "counts.npy"), ("--weights", "without.npy")):
        output = tmp_path / f"from {how[1]}"
        succeed("factorize", model, "--rank", 2, how[0], tmp_path / how[1], "--smoothing", 2, "-o", output)
        made.append(stored(output / "model.safetensors"))
    assert made[0] == made[1] != made[2]


def test_counting_leaves_encoding_as_it_is(minilm):
    """The control: a classifier's texts go without special tokens and are cut, before and after counting."""
    with open_checkpoint(minilm) as checkpoint:
        own = tokenizer_of(checkpoint)
    before = own.encode(SENTENCES, 5).tokens.tolist()
    counts = count_texts(SENTENCES, own.count, 30522, "")
    assert own.encode(SENTENCES, 5).tokens.tolist() == before
    assert not {101, 102} & {*own.encode(["A man"], 5).tokens.tolist()}
    assert counts.sum() > len(before) + 2 * len(SENTENCES)


def test_texts_of_another_tokenizer_are_refused(minilm, tmp_path):
    """Where the table is smaller than the vocabulary, factorize stops with the id that has no row."""
    save_file({"embedding.weight": table(2000, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
    write(tmp_path, "the robot tokenization\n", "texts.txt")
    command = ("factorize", tmp_path / "model.safetensors", "--rank", 2, "--corpus", tmp_path / "texts.txt")
    assert_refused(tmp_path, *command, code=3, says="the table has rows up to 1,999; use the tokenizer")


def classifier(folder, suffix, tokenizer, rows):
    """A classifier's file as ``train`` writes it, by torch and safetensors alone."""
    path = folder / f"model{suffix}"
    record = {"layout": 1, "tokenizer": tokenizer, "labels": ["no", "yes"], "max_length": 3}
    weights = table(rows, 8)
    if suffix == ".pt":
        torch.save(
            {"state_dict": {"embedding.weight": torch.from_numpy(weights)}, "classifier": record}, path
        )
    else:
        metadata = {"format": "pt", "classifier": json.dumps(record)}
        save_file({"embedding.weight": weights}, path, metadata=metadata)
    return path


WORDS = ["<pad>", "<unk>", "the", "cat", "isn't", ".", "7", *(f"w{i}" for i in range(23))]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_classifier_counts_with_its_own_rule(tmp_path, suffix):
    """Its record wins over a tokenizer.json beside it; a text is counted whole, past what it reads."""
    path = classifier(tmp_path, suffix, {"rule": "words", "vocabulary": WORDS}, len(WORDS))
    (tmp_path / "tokenizer.json").write_text("not this one")
    texts = ["The cat isn't THE dog.", "the the the the cat", "dog"]
    by_hand = {"the": 6, "cat": 2, "isn't": 1, "<unk>": 2, ".": 1}
    with open_checkpoint(path) as checkpoint:
        found = count_texts(texts, tokenizer_of(checkpoint).count, len(WORDS), str(path))
    assert {WORDS[row]: found[row] for row in np.flatnonzero(found)} == by_hand

    # The same through the command line, against a file of these counts.
    write(tmp_path, "text,label\n" + "".join(f'"{text}",x\n' for text in texts), "texts.csv")
    write(tmp_path, "token,count\n" + "".join(f"{t},{n}\n" for t, n in by_hand.items()))
    made = []
    for how in (("--corpus", tmp_path / "texts.csv"), ("--weights", tmp_path / "counts.csv")):
        output = tmp_path / f"{how[0]}{suffix}"
        result = succeed("factorize", path, "--rank", 3, *how, "-o", output, "--json")
        made.append(json.loads(result.stdout)["tables"][0])
    assert made[0]["weighted_error"] == made[1]["weighted_error"]
    assert made[0]["weighting"] == "texts.csv and the order of its tokens, (count+1)^0.5"
    assert made[1]["weighting"] == "counts.csv and the order of its tokens, (count+1)^0.5"
    assert not math.isclose(made[0]["weighted_error"], made[0]["relative_error"], rel_tol=1e-3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("tokenizer", "code", "says"),
    [
        ({"rule": "words", "vocabulary": ["a"]}, 3, "its tokenizer cannot be read (ValueError: a vocabulary"),
        ({"rule": "words", "vocabulary": [1]}, 3, "its tokenizer cannot be read (TypeError"),
        ({"rule": "morse"}, 3, "its tokenizer cannot be read (KeyError: 'morse')"),
        ({"rule": "tokenizer.json", "json": "{"}, 3, "tokenizer.json: cannot be read"),
        ("words", 3, "its tokenizer cannot be read (TypeError"),
    ],
)
def test_a_broken_record_is_refused(tmp_path, suffix, tokenizer, code, says):
    """What a stranger wrote into it is no traceback."""
    path = classifier(tmp_path, suffix, tokenizer, 30)
    write(tmp_path, "a\n", "texts.txt")
    command = ("factorize", path, "--rank", 2, "--corpus", tmp_path / "texts.txt")
    assert_refused(tmp_path, *command, code=code, says=says)


def test_a_checkpoint_without_tokenizer_is_refused_with_the_remedy(tmp_path):
    """Texts cannot be counted, nor named tokens placed; both remedies are told, and taking one works."""
    path = tmp_path / "model.safetensors"
    save_file({"embedding.weight": table(30, 8)}, path)
    write(tmp_path, "a\n", "texts.txt")
    write(tmp_path, "cat,3\n")
    texts = ("factorize", path, "--rank", 2, "--corpus", tmp_path / "texts.txt")
    assert_refused(tmp_path, *texts, code=2, says=f"put the model's tokenizer.json into {tmp_path}, or give")
    counts = ("factorize", path, "--rank", 2, "--weights", tmp_path / "counts.csv")
    assert_refused(tmp_path, *counts, code=2, says="put the model's tokenizer.json or vocab.txt into")
    write(tmp_path, "\n".join(WORDS) + "\n", "vocab.txt")
    vocabulary = succeed(*counts, "-o", tmp_path / "a.safetensors", "--json")
    write(tmp_path, f"id,count\n{WORDS.index('cat')},3\n")
    ids = succeed(*counts, "-o", tmp_path / "b.safetensors", "--json")
    first, second = (json.loads(result.stdout)["tables"][0]["weighted_error"] for result in (vocabulary, ids))
    assert first == second


def test_a_tokenizer_json_that_is_no_text_is_refused(tmp_path):
    """A file cut or overwritten is told like any other that cannot be read."""
    save_file({"embedding.weight": table(30, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": "\xff\xfe"}')
    write(tmp_path, "a\n", "texts.txt")
    command = ("factorize", tmp_path / "model.safetensors", "--rank", 2, "--corpus", tmp_path / "texts.txt")
    assert_refused(tmp_path, *command, code=3, says="tokenizer.json")


def test_a_remedy_can_be_taken(tmp_path):
    """A CSV of texts with semicolons is refused with the option of factorize that reads it."""
    path = classifier(tmp_path, ".pt", {"rule": "words", "vocabulary": WORDS}, len(WORDS))
    write(tmp_path, "text;label\nthe cat;x\n", "texts.csv")
    command = ("factorize", path, "--rank", 2, "--corpus", tmp_path / "texts.csv")
    assert_refused(tmp_path, *command, code=2, says="not delimited by ','")
    succeed(*command, "--delimiter", ";")


@pytest.mark.parametrize(("name", "content"), [("texts.txt", ""), ("texts.csv", "text,label\n")])
def test_texts_without_a_token_are_refused(tmp_path, name, content):
    """A corpus that came out empty is a mistake, not a wish for equal weights."""
    path = classifier(tmp_path, ".pt", {"rule": "words", "vocabulary": WORDS}, len(WORDS))
    write(tmp_path, content, name)
    assert_refused(
        tmp_path, "factorize", path, "--rank", 2, "--corpus", tmp_path / name, code=3, says="no text"
    )
