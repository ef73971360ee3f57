"""Files of texts as they are met: each is read alike, and a wrong reading names the right one."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import tracemalloc
import zlib

import pytest
from helpers.checkpoints import assert_refused, run, succeed
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.classifiers.record import read_record
from embcompress.data.counting import read_texts
from embcompress.data.labelled import label_set, read_labelled
from embcompress.data.text_format import TextFormat
from embcompress.errors import InputError, UsageError

ROWS = [
    *((f"play song {i}, “loud”", "music") for i in range(12)),
    *((f'will it "rain" on day {i}', "weather é") for i in range(12)),
]


def as_csv(rows, *header, delimiter=",", quoting=csv.QUOTE_MINIMAL):
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, quoting=quoting, quotechar='"').writerows(
        [*([header] if header else ()), *rows]
    )
    return written.getvalue()


PLAIN = as_csv(ROWS, "text", "label")
BACK = [(label, "x", text) for text, label in ROWS]
JSONL = "".join(
    json.dumps({"id": 7, "label": b, "text": a}, ensure_ascii=bool(len(a) % 2)) + "\n" for a, b in ROWS
)
FASTTEXT = "".join(f"__label__{b.replace(' ', '-')} {a}\n" for a, b in ROWS)
TSV = "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS)
NUMBERS = ("--no-header", "--text-column", "3", "--label-column", "1")

# name of the file, its bytes, and the options that read it
FILES = {
    "csv": ("t.csv", PLAIN.encode(), ()),
    "gzip": ("t.csv.gz", gzip.compress(PLAIN.encode()), ()),
    "gzip by its first bytes": ("t.csv", gzip.compress(PLAIN.encode()), ()),
    "gzip in parts": ("t.csv.gz", gzip.compress(b"\xef\xbb\xbf") + gzip.compress(PLAIN.encode()), ()),
    "no header": ("t.csv", as_csv(BACK).encode(), NUMBERS),
    "plain quotes": ("t.tsv", TSV.encode(), ("--quoting", "none")),
    "tsv, gzip": ("t.tsv.gz", gzip.compress(TSV.encode()), ("--quoting", "none")),
    "json lines": ("t.jsonl", JSONL.encode(), ()),
    "json lines by option": ("t.txt", b"\n" + JSONL.encode(), ("--text-format", "jsonl")),
    "json lines, gzip": ("t.jsonl.gz", gzip.compress(JSONL.encode()), ()),
    "cp1252": ("t.csv", PLAIN.encode("cp1252"), ("--encoding", "cp1252")),
    "utf-8 with a mark": ("t.csv", PLAIN.encode("utf-8-sig"), ("--encoding", "utf-8-sig")),
    "utf-16": ("t.csv", PLAIN.encode("utf-16"), ("--encoding", "UTF-16")),
    "utf-16-be": ("t.csv", ("\ufeff" + PLAIN).encode("utf-16-be"), ("--encoding", "utf16")),
    "utf-16-le, no mark": ("t.csv", PLAIN.encode("utf-16-le"), ("--encoding", "utf-16-le")),
    "utf-32, gzip": ("t.csv", gzip.compress(PLAIN.encode("utf-32")), ("--encoding", "utf-32")),
    "utf-16 json lines": ("t.jsonl", JSONL.encode("utf-16"), ("--encoding", "utf-16")),
    "fasttext": ("t.txt", FASTTEXT.encode(), ()),
    "fasttext, gzip": ("t.train.gz", gzip.compress(FASTTEXT.encode()), ()),
    "fasttext by option": ("t.csv", FASTTEXT.encode(), ("--text-format", "fasttext")),
}


def options(words):
    """What the options of a command line are in Python."""
    values, flags = {}, dict(itertools.pairwise(words))
    form = TextFormat(
        flags.get("--text-format"),
        False if "--no-header" in words else None,
        flags.get("--quoting", "standard"),
        flags.get("--encoding", "utf-8"),
    )
    values |= {"text_format": form}
    values |= {f"{n}_column": flags[f"--{n}-column"] for n in ("text", "label") if f"--{n}-column" in flags}
    return values


@pytest.mark.parametrize("case", FILES)
def test_every_way_of_writing_texts_is_read_alike(tmp_path, case):
    """The same texts and labels come out of each, labelled or not."""
    name, content, words = FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    data = read_labelled(path, **options(words))
    wanted = [(a, b.replace(" ", "-") if "fasttext" in case else b) for a, b in ROWS]
    assert [*zip(data.texts, data.labels, strict=True)] == wanted
    given = options(words)
    found = read_texts(path, given.get("text_column", "text"), given["text_format"])
    if name in ("t.txt", "t.train.gz", "t.csv"):  # lines, unless they are fastText's
        assert [*found][-1] == ROWS[-1][0]
    else:
        assert [*found] == [text for text, _ in ROWS]


@pytest.mark.parametrize(
    "case",
    [
        *("no header", "plain quotes", "json lines"),
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("fasttext, gzip", "utf-16")),
    ],
)
def test_every_command_reads_them(tmp_path, case):
    """A classifier is trained, retrained, compressed and measured; tokens are counted and weighed."""
    name, content, words = FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    small = ("--arch", "dan", "--hidden", "4", "--dimension", "16", "--epochs", "1")
    succeed("train", path, "-o", tmp_path / "a.pt", *small, *words)
    succeed("finetune", tmp_path / "a.pt", path, "-o", tmp_path / "b.pt", "--epochs", "1", *words)
    succeed(
        "compress", tmp_path / "a.pt", path, "-o", tmp_path / "c.pt", "--rank", 2, "--epochs", "1", *words
    )
    table = words if "--label-column" not in words else words[:3]
    for option in ("--corpus", "--importance"):
        out = tmp_path / f"{option}.pt"
        succeed("factorize", tmp_path / "a.pt", option, path, "--rank", 2, "-o", out, *table)
    succeed("verify", tmp_path / "--corpus.pt", "--against", tmp_path / "a.pt", "--corpus", path, *table)
    succeed("report", tmp_path / "a.pt", "--corpus", path, *table)
    with open_checkpoint(tmp_path / "--corpus.pt") as opened:
        command = opened.description.command
    assert all(word in command for word in table), command
    # A classifier without a header in its texts needs no option to read more of them.
    again = [word for word in words if words is not NUMBERS]
    done = json.loads(succeed("evaluate", tmp_path / "a.pt", path, "--json", *again).stdout)
    assert done["count"] == len(ROWS)
    with open_checkpoint(tmp_path / "a.pt") as opened:
        record = read_record(opened)
    assert (record.columns.header, record.columns.text) == (
        (False, "3") if words is NUMBERS else (True, "text")
    )


def test_columns_of_ones_own_have_a_header(tmp_path):
    """A classifier that was trained without one reads other files by the names of their columns."""
    (tmp_path / "t.csv").write_text(as_csv(BACK))
    (tmp_path / "named.csv").write_text(as_csv(ROWS, "said", "label"))
    small = embcompress.NewClassifier(arch="dan", hidden=(4,), dimension=8)
    form = TextFormat(header=False)
    texts = embcompress.Texts(tmp_path / "t.csv", text_column="3", label_column="1", text_format=form)
    embcompress.train(texts, output=tmp_path / "a.pt", new=small, recipe=embcompress.Recipe(epochs=1))
    named = embcompress.Texts(tmp_path / "named.csv", text_column="said", label_column="label")
    assert embcompress.evaluate(tmp_path / "a.pt", named).to_dict()["count"] == len(ROWS)
    command = ("evaluate", tmp_path / "a.pt", tmp_path / "named.csv")
    assert_refused(tmp_path, *command, code=2, says="no column 3 in a row of 2")


# ---- JSON


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.text(), st.text() | st.integers() | st.booleans()), min_size=1, max_size=6))
def test_what_json_writes_is_read(tmp_path_factory, rows):
    """Any text, and labels that are texts, numbers or truth values."""
    path = tmp_path_factory.mktemp("json") / "t.jsonl"
    path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    labels = [b if isinstance(b, str) else json.dumps(b) for _, b in rows]
    good = all("\0" not in each for row in zip((a for a, _ in rows), labels, strict=True) for each in row)
    if good and all(label.strip() for label in labels):
        data = read_labelled(path, known_labels=labels)
        assert [*data.texts] == [text for text, _ in rows]
        assert [*data.labels] == labels
    else:
        with pytest.raises(InputError):
            read_labelled(path, known_labels=labels)


def test_numbers_are_labels_as_they_are_written(tmp_path):
    """Neither a float's digits nor a long integer change."""
    lines = [
        '{"text": 3, "label": 1}',
        '{"text": "b", "label": 1.50}',
        '{"text": "c", "label": %s}' % ("9" * 5000),
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = read_labelled(tmp_path / "t.jsonl")
    assert data.labels == ("1", "1.50", "9" * 5000)
    assert data.texts[0] == "3"


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        ('[{"text": "a", "label": "b"}]', InputError, ("line 1: is a list", "jq -c '.[]'")),
        ('{"text": "a",\n"label": "b"}', InputError, ("line 1: is not JSON", "a whole object in each line")),
        ("text,label\na,b\n", InputError, ("line 1: is not JSON", "--text-format")),
        ('{"text": "a", "label": "b"}\n3\n', InputError, ("line 2: is a number, expected a JSON object",)),
        ('{"text": "a", "label": ["b", "c"]}', InputError, ("line 1: 'label' is a list",)),
        ('{"text": null, "label": "b"}', InputError, ("line 1: 'text' is null",)),
        ('{"text": {}, "label": "b"}', InputError, ("'text' is an object",)),
        ('{"text": "a", "label": NaN}', InputError, ("line 1: is not JSON (NaN is not a number)",)),
        ('{"text": "a", "text": "b", "label": "c"}', InputError, ("a key appears twice",)),
        ('{"text": "a\\ud800", "label": "c"}', InputError, ("'text' holds half a character",)),
        ('{"text": "a\\u0000", "label": "c"}', InputError, ("'text' holds half a character or a NUL",)),
        (
            '{"sentence": "a", "label": "b"}',
            UsageError,
            ("line 1: no column 'text' among 'sentence', 'label'",),
        ),
        ('{"Text": "a", "label": "b"}', UsageError, ("'Text' differs by spaces or capitals only",)),
        ('{"text": "a", "label": "b"}\n{"text": "a"}\n', InputError, ("line 2: no column 'label'",)),
        ('{"text": "a", "label": " "}', InputError, ("line 1: a blank label",)),
        ("[" * 100_000, InputError, ("line 1: is not JSON",)),
        ('{"text": "%s", "label": "b"}' % ("x" * (1 << 20)), InputError, ("more than 1,048,576 bytes",)),
        ("", InputError, ("holds no row",)),
        ("\n \n", InputError, ("holds no row",)),
    ],
)
def test_row_112_json_lines_that_are_none(tmp_path, content, kind, says):
    """Told by the line, with what was found."""
    (tmp_path / "t.jsonl").write_text(content)
    with refused(kind, *says):
        read_labelled(tmp_path / "t.jsonl")


