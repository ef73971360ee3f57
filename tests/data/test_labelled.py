"""Labelled texts from CSV, with csv.DictReader as oracle, and rows 41–45 of BAD_INPUTS."""

from __future__ import annotations

import csv
import io
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from helpers.checkpoints import assert_refused, contents
from helpers.refusals import CODES, assert_says
from helpers.refusals import refused as refused_with
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embcompress.data.csvlines import FIELD_LIMIT, RECORD_LIMIT
from embcompress.data.labelled import LABEL_LIMIT, LabelledTexts, label_set, read_labelled, split_off
from embcompress.data.text_format import TextFormat
from embcompress.errors import InputError, UsageError

INTENTS = Path(__file__).parents[2] / "examples" / "data" / "intents_train.csv"
GOOD = "text,label\nplay a song,music\nwill it rain,weather\n"

# Anything UTF-8 can hold but NUL; quotes, delimiters and line ends more often than by chance.
texts = st.text(
    st.sampled_from("\",;\n\r\t '|é\u2028") | st.characters(codec="utf-8", exclude_characters="\0")
)
labels = texts.filter(str.strip)
rows = st.lists(st.tuples(texts, labels), min_size=1, max_size=8)
DIALECTS = st.sampled_from(
    [
        {"lineterminator": end, "quoting": quoting}
        for end in ("\n", "\r\n")
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    ]
)


def write(folder, content, name="train.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, kind, *says, delimiter=None, **options):
    """Reading, and a command that reads, end in one line of ``kind`` that holds all of ``says``."""
    before = contents(path.parent)
    with pytest.raises(kind) as caught:
        read_labelled(path, text_format=TextFormat(delimiter=delimiter), **options)
    assert type(caught.value) is kind
    assert caught.value.exit_code == CODES[kind]
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: ")
    assert caught.value.remedy
    assert_says(line, *says)
    assert contents(path.parent) == before
    if "known_labels" not in options:  # which are those of other rows
        given = [x for key, value in options.items() for x in (f"--{key.replace('_', '-')}", value)]
        given += [] if delimiter is None else ["--delimiter", delimiter]
        output = path.with_name("classifier.pt")
        assert_refused(path.parent, "train", path, "-o", output, *given, code=CODES[kind], says=line)


def of(labels):
    """Rows with these labels, their texts numbered."""
    count = len(labels)
    return LabelledTexts(
        tuple(f"text {i}" for i in range(count)),
        tuple(labels),
        tuple(range(2, 2 + count)),
        Path("train.csv"),
    )


# ---- reading


@settings(max_examples=100, deadline=None)
@given(
    rows=rows,
    dialect=DIALECTS,
    delimiter=st.sampled_from(",;\t|^]-\\§"),
    blanks=st.lists(st.integers(0, 2), min_size=9, max_size=9),
    mark=st.booleans(),
    last_line_ends=st.booleans(),
)
def test_what_csv_writes_is_read_with_its_lines(
    tmp_path_factory, rows, dialect, delimiter, blanks, mark, last_line_ends
):
    """Any texts and labels come back as they were written, each with the line in which it begins."""
    end = dialect["lineterminator"]
    if end == "\n" and dialect["quoting"] == csv.QUOTE_MINIMAL:
        # Before Python 3.13 the writer leaves a CR unquoted here, which no reader can tell from a line's end.
        rows = [(text.replace("\r", ""), label.replace("\r", "") + "x") for text, label in rows]
    written, begins = io.StringIO(newline=""), []
    writer = csv.writer(written, delimiter=delimiter, **dialect)
    for record, blank in zip(
        [("label", "id", "text"), *((b, "7", a) for a, b in rows)], blanks, strict=False
    ):
        written.write(end * blank)
        begins.append(1 + written.getvalue().count("\n"))
        writer.writerow(record)
    content = written.getvalue() if last_line_ends else written.getvalue().removesuffix(end)
    path = tmp_path_factory.mktemp("csv") / "train.csv"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.encode())

    data = read_labelled(
        path, text_format=TextFormat(delimiter=delimiter), known_labels={label for _, label in rows}
    )
    assert data.lines == tuple(begins[1:])
    assert [*zip(data.texts, data.labels, strict=True)] == rows

    lines = io.StringIO(content.lstrip("\r\n"), newline="")  # DictReader takes a blank line for a header
    oracle = [*csv.DictReader(lines, delimiter=delimiter, strict=True)]
    assert data.texts == tuple(row["text"] for row in oracle)
    assert data.labels == tuple(row["label"] for row in oracle)


