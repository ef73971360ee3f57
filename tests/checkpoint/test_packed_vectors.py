"""Word vectors in bzip2 files and zip archives, and tokens that are blank or empty."""

from __future__ import annotations

import bz2
import gzip
import zipfile

import numpy as np
import pytest
from helpers.checkpoints import assert_refused, succeed, table
from helpers.hostile import ROOM, assert_harmless, both, commands, needs_proc

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.data.vectors import read_vectors

MATRIX = table(60, 8)
TOKENS = ["the", "of", "日本", *(f"t{i}" for i in range(57))]


def lines(tokens=TOKENS, matrix=MATRIX):
    rows = (f"{t} {' '.join(map(str, row))}\n" for t, row in zip(tokens, matrix, strict=True))
    return "".join(rows).encode()


def archive(path, members, **options):
    with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def best(rank):
    u, s, vh = np.linalg.svd(MATRIX.astype(np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


# ---- compressed files


@pytest.mark.parametrize("header", [b"", b"60 8\n"], ids=["glove", "word2vec"])
def test_bzip2_is_read_and_written(tmp_path, header):
    """The dense copy is bzip2 again, and holds what the factors multiply to."""
    path = tmp_path / "sgns.weibo.word.bz2"
    path.write_bytes(bz2.compress(header + lines()))
    np.testing.assert_array_equal(read_vectors(path).matrix, MATRIX)
    small = embcompress.factorize(path, rank=3).output
    assert small.name == "sgns.weibo-svd-rank-3.safetensors"
    dense = embcompress.expand(small).output
    assert dense.name == "sgns.weibo-svd-rank-3-dense.word.bz2"
    text = bz2.decompress(dense.read_bytes()).removeprefix(header).decode().splitlines()
    assert [line.split()[0] for line in text] == TOKENS
    found = np.array([[float(x) for x in line.split()[1:]] for line in text])
    np.testing.assert_allclose(found, best(3), atol=1e-5)


def test_a_zip_archive_with_one_file_of_vectors(tmp_path):
    """What comes with it is passed over; the dense copy has the name and the form of the file in it."""
    others = {"README.txt": "read me", "__MACOSX/._v.vec": "junk", "meta.json": "{}", "data/": ""}
    path = archive(tmp_path / "ruscorpora.zip", {**others, "data/v.vec": b"60 8\n" + lines()})
    with open_checkpoint(path) as opened:
        assert opened.format == "word vectors"
        assert opened.tensors["vectors.weight"].shape == (60, 8)
    np.testing.assert_array_equal(read_vectors(path).matrix, MATRIX)
    dense = embcompress.expand(embcompress.factorize(path, rank=3).output).output
    assert dense.name == "ruscorpora-svd-rank-3-dense.vec"
    np.testing.assert_allclose(read_vectors(dense).matrix, best(3), atol=1e-5)


def test_one_file_may_have_any_name(tmp_path):
    """As long as it is the only one."""
    path = archive(tmp_path / "v.zip", {"vectors.100d": lines()})
    assert read_vectors(path).tokens == tuple(TOKENS)


def test_row_106_an_archive_of_several_is_refused_by_their_names(tmp_path):
    """glove.6B.zip holds four files; the remedy unpacks one of them."""
    path = archive(tmp_path / "glove.zip", {f"glove.{d}d.txt": lines() for d in (50, 100, 200)})
    says = "holds 3 files that may be vectors: glove.50d.txt, glove.100d.txt, glove.200d.txt"
    assert_refused(tmp_path, "report", path, code=2, says=says)
    assert_refused(tmp_path, "factorize", path, "--rank", 2, code=2, says="unzip glove.zip glove.50d.txt")
    with pytest.raises(embcompress.UsageError, match="holds 3 files"):
        read_vectors(path)
    with zipfile.ZipFile(path) as file:
        file.extract("glove.50d.txt", tmp_path)
    succeed("report", tmp_path / "glove.50d.txt")


def damaged(path, change):
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


@needs_proc
def test_row_106_hostile_archives(tmp_path):
    """Encrypted, of other methods, bombs, damaged or not vectors: one line, and nothing is written."""
    good = {"v.vec": b"60 8\n" + lines()}

    def encrypt(data):
        for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.index(magic) + flags] |= 1

    def other_method(data):  # LZMA, whose properties may ask for gigabytes
        for magic, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            data[data.index(magic) + method] = 14

    def flip(data):
        data[60] ^= 0xFF

    def endless_directory(data):  # the end record says that the directory has 4 GB
        place = data.rindex(b"PK\x05\x06")
        data[place + 12 : place + 16] = b"\xfe\xff\xff\xff"

    zeros = b"a" + b" 0" * 8 + b"\n"
    paths = [
        damaged(archive(tmp_path / "encrypted.zip", good), encrypt),
        damaged(archive(tmp_path / "lzma.zip", good), other_method),
        damaged(archive(tmp_path / "flipped.zip", good), flip),
        archive(tmp_path / "bomb.zip", {"v.vec": b"a 0 0\n" + b"1" * (40 << 20)}),
        archive(tmp_path / "claims.zip", {"v.vec": b"999999999 8\n" + zeros * 9}),
        archive(tmp_path / "escape.zip", {"\x1b[2J.vec": lines(), "b.vec": lines()}),
        archive(tmp_path / "notes.zip", {"notes.txt": "these are notes\nand no vectors\n"}),
        archive(tmp_path / "none.zip", {"README": "nothing"}),
        archive(tmp_path / "empty.zip", {"v.vec": b""}),
        damaged(archive(tmp_path / "directory.zip", good), endless_directory),
    ]
    (tmp_path / "cut.zip").write_bytes(archive(tmp_path / "whole.zip", good).read_bytes()[:-30])
    (tmp_path / "whole.zip").unlink()
    paths.append(tmp_path / "cut.zip")
    assert_harmless(tmp_path, [job for path in paths for job in both(path)], codes=(2, 3))


def test_row_106_what_is_said_of_a_broken_archive(tmp_path):
    """The member, and what is wrong with it."""
    path = archive(tmp_path / "v.zip", {"v.vec": lines()}, compression=zipfile.ZIP_LZMA)
    assert_refused(
        tmp_path, "report", path, code=3, says="v.vec is compressed in a way that is not read here"
    )
    path = archive(tmp_path / "v.zip", {"v.vec": lines()}, compression=zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"t5 ", b"u5 "))
    assert_refused(tmp_path, "report", path, code=3, says="the zip stream is corrupt (Bad CRC-32")