# ---- files that are read as what they are not


@pytest.mark.parametrize(
    ("name", "content", "remedy", "code"),
    [
        ("t.csv", JSONL.encode(), ("--text-format", "jsonl"), 2),
        ("t.csv", FASTTEXT.encode(), ("--text-format", "fasttext"), 2),
        (
            "t.csv",
            as_csv([(b, a) for a, b in ROWS]).encode(),
            ("--no-header", "--text-column", "2", "--label-column", "1"),
            2,
        ),
        ("t.tsv", TSV.replace("play", '"play').encode(), ("--quoting", "none"), 3),
        ("t.tsv", TSV.replace("play", '"play" it').encode(), ("--quoting", "none"), 3),
        ("t.csv", PLAIN.encode("cp1252"), ("--encoding", "cp1252"), 3),
        ("t.csv", PLAIN.encode("cp1252").replace(b"\x93", b"\x81"), ("--encoding", "latin-1"), 3),
        ("t.csv", PLAIN.encode("utf-16"), ("--encoding", "utf-16"), 3),
        ("t.csv", PLAIN.encode("utf-16-be"), ("--encoding", "utf-16-be"), 3),
        ("t.csv", PLAIN.replace(",", ";").encode(), ("--delimiter", "';'"), 2),
    ],
)
def test_row_113_the_option_that_reads_a_file_is_named(tmp_path, name, content, remedy, code):
    """And it works."""
    path = tmp_path / name
    path.write_bytes(content)
    small = ("--arch", "dan", "--hidden", "4", "--dimension", "8", "--epochs", "1")
    command = ("train", path, "-o", tmp_path / "a.pt", *small)
    assert_refused(tmp_path, *command, code=code, says=f"pass {' '.join(remedy)}")
    succeed(*command, *(word.strip("'") for word in remedy))