class EveryLabel(frozenset):
    """Known labels that hold every label."""

    def __contains__(self, label):
        return True


@settings(max_examples=400, deadline=None)
@given(body=st.text(st.sampled_from('ab"",,\r\n \0'), max_size=25))
@example('"a\n""",b\r\n\n"",a')
def test_what_csv_takes_is_read_alike_and_nothing_else_is(tmp_path_factory, body):
    """Whatever stands below the header is read as csv reads it, or refused with its cause and a line."""
    path = write(tmp_path_factory.mktemp("any"), f"text,label\n{body}")
    try:
        oracle = [tuple(row) for row in csv.reader(io.StringIO(body, newline="\n"), strict=True) if row]
    except csv.Error:
        oracle = []
    if oracle and "\0" not in body and all(len(row) == 2 and row[1].strip() for row in oracle):
        data = read_labelled(path, known_labels=EveryLabel())
        assert [*zip(data.texts, data.labels, strict=True)] == oracle
        return
    with pytest.raises(InputError) as caught:
        read_labelled(path, known_labels=EveryLabel())
    assert "correct the record" not in str(caught.value)  # what csv finds is always traced to its cause
    if "no row" not in str(caught.value):
        line = int(re.search(r": line (\d+): ", str(caught.value))[1])
        assert 2 <= line <= 2 + body.count("\n")


def test_a_real_file_is_read_whole():
    """The example's 3500 requests are those that csv reads, with seven labels."""
    data = read_labelled(str(INTENTS))
    with INTENTS.open(newline="", encoding="utf-8") as file:
        oracle = [*csv.DictReader(file)]
    assert len(data) == len(oracle) == 3500
    assert data.texts == tuple(row["text"] for row in oracle)
    assert data.labels == tuple(row["label"] for row in oracle)
    assert data.lines == tuple(range(2, 3502))  # it has no text of several lines
    assert data.path == INTENTS
    assert len(label_set(data)) == 7
    assert read_labelled(INTENTS.with_name("intents_dev.csv"), known_labels=label_set(data)).texts


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tsv", {}),
        ("a.TSV", {}),
        ("a.csv", {"text_format": TextFormat(delimiter="tab")}),
        ("a.txt", {"text_format": TextFormat(delimiter="\\t")}),
    ],
)
def test_tabs_are_taken_by_suffix_or_by_name(tmp_path, name, options):
    """A .tsv needs no option, and a tab can be asked for without typing one."""
    path = write(tmp_path, GOOD.replace(",", "\t"), name)
    assert read_labelled(path, **options).labels == ("music", "weather")
    assert read_labelled(write(tmp_path, GOOD, "b.tsv"), text_format=TextFormat(delimiter=",")).labels == (
        "music",
        "weather",
    )


def test_columns_are_chosen_by_name(tmp_path):
    """Columns may stand anywhere and others beside them; a column that is not asked for may stand twice."""
    path = write(tmp_path, "x,intent,x,words\n1,a,2,one\n3,b,4,two\n")
    data = read_labelled(path, text_column="words", label_column="intent")
    assert (data.texts, data.labels) == (("one", "two"), ("a", "b"))


def test_a_field_of_the_limit_is_read(tmp_path):
    """Limits are inclusive: the longest field passes, in a record of the most bytes."""
    wide = "€" * FIELD_LIMIT  # three bytes each
    line = f"{wide},{wide},".encode()
    line += b"a" * (FIELD_LIMIT - 1) + b"," + b"b" * (RECORD_LIMIT - len(line) - FIELD_LIMIT - 1) + b"\n"
    assert len(line) == RECORD_LIMIT
    path = write(tmp_path, b"text,x,y,label\n" + line)
    data = read_labelled(path, known_labels=EveryLabel())
    assert data.texts == (wide,)
    refused(
        write(tmp_path, b"text,x,y,label\n" + line.replace(b"\n", b"b\n")),
        InputError,
        "line 2",
        "more than 1,048,576 bytes, the limit",
        "shorten",
    )


