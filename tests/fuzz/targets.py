"""What is fuzzed: for each reader, how bytes reach it, what it may answer, and how to change them cleverly.

Nothing here needs atheris, so that the tests can give the corpus to every target without it.
"""

from __future__ import annotations

import itertools
import json
import pickletools
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from embcompress.checkpoint import Reading, open_checkpoint
from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import TableRecord
from embcompress.checkpoint.pickles.allowed import ALLOWED, PLAIN
from embcompress.data.charsmaps import check_model
from embcompress.data.counting import read_counts, read_texts
from embcompress.data.labelled import label_set, read_labelled
from embcompress.data.priors import prior_of
from embcompress.data.text_format import TextFormat
from embcompress.data.vectors import read_vectors
from embcompress.errors import EmbcompressError
from embcompress.methods.decoding import decoded
from embcompress.tables import locate

CORPUS = Path(__file__).parent / "corpus"

ROWS = 4
"""Tokens of the vocabularies that stand beside what is fuzzed."""

Mutate = Callable[[bytes, int], bytes]
"""Bytes, and the most that may be made of them, to other bytes."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        place: writes the bytes into an empty or used folder, and says what to read.
        read: reads it; only the package's own errors may come out.
        mutate: changes a file so that what encloses the change still fits it; None where nothing encloses.
    """

    place: Callable[[bytes, Path], Path]
    read: Callable[[Path], None]
    mutate: Callable[[bytes, int, int, Mutate], bytes] | None = None

    def __call__(self, data: bytes, folder: Path) -> None:
        """Read ``data``; anything but success and a proper refusal is raised."""
        path = self.place(data, folder)
        self.read(path)


def refusable(step: Callable[[], object]) -> bool:
    """Run ``step``; whether it came to an end. A refusal is one printable line that says something."""
    try:
        step()
    except EmbcompressError as error:
        said = str(error)
    else:
        return True
    assert said, "an error that says nothing"
    assert said.isprintable(), repr(said)
    return False