@pytest.mark.parametrize(
    ("name", "content", "words", "says"),
    [
        ("t.csv", PLAIN, ("--no-header",), "--text-column 'text' is not the number of a column"),
        (
            "t.csv",
            PLAIN,
            ("--no-header", "--text-column", "1", "--label-column", "0"),
            "'0' is not the number",
        ),
        (
            "t.csv",
            PLAIN,
            ("--no-header", "--text-column", "1", "--label-column", "3"),
            "no column 3 in a row of 2",
        ),
        ("t.csv", PLAIN, ("--no-header", "--text-column", "1", "--label-column", "²"), "is not the number"),
        ("t.csv", PLAIN, ("--text-format", "lines"), "lines hold texts and no labels"),
        ("t.csv", PLAIN, ("--encoding", "base64"), "not one of text files"),
        ("t.csv", PLAIN, ("--encoding", "unicode_escape"), "not one of text files"),
        ("t.csv", PLAIN, ("--encoding", "cp037"), "not one of text files"),
        ("t.csv", PLAIN, ("--encoding", "os"), "not one of text files"),
    ],
)
def test_row_114_options_that_do_not_fit_the_file(tmp_path, name, content, words, says):
    """Refused as a matter of the request."""
    (tmp_path / name).write_text(content)
    command = ("train", tmp_path / name, "-o", tmp_path / "a.pt")
    assert_refused(tmp_path, *command, *words, code=2, says=says)