def test_limits_hold_where_a_program_has_raised_those_of_csv(tmp_path):
    """csv.field_size_limit is everyone's: it is neither relied upon nor changed."""
    path = write(tmp_path, f"text,label\n{'a' * (FIELD_LIMIT + 1)},b\n")
    before = csv.field_size_limit(1 << 30)
    try:
        refused(path, InputError, "line 2", "field of 131,073 characters, limit 131,072", "shorten")
        assert csv.field_size_limit(9) == 1 << 30
        refused(write(tmp_path, GOOD), InputError, "line 2", "larger than field limit (9)", "correct the")
    finally:
        csv.field_size_limit(before)


def test_each_label_is_held_once():
    """A million rows of seven labels hold seven strings for them."""
    data = read_labelled(INTENTS)
    assert len({id(label) for label in data.labels}) == 7


# ---- splitting


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcde"), min_size=2, max_size=60),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_stratified_whole_and_in_order(labels, fraction, seed):
    """No row is lost or doubled, and each label gives its share, at least one and never all."""
    data, counts = of(labels), Counter(labels)
    if max(counts.values()) == 1:
        with refused_with(UsageError, f"2 {len(counts)}"):
            split_off(data, fraction, seed)
        return
    train, dev = split_off(data, fraction, seed)
    for part in (train, dev):
        assert part == data.take(line - 2 for line in part.lines)
        assert list(part.lines) == sorted(part.lines)
    assert sorted(train.lines + dev.lines) == list(data.lines)
    for label, count in counts.items():
        given_up = dev.labels.count(label)
        assert given_up <= count - 1
        assert given_up >= (count >= 2)
        assert abs(given_up - count * fraction) <= 0.5 or given_up in (0, 1, count - 1)
    assert split_off(data, fraction, seed) == (train, dev)


def test_a_split_is_the_same_everywhere():
    """The rows held out for a seed are part of what a run can be repeated by: they may not change."""
    data = of("aabbaabbbbccaaacccab")
    held = {seed: [line - 2 for line in split_off(data, 0.25, seed)[1].lines] for seed in (0, 1)}
    assert held == {0: [3, 5, 7, 12, 15], 1: [0, 9, 13, 16, 19]}


@given(numbers=st.lists(st.integers(0, 5), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_rows_of_one_text_lie_on_one_side(numbers, seed):
    """A text held out that is learned from as well would choose the epoch that remembers best."""
    texts = tuple(f"t{number}" for number in numbers)
    data = LabelledTexts(texts, ("a",) * len(texts), tuple(range(2, len(texts) + 2)), Path("train.csv"))
    if len({*texts}) == 1:
        with refused_with(UsageError, "label", "2"):
            split_off(data, 0.3, seed)
        return
    train, dev = split_off(data, 0.3, seed)
    assert train.texts
    assert dev.texts
    assert not {*train.texts} & {*dev.texts}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_lies_between_none_and_all(fraction):
    """A part may not be empty by request."""
    with refused_with(UsageError, f"{fraction}; limits 0 and 1"):
        split_off(of("aabb"), fraction, 0)


# ---- labels


def test_labels_are_sorted_as_numbers_where_all_are():
    """Ten comes after nine among integers, and before it among words."""
    assert label_set(of(["10", "9", "-1", "9"])) == ("-1", "9", "10")
    assert label_set(of(["10", "9", "b"])) == ("10", "9", "b")
    assert label_set(of(["1.0", "10", "9"])) == ("1.0", "10", "9")
    assert label_set(of(["1", "01", "0"])) == label_set(of(["01", "1", "0"])) == ("0", "01", "1")
    assert label_set(of(["²", "10", "9"])) == ("10", "9", "²")
    assert label_set(of(["9" * 5000, "10", "9"])) == ("10", "9", "9" * 5000)


def test_texts_are_kept_as_they_are(tmp_path):
    """Spaces belong to a text; a text may be empty, a number is no number."""
    data = read_labelled(write(tmp_path, "text,label\n, a \n b ,1.0\n"))
    assert (data.texts, data.labels) == (("", " b "), ("a", "1.0"))


# ---- BAD_INPUTS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ("is empty", "expected a header")),
        (b"\xef\xbb\xbf", ("is empty", "expected a header")),
        (b"\n\r\n\n", ("holds blank lines only", "expected a header")),
        (b"text,label\n", ("holds no row", "add a row")),
        (b"text,label", ("holds no row", "add a row")),
        (b"text,label\n\n\r\n", ("holds no row", "add a row")),
    ],
)
def test_row_41_nothing_to_read(tmp_path, content, says):
    """A file without rows is told from one without a header."""
    refused(write(tmp_path, content), InputError, *says)