def test_row_107_bzip2_that_is_cut_or_damaged(tmp_path):
    """Wherever it is cut, what came before is not taken for the whole."""
    whole, path = bz2.compress(lines()), tmp_path / "v.txt.bz2"
    for length in range(10, len(whole), len(whole) // 7):
        path.write_bytes(whole[:length])
        assert_refused(tmp_path, "report", path, code=3, says="the bzip2 stream is cut short")
    for place in (30, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert_refused(tmp_path, "report", path, code=3, says="the bzip2 stream is")


@needs_proc
def test_row_107_a_bomb_of_bzip2_takes_little_memory(tmp_path):
    """A line of 32 MB is refused long before its end."""
    (tmp_path / "bomb.bz2").write_bytes(bz2.compress(b"a 0 0\n" + b"1" * (32 << 20)))
    for end in commands(tmp_path, ROOM, both(tmp_path / "bomb.bz2")):
        assert (end.code, end.stdout) == (3, "")
        assert "line 2 has more than" in end.stderr


# ---- tokens


@pytest.mark.parametrize("token", ["", " ", "  ", "\u00a0", "\u3000"])
@pytest.mark.parametrize("header", [b"", b"60 8\n"], ids=["glove", "word2vec"])
def test_a_blank_or_empty_token_keeps_its_row(tmp_path, token, header):
    """Its numbers are counted right, it comes back as it was, and a note names its row."""
    path = tmp_path / "v.vec"
    for place in (0, 59, 7):
        tokens = [*TOKENS]
        tokens[place] = token
        path.write_bytes(header + lines(tokens))
        found = read_vectors(path)
        assert found.tokens == tuple(tokens)
        np.testing.assert_array_equal(found.matrix, MATRIX)
    small = embcompress.factorize(path, rank=3, output=tmp_path / "small.safetensors").output
    assert read_vectors(small).tokens == tuple(tokens)
    dense = embcompress.expand(small, output=tmp_path / "again.vec").output
    assert [
        line.rsplit(" ", 8)[0] for line in dense.read_text().removeprefix("60 8\n").splitlines()
    ] == tokens
    with open_checkpoint(path) as opened:
        blank = not token.strip(" ")
        assert opened.notes == ((f"the token of row {place} is {token!r}; it is kept",) if blank else ())


@pytest.mark.parametrize(
    "text", ["a\t1\t2\n\t3\t4\nc\t5\t6\n", "a 1 2\n 3 4\nc 5 6\n", "3 2\na 1 2\n 3 4 \nc 5 6\n"]
)
def test_an_empty_token_between_tabs_and_spaces(tmp_path, text):
    """The white space that ends it is not a part of it."""
    (tmp_path / "v.txt").write_text(text)
    found = read_vectors(tmp_path / "v.txt")
    assert found.tokens == ("a", "", "c")
    assert found.matrix.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_an_empty_token_of_word2vec_binary(tmp_path):
    """gensim writes one for the key ''."""
    entries = (t.encode() + b" " + row.tobytes() for t, row in zip(["a", "", "c"], MATRIX[:3], strict=True))
    (tmp_path / "v.bin").write_bytes(b"3 8\n" + b"".join(entries))
    assert read_vectors(tmp_path / "v.bin").tokens == ("a", "", "c")
    small = embcompress.factorize(tmp_path / "v.bin", method="int8", ratio=0.3).output
    assert read_vectors(embcompress.expand(small).output).tokens == ("a", "", "c")


@pytest.mark.parametrize("text", ["a 1 2 3\n 1 2\n", "2 3\na 1 2 3\n 1 2\n"])
def test_a_blank_token_does_not_hide_a_ragged_line(tmp_path, text):
    """Two numbers after a blank are two, whatever the blank is taken for."""
    (tmp_path / "v.txt").write_text(text)
    assert_refused(tmp_path, "report", tmp_path / "v.txt", code=3, says="2 numbers, expected 3")


def test_the_remedy_for_a_wrong_count_works(tmp_path):
    """The message states the right first line, whether the header claims too many or too few."""
    path = tmp_path / "v.vec"
    for claimed in (59, 64):
        path.write_bytes(b"%d 8\n" % claimed + lines())
        says = (
            f"line 1 claims {claimed} vectors, the file holds 60; download it again, or, if none is missing, "
        )
        assert_refused(tmp_path, "report", path, code=3, says=says + 'make its first line "60 8"')
    path.write_bytes(b"60 8\n" + lines())
    succeed("report", path)


def test_gzip_of_any_case_is_written_as_named(tmp_path):
    """The suffix of the output decides."""
    (tmp_path / "v.txt").write_bytes(lines())
    small = embcompress.factorize(tmp_path / "v.txt", rank=2).output
    for name, unpack in (("a.txt.GZ", gzip.decompress), ("a.txt.BZ2", bz2.decompress), ("a.txt", bytes)):
        embcompress.expand(small, output=tmp_path / name)
        assert unpack((tmp_path / name).read_bytes()).startswith(b"the ")
    place = tmp_path / "a.txt.zip"
    assert_refused(
        tmp_path, "expand", small, "-o", place, code=2, says="a.txt.zip: zip archives are not written"
    )