def _file(name: str) -> Callable[[bytes, Path], Path]:
    def place(data: bytes, folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return place


def _read_checkpoint(path: Path) -> None:
    """Open it, and read all that every command reads of it."""

    def whole() -> None:
        with open_checkpoint(path) as checkpoint:
            refusable(lambda: checkpoint.check_integrity())
            refusable(lambda: checkpoint.remainder())
            refusable(lambda: locate(checkpoint, every=True))
            refusable(lambda: checkpoint.sidecar("classifier"))
            refusable(lambda: [prior_of(checkpoint, t.rows.shape[0]) for t in locate(checkpoint, every=True)])
            for name, info in checkpoint.tensors.items():
                assert name.isprintable()
                if info.is_readable and 0 not in info.shape:
                    assert checkpoint.rows(name, 0, info.shape[0]).shape == info.shape
                if info.layout == "dense":
                    assert sum(map(len, checkpoint.bytes_of(name))) == info.nbytes
            for record in checkpoint.description.tables if checkpoint.description else ():
                refusable(lambda record=record: _read_compressed(checkpoint, record))

    refusable(whole)


def _read_weights_only(path: Path) -> None:
    """What is taken of a PyTorch file besides its objects of other classes can be written and read again."""
    opened = []
    if refusable(lambda: opened.append(open_checkpoint(path, reading=Reading(weights_only=True)))):
        copy = path.with_name("copy.pt")
        with opened[0] as checkpoint:
            refusable(lambda: checkpoint.check_integrity())
            refusable(lambda: checkpoint.remainder())
            copy.unlink(missing_ok=True)
            written = refusable(lambda: checkpoint.write(copy, Edit(frozenset(), ()), None))
            names = [*checkpoint.tensors]
        if written:
            with open_checkpoint(copy) as again:
                assert [*again.tensors] == names
    _read_checkpoint(path)


def _read_compressed(checkpoint: Checkpoint, record: TableRecord) -> None:
    """Decode the first and the last rows of a compressed table."""
    rows, (count, columns) = decoded(checkpoint, record), record.shape
    for start, stop in ((0, min(ROWS, count)), (max(0, count - ROWS), count)):
        assert rows.read(start, stop).shape == (stop - start, columns)


# -- safetensors -----------------------------------------------------------------------------


def _mutate_safetensors(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """Change the header, a text in its metadata or the data, and mend the lengths; or change any byte."""
    choice = random.Random(seed)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 + length or choice.random() < 0.1:
        return mutate(data, most)
    text, rest = data[8 : 8 + length], data[8 + length :]
    if choice.random() < 0.3 and rest:
        rest = mutate(rest, len(rest)).ljust(len(rest), b"\0")
    elif choice.random() < 0.5:
        text = _mutate_metadata(text, choice, most - 8, mutate)
    else:
        text = mutate(text, most - 8)
    if choice.random() < 0.9:
        rest = rest[: _described(text)].ljust(min(_described(text), 512), b"\1")
    return (len(text).to_bytes(8, "little") + text + rest)[:most]


def _mutate_metadata(text: bytes, choice: random.Random, most: int, mutate: Mutate) -> bytes:
    """The header with one entry of its metadata changed, or changed anywhere where it has none."""
    try:
        header = json.loads(text)
        key = choice.choice(sorted(header["__metadata__"]))
        header["__metadata__"][key] = mutate(header["__metadata__"][key].encode(), most).decode(
            errors="replace"
        )
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return mutate(text, most)


def _described(text: bytes) -> int:
    """Where the last tensor of a header ends, as far as there is one."""
    try:
        spans = [entry["data_offsets"][1] for name, entry in json.loads(text).items() if name[:2] != "__"]
        return max((stop for stop in spans if type(stop) is int and stop >= 0), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0


# -- torch -----------------------------------------------------------------------------------


def zipped(records: dict[str, bytes]) -> bytes:
    """A stored zip of these records, as small as it can be."""
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return made.getvalue()


def _mutate_torch(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """Change a record, the pickle most often, and build the zip anew; or change any byte."""
    choice = random.Random(seed)
    if data[:2] != b"PK" or choice.random() < 0.15:
        return mutate(data, most)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # whatever zipfile makes of a broken one
        return mutate(data, most)
    pickles = [name for name in records if name.endswith("data.pkl")]
    name = choice.choice(pickles if pickles and choice.random() < 0.9 else [*records, "a/b"])
    if name in pickles and choice.random() < 0.6:
        records[name] = _mutate_pickle(records[name], choice)
    else:
        records[name] = mutate(records.get(name, b""), max(16, most - len(data)))
    return zipped(records)[:most]


_FRAGMENTS = (
    *(bytes([code]) for code in b"N\x88\x89)]}\x8f(t\x85\x86\x87RQbsuea\x81"),
    *(
        b"K\0",
        b"K\1",
        b"K\4",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09" + b"\xff" * 8 + b"\0",
        b"h\0",
        b"h\1",
        b"q\0",
    ),
    *(bytes([code]) for code in b"\x90\x91\x92\x93\x94\x96"),
    *(
        b"X\x0b\0\0\0_parameters",
        b"\x8c\1a",
        b"C\1a",
        b"B\1\0\0\0a",
        b"\x8b\1\0\0\0\1",
        b"\x95" + bytes(8),
        b"\x8d\1" + bytes(7) + b"a",
    ),
    *(
        b"ca\nB\n",
        b"c__torch__\nA\n",
        b"X\x08\0\0\0_modules",
        b"X\x0b\0\0\0_parameters",
        b"X\x08\0\0\0_buffers",
    ),
    *(b"X\1\0\0\0a", b"X\0\0\0\0", b"U\1a", b"G" + bytes(8), b"X\x0a\0\0\0wte.weight", b"X\7\0\0\0storage"),
    *(
        f"c{module}\n{name}\n".encode()
        for module, _, name in (path.rpartition(".") for path in sorted(ALLOWED | PLAIN))
    ),
)
"""Opcodes with their arguments, of which random pickles are made that a reader does not refuse at once."""


def _mutate_pickle(data: bytes, choice: random.Random) -> bytes:
    """A few opcodes left out, doubled, moved or put in; whole ones, where the fuzzer itself changes bytes."""
    try:
        begins = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:  # whatever pickletools makes of a broken one
        begins = [*range(len(data))]
    codes = [data[i:j] for i, j in itertools.pairwise([*begins, len(data)])]
    for _ in range(choice.choice([1, 1, 2, 3])):
        place = choice.randrange(len(codes) + 1)
        size = choice.choice([1, 1, 2, 5])
        match choice.randrange(5):
            case 0:
                del codes[place : place + size]
            case 1:
                codes[place:place] = codes[choice.randrange(len(codes) + 1) :][:size]
            case 2:
                codes[place : place + 1] = [choice.choice(_FRAGMENTS)]
            case _:
                codes.insert(place, choice.choice(_FRAGMENTS))
    return b"".join(codes)


def _mutate_gensim(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """Change whole opcodes of the pickle, or any byte."""
    choice = random.Random(seed)
    return _mutate_pickle(data, choice)[:most] if choice.random() < 0.7 else mutate(data, most)


# -- directories -----------------------------------------------------------------------------

_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_DOCUMENTS = ("model.safetensors.index.json", "config.json", "modules.json", "README.md")


def _shard(name: str) -> bytes:
    entry = {"dtype": "F32", "shape": [ROWS, 2], "data_offsets": [0, 8 * ROWS]}
    text = json.dumps({name: entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(8 * ROWS))


def _place_directory(data: bytes, folder: Path) -> Path:
    """Index, configuration, modules and card, parted by NULs; the shards are always the same."""
    path = folder / "model"
    if not path.is_dir():
        path.mkdir()
        for shard, name in zip(_SHARDS, ("wte.weight", "h.weight"), strict=True):
            (path / shard).write_bytes(_shard(name))
    for name, text in zip(_DOCUMENTS, [*data.split(b"\0", 3), b"", b"", b"", b""], strict=False):
        if text:
            (path / name).write_bytes(text)
        else:
            (path / name).unlink(missing_ok=True)
    return path


# -- vectors, CSV, counts --------------------------------------------------------------------


def _read_vectors(path: Path) -> None:
    def every() -> None:
        found = read_vectors(path)
        assert len(found.tokens) == len(found.matrix) == len({*found.tokens})
        assert found.matrix.dtype == np.float32
        assert np.isfinite(found.matrix).all()

    refusable(every)
    refusable(lambda: read_vectors(path, ["the", "a", "é"]))
    _read_checkpoint(path)  # a file of vectors is a table that can be compressed, too


def _place_matrix(data: bytes, folder: Path) -> Path:
    """The matrix; its vocabulary is always the same."""
    vocabulary = folder / "matrix.vocab.txt"
    if not vocabulary.exists():
        vocabulary.write_text("the\na\nof\né\n")
    return _file("matrix.npy")(data, folder)


def _read_table(path: Path) -> None:
    """Read it as labelled texts, with any labels and with known ones, and as plain texts."""

    def labelled() -> None:
        found = read_labelled(path)
        assert len(found) == len(found.labels) == len(found.lines)
        assert {*label_set(found)} == {*found.labels}
        assert all(label.strip() for label in found.labels)

    refusable(labelled)
    refusable(lambda: read_labelled(path, known_labels=["1", "good", "bad"]))
    refusable(
        lambda: read_labelled(
            path, text_column="label", label_column="text", text_format=TextFormat(delimiter=";")
        )
    )
    refusable(lambda: [*read_texts(path)])
    for form in (TextFormat("jsonl"), TextFormat("fasttext"), TextFormat("csv", encoding="utf-16")):
        _read_as(path, form, "text", "label")
    _read_as(path, TextFormat("csv", header=False, quoting="none"), "2", "1")


def _read_as(path: Path, form: TextFormat, text: str, label: str) -> None:
    refusable(lambda: read_labelled(path, text_column=text, label_column=label, text_format=form))
    refusable(lambda: [*read_texts(path, text, form)])


def _read_counts(path: Path) -> None:
    def counted() -> None:
        counts = read_counts(path, ROWS, lambda: {"the": 0, "a": 1, "of": 2, "é": 3})
        assert counts.shape == (ROWS,)
        assert (counts >= 0).all()

    refusable(counted)


def _place_counts(data: bytes, folder: Path) -> Path:
    """NumPy files by their magic bytes, all else as CSV."""
    return _file("counts.npy" if data.startswith((b"\x93NUMPY", b"PK")) else "counts.csv")(data, folder)


def _read_pieces(path: Path) -> None:
    refusable(lambda: check_model(path, 1 << 20))


def _place_tokenizer(data: bytes, folder: Path) -> Path:
    """Vocabulary, settings and chat template, parted by NULs; the table is always the same."""
    path = folder / "model"
    if not path.is_dir():
        path.mkdir()
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(_shard("wte.weight"))
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for name, text in zip(names, [*data.split(b"\0", 2), b"", b"", b""], strict=False):
        if text:
            (path / name).write_bytes(text)
        else:
            (path / name).unlink(missing_ok=True)
    return path


def _read_prior(path: Path) -> None:
    def read() -> None:
        with open_checkpoint(path) as checkpoint:
            prior = prior_of(checkpoint, ROWS)
        if prior is not None:
            assert prior.shares.shape == (ROWS,)
            assert (prior.shares >= 0).all()
            assert abs(prior.shares.sum() - 1) < 1e-9
            assert np.isfinite(prior.mixed(np.ones(ROWS))).all()

    refusable(read)


TARGETS = {
    "safetensors": Target(_file("model.safetensors"), _read_checkpoint, _mutate_safetensors),
    "torch": Target(_file("model.pt"), _read_checkpoint, _mutate_torch),
    "torch_weights_only": Target(_file("model.pt"), _read_weights_only, _mutate_torch),
    "onnx": Target(_file("model.onnx"), _read_checkpoint),
    "directory": Target(_place_directory, _read_checkpoint),
    "vectors_text": Target(_file("vectors.vec"), _read_vectors),
    "vectors_binary": Target(_file("vectors.bin"), _read_vectors),
    "vectors_fasttext": Target(_file("model"), _read_vectors),
    "vectors_gensim": Target(_file("words.kv"), _read_vectors, _mutate_gensim),
    "vectors_npy": Target(_place_matrix, _read_vectors),
    "csv": Target(_file("texts.csv"), _read_table),
    "counts": Target(_place_counts, _read_counts),
    "sentencepiece": Target(_file("spiece.model"), _read_pieces),
    "tokenizer": Target(_place_tokenizer, _read_prior),
}
"""Every reader of files that strangers write, by the name of its folder in the corpus."""