def test_row_41_no_file(tmp_path):
    """A path that is no file is a matter of the request."""
    refused(tmp_path / "none.csv", UsageError, "does not exist", "give a file of labelled texts")
    (tmp_path / "folder.csv").mkdir()
    refused(tmp_path / "folder.csv", UsageError, "is not a regular file", "give a file of labelled texts")


WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("codec", WIDE)
def test_row_42_wide_encodings(tmp_path, codec):
    """UTF-16 and UTF-32 are recognized with their mark and without, and named."""
    unmarked = write(tmp_path, GOOD.encode(codec))
    refused(unmarked, InputError, f"seems to be {codec.upper()} text", "NULs", f"pass --encoding {codec}")
    marked = write(tmp_path, f"\ufeff{GOOD}".encode(codec))
    mark = "\ufeff".encode(codec).hex(" ").upper()
    refused(
        marked, InputError, f"is {codec.upper()} text", f"first bytes {mark};", f"pass --encoding {codec[:6]}"
    )


def test_row_42_a_mark_is_no_part_of_the_header(tmp_path):
    """A file with the mark of UTF-8, as Excel writes it, is read like one without."""
    marked = read_labelled(write(tmp_path, GOOD.encode("utf-8-sig")))
    assert marked == read_labelled(write(tmp_path, GOOD))
    assert read_labelled(write(tmp_path, '\ufeff"text",label\n\ufeffa,b\nc,d\n')).texts == ("\ufeffa", "c")


@pytest.mark.parametrize(
    ("byte", "says"), [(b"\xe9", "0xE9"), (b"\x80", "0x80"), (b"\xc3", "0xC3"), (b"\xed\xa0\x80", "0xED")]
)
def test_row_42_bad_bytes(tmp_path, byte, says):
    """A byte that is no UTF-8 is told with its line and what stands before it."""
    path = write(tmp_path, b'text,label\n"a\nb",x\n\nein Caf\xc3\xa9, ein caf' + byte + b",y\n")
    refused(path, InputError, "line 5", f"byte {says} after 'ein Café, ein caf'", "UTF-8", "--encoding")
    refused(
        write(tmp_path, b'text,label\n"a\n' + byte + b'",x\n'), InputError, "line 3", f"byte {says} after ''"
    )


def test_row_42_nul(tmp_path):
    """A NUL is told with its own line, even inside a field that began before."""
    refused(write(tmp_path, 'text,label\na,b\n"c\n\0",d\n'), InputError, "line 4: holds a NUL", "remove it")
    refused(write(tmp_path, "te\0xt,label\n"), InputError, "line 1: holds a NUL", "UTF-8")


@pytest.mark.parametrize(
    ("head", "says", "remedy"),
    [
        (b"PK\x03\x04\x14\x00\x06\x00", "is a zip archive or an Excel workbook", "export it as CSV"),
        (b"\x1f\x8b\x08\x00\x00", "the gzip stream is", "download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer", "git lfs pull"),
    ],
)
def test_row_42_other_kinds_of_file(tmp_path, head, says, remedy):
    """What is often taken for a CSV file is called by its name."""
    refused(write(tmp_path, head + b"more\n"), InputError, says, remedy)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (
            "text,lable",
            ("no column 'label' among 'text', 'lable'", "did you mean 'lable'?", "--label-column"),
        ),
        (
            "text, label",
            ("no column 'label'", "' label' differs by spaces or capitals only", "--label-column"),
        ),
        ("Text,label", ("no column 'text'", "'Text' differs by spaces or capitals only", "--text-column")),
        ("text\xa0,label", ("no column 'text'", "differs by spaces or capitals only", "--text-column")),
        (
            "utterance,label",
            ("no column 'text' among 'utterance', 'label'", "name another with --text-column"),
        ),
        ("play a song,music", ("no column 'text'", "pass --no-header --text-column 1 --label-column 2")),
        ("a,b,c,d,e,f,label", ("among 'a', 'b', 'c', 'd', 'e', …;",)),
        ("\x1b[31mtext,label", ("no column 'text' among '\\x1b[31mtext'",)),
    ],
)
def test_row_43_columns_that_are_not_there(tmp_path, header, says):
    """A missing column is told with those that are there, and with the one that was meant."""
    path = write(tmp_path, f"\n{header}\na,b,c\n")
    refused(path, UsageError, "line 2", *says)