def test_row_114_choices_of_the_python_interface():
    for wrong in ({"kind": "parquet"}, {"quoting": "some"}, {"encoding": "x\0"}, {"encoding": ""}):
        with refused(UsageError, "choose from" if "encoding" not in wrong else "encoding"):
            TextFormat(**wrong)


# ---- fastText


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a text", "0 labels that begin with __label__, expected 1"),
        ("__label__a __label__b a text", "2 labels"),
        ("__label__a a text __label__b", "2 labels"),
        ("__label__ a text", "a blank label ''"),
    ],
)
def test_row_115_lines_of_fasttext_without_one_label(tmp_path, line, says):
    """One label a text; texts alone are read from such lines too."""
    (tmp_path / "t.txt").write_text(f"__label__x one\n\n{line}\n__label__y three")
    with refused(InputError, f"line 3: {says}"):
        read_labelled(tmp_path / "t.txt")
    assert [*read_texts(tmp_path / "t.txt")][::2] == ["one", "three"]


def test_a_label_may_stand_at_the_end_of_a_line(tmp_path):
    (tmp_path / "t.txt").write_text("one __label__a\n__label__b\ttwo,  x__label__c \n")
    data = read_labelled(tmp_path / "t.txt", text_format=TextFormat("fasttext"))
    assert (data.texts, data.labels) == (("one", "two,  x__label__c"), ("a", "b"))


# ---- gzip


def test_row_116_gzip_that_is_cut_corrupt_or_a_bomb(tmp_path):
    """A bomb is refused long before its end; text that shrinks a lot is read."""
    whole = gzip.compress(PLAIN.encode())
    for content, says in ((whole[:-20], "cut short"), (whole[:30] + b"\xff" * 9 + whole[39:], "corrupt")):
        (tmp_path / "t.csv").write_bytes(content)
        with refused(InputError, says):
            read_labelled(tmp_path / "t.csv")
    row = b"a" * 1000 + b",b\n"
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"text,label\n" + row * 16_000 + b"a,c"))
    assert len(read_labelled(tmp_path / "t.csv")) == 16_001
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = packer.compress(b"text,label\n") + b"".join(packer.compress(row * 1000) for _ in range(40))
    (tmp_path / "t.csv").write_bytes(bomb + packer.flush())
    tracemalloc.start()
    try:
        with refused(InputError, "more than 32 times its", "gunzip"):
            for _ in read_texts(tmp_path / "t.csv"):
                pass
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert run("train", tmp_path / "t.csv", "-o", tmp_path / "a.pt").exit_code == 3


# ---- labels that are nearly the same


def test_labels_that_differ_in_blanks_are_one(tmp_path):
    """Written as it first stands, or as the classifier knows it."""
    path = tmp_path / "t.csv"
    path.write_text("text,label\na, very  good\nb,very good \nc,bad\nd,bad\xa0\n")
    data = read_labelled(path)
    assert data.labels == ("very  good", "very  good", "bad", "bad")
    assert label_set(data) == ("bad", "very  good")
    assert not data.notes
    assert read_labelled(path, known_labels=("very good", " bad")).labels[1:] == ("very good", " bad", " bad")
    assert read_labelled(path, known_labels=(" very  good", "very good ", "bad")).labels[0] == " very  good"


def test_row_117_numbers_written_in_two_ways_are_told(tmp_path):
    """They stay two labels, and the note names both and how many rows each has."""
    path = tmp_path / "t.csv"
    big = ("9007199254740993", "9007199254740992", "nan", "NaN", "1_0", "10", "1e99999")
    rows = ["1", "1.0", "1", "01", "2", "2e0", *big]
    path.write_text("text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(rows)))
    data = read_labelled(path)
    assert data.notes == (
        "labels '1' (rows: 2) and '1.0' (rows: 1) and '01' (rows: 1) are the same number, and stay different "
        "labels: write them alike",
        "labels '2' (rows: 1) and '2e0' (rows: 1) are the same number, and stay different labels: "
        "write them alike",
    )
    assert len(label_set(data)) == len({*rows})
    path.write_text(
        "text,label\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(["1", "1.0"] * 10))
    )
    small = ("--arch", "dan", "--hidden", "4", "--dimension", "8", "--epochs", "1")
    done = succeed("train", path, "-o", tmp_path / "a.pt", *small)
    assert "note: labels '1' (rows: 10) and '1.0' (rows: 10) are the same number" in done.stderr