def test_row_43_options_that_cannot_be_met(tmp_path):
    """One column cannot be both, and a delimiter is one character."""
    path = write(tmp_path, GOOD)
    before = contents(tmp_path)
    with refused_with(UsageError, "--text-column --label-column 'text'"):
        read_labelled(path, label_column="text")
    for wrong in ("", ",,", '"', "\n", "\0", "comma"):
        with refused_with(UsageError, "--delimiter"):
            TextFormat(delimiter=wrong)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("blank", ["", " ", '" \n"', "\xa0"])
def test_row_44_blank_labels(tmp_path, blank):
    """A row without a label is told by its line."""
    refused(
        write(tmp_path, f"text,label\na,x\nb,y\nc,{blank}\n"),
        InputError,
        "line 4: a blank label",
        "fill it in",
    )
    refused(write(tmp_path, f"text,label\na,{blank}\n"), InputError, "line 2", known_labels=("x",))


@pytest.mark.parametrize(
    ("label", "known", "says"),
    [
        ("1.0", ("0", "1"), ("among the 2 known: '0', '1'", "'1' is the same number: write both the same")),
        ("01", ("0", "1"), ("'1' is the same number",)),
        ("1", ("0.0", "1.0"), ("'1.0' is the same number",)),
        ("Music", ("music", "rain"), ("label 'Music'", "'music' differs by capitals only")),
        ("musik", ("music", "rain"), ("did you mean 'music'?",)),
        (
            "books",
            ("10", "9", "8", "7", "6", "5"),
            ("the 6 known: '5', '6', '7', '8', '9', …", "remove the row"),
        ),
        ("nan", ("0", "1"), ("label 'nan' is not among the 2 known", "remove the row")),
        ("\x1b[2J", ("a", "b"), ("label '\\x1b[2J'",)),
        ("x" * 9000, ("a", "b"), ("(9,000 characters)", "the 2 known: 'a', 'b'", "remove the row")),
    ],
)
def test_row_44_labels_that_were_not_seen(tmp_path, label, known, says):
    """A label that the training texts lack is told with those they have, and with what was meant."""
    path = write(tmp_path, f'text,label\na,{known[0]}\n"b\nb",{known[1]}\nc,{label}\n')
    refused(path, InputError, "line 5", *says, known_labels=known)


def test_row_44_one_label_only(tmp_path):
    """One class teaches nothing; as held-out rows it is read."""
    path = write(tmp_path, "text,label\na,x\nb,x\n")
    refused(path, InputError, "'x' is the only label (rows: 2), expected at least 2", "--label-column")
    assert read_labelled(path, known_labels=("x", "y")).labels == ("x", "x")


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        ('a,x\n"b,y\nc,z\n', 3, ("still open at the end of the file",)),
        ('a,x\n"b\nb","y\nc,z\n', 4, ("still open at the end of the file",)),
        ('a,x\n"b"",y', 3, ("still open at the end of the file",)),
        ('a,x\n"b,y\n' + "c,z\n" * 50_000, 3, ("still open in line 32771", "limit 131,072 characters")),
        ('a,x\n"b,y\n"c, d",z\n', 4, ("'c, d\",z' after the closing quote", "opens in line 3")),
        ('a,x\nb,"y" \n', 3, ("after the closing quote of the field that opens in line 3",)),
    ],
)
def test_row_45_quotes(tmp_path, body, line, says):
    """A quote that is not closed is told by the line where it opens, not where reading ends."""
    refused(write(tmp_path, f"text,label\n{body}"), InputError, f": line {line}: ", '""', *says)


@pytest.mark.parametrize("delimiter", ["\\", "]", "^", "-", "|", "."])
def test_row_45_quotes_between_odd_delimiters(tmp_path, delimiter):
    """A delimiter that means something in a pattern means nothing here."""
    path = write(tmp_path, 'text,label\na,x\n\nb,"y"z\n'.replace(",", delimiter))
    refused(
        path,
        InputError,
        "line 4: 'z' after the closing quote",
        f"expected '{delimiter}'",
        delimiter=delimiter,
    )


def test_row_45_long_fields(tmp_path):
    """A field beyond the limit is told with its line, quoted or not, in one line or over many."""
    for text in ("a" * 131_073, '"' + "a" * 131_071 + '""' * 2 + '"'):
        path = write(tmp_path, f"text,label\n{text},x\n")
        refused(path, InputError, "line 2", "a field of 131,073 characters, limit 131,072", "shorten")
    lines = "a\n" * 70_000
    path = write(tmp_path, f'text,label\nx,y\n"{lines}",x\n')
    refused(path, InputError, "line 3: the quote that opens here is still open", "limit 131,072", "shorten")
    many = '"a\n",' * 300_000
    path = write(tmp_path, f"text,label\n{many}x\n")
    refused(path, InputError, "line 2", "1,048,576 bytes", "close a quote left open")


@pytest.mark.parametrize("before", [b"", b'text,label\na,x\n"'])
def test_row_45_a_huge_field_is_refused_unread(tmp_path, before):
    """100 MB without a line's end cost no memory: reading stops one byte beyond the limit."""
    path = tmp_path / "train.csv"
    with path.open("wb") as file:
        file.write(before)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
    line = 1 + before.count(b"\n")
    tracemalloc.start()
    try:
        with refused_with(InputError, f"line {line}; limit 1,048,576") as caught:
            read_labelled(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code == 3
    assert peak < 4 * RECORD_LIMIT
    assert path.stat().st_size == 100_000_000 + len(before)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("c,d,z", ("3 fields, expected 2", "put a text that holds ',' in quotes")),
        ("c", ("1 fields, expected 2", "complete it")),
        ("   ", ("1 fields, expected 2", "complete it")),
        ('"c,y\nd,z\ne"', ("1 fields up to line 7, expected 2", "a quote that opens in line 5")),
        ("text,label", ("the header appears here again", "remove it")),
    ],
)
def test_row_45_rows_that_do_not_fit_the_header(tmp_path, row, says):
    """Too many fields, too few, or a header in between are told by the line, blank lines counted."""
    refused(write(tmp_path, f"text,label\na,x\n\nb,y\n{row}\n"), InputError, "line 5", *says)


@pytest.mark.parametrize(("given", "name"), [(";", "';'"), ("\t", "tab"), ("|", "'|'"), (",", "','")])
@pytest.mark.parametrize("quote", ["", '"'])
def test_row_45_wrong_delimiter(tmp_path, given, name, quote):
    """The delimiter that would fit is named, and taking that advice works."""
    lines = [("id", "text", "label"), ("1", "a", "x"), ("2", "b", "y")]
    content = "".join(given.join(f"{quote}{v}{quote}" for v in line) + "\n" for line in lines)
    path = write(tmp_path, content)
    wrong = ";" if given == "," else ","
    refused(
        path,
        UsageError,
        "line 1",
        f"not delimited by '{wrong}', expected 'text' and 'label'",
        f"pass --delimiter {name}",
        delimiter=wrong,
    )
    assert read_labelled(path, text_format=TextFormat(delimiter=name.strip("'"))).labels == ("x", "y")


def test_row_45_duplicated_header(tmp_path):
    """A wanted column that stands twice could be either."""
    path = write(tmp_path, "text,label,label\na,x,y\n")
    refused(path, InputError, "line 1: column 'label' appears 2 times", "expected once", "rename or remove")


def test_row_45_line_ends(tmp_path):
    """Lines that end with CR alone are refused, however large the file; CR and LF together work."""
    says = ("a carriage return (CR) without a line feed (LF)", "save it with LF or CRLF")
    refused(write(tmp_path, GOOD.replace("\n", "\r")), InputError, "line 1", *says)
    refused(write(tmp_path, 'text,label\n"a\nb",x\r"c",y\n'), InputError, "line 3", *says)
    large = "text,label\r" + "some words,x\r" * 90_000
    refused(write(tmp_path, large), InputError, "line 1", "1,048,576 bytes", "CR but no LF", says[1])
    assert read_labelled(write(tmp_path, GOOD.replace("\n", "\r\n"))) == read_labelled(write(tmp_path, GOOD))


def test_row_70_more_labels_than_a_classifier_can_have(tmp_path):
    """As many as the limit are read; one more is refused with its line, before anything is made of them."""
    rows = [f"a,{number}\n" for number in range(LABEL_LIMIT + 1)]
    path = write(tmp_path, "text,label\n" + "".join(rows[:-1]) + rows[0])
    assert len({*read_labelled(path).labels}) == LABEL_LIMIT
    path = write(tmp_path, "text,label\n" + "".join(rows))
    refused(path, InputError, "line 10002: label '10000'", "10,000, the limit", "--label-column")
