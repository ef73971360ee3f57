"""Parts that are not what their method stores, in files that are sealed as if they were."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from helpers.checkpoints import raw, run, table
from helpers.hostile import MB, ROOM, commands, needs_proc
from helpers.registry import EVERY, target
from helpers.resealing import CARRIED, TABLE, Net, parts_of, resealed, tensors_of
from helpers.sequence_models import named, tokenizer
from safetensors.torch import save_file

import embcompress
from embcompress import NewClassifier, Recipe, Session
from embcompress.checkpoint.description import NO_DIGEST, Description, TableRecord
from embcompress.errors import EmbcompressError
from embcompress.methods import method_for
from embcompress.methods.parts import Elements

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool),
)
STORED = {Elements.BYTES: (torch.uint8,), Elements.ROW_NUMBERS: (torch.int32,)}
STORED |= {Elements.SCALES: (torch.float32,), Elements.FLOATS: TYPES[:4]}


WORDS = [f"word{i}" for i in range(396)]
LABELS = ("cold", "hot")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
QUICK = Recipe(epochs=1, batch_size=200)
READERS = {
    "file": ("report", "verify", "expand", "load"),
    "classifier": ("verify", "predict", "finetune"),
    "directory": ("verify", "load", "from_pretrained", "predict", "finetune"),
    "native": ("report", "verify", "expand", "load", "predict", "finetune"),
}
"""What reads the parts of each kind of checkpoint. Names of tables differ between kinds; verify reads all."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A compressed file, classifier or directory of each method, made when it is asked for; and texts."""
    folder = tmp_path_factory.mktemp("shelf")
    texts = [f"{word},{LABELS[i % 2]}" for i, word in enumerate(WORDS)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *texts]))
    original = functools.cache(lambda kind: DENSE[kind](folder))

    @functools.cache
    def made(method: str, kind: str) -> Path:
        small = folder / f"{kind}-{method}{original(kind).suffix}"
        embcompress.factorize(original(kind), method=method, output=small, **target(method))
        return small

    return made


def dense_file(folder):
    dense = table(400, 16)
    dense[[0, 7]] = 0
    path = folder / "model.safetensors"
    save_file({TABLE: torch.from_numpy(dense), CARRIED: torch.ones(2, 16)}, path)
    return path


def dense_classifier(folder):
    path = folder / "classifier.safetensors"
    shape = NewClassifier(hidden=(4,), dimension=16)
    embcompress.train(folder / "texts.csv", output=path, new=shape, recipe=QUICK)
    return path


def dense_directory(folder):
    config = tf.BertConfig(vocab_size=400, max_position_embeddings=20, **SIZES, **named(LABELS))
    return directory(folder / "directory", tf.BertForSequenceClassification, config)


def dense_native(folder):
    """A model whose library has a form of its own for factors."""
    config = tf.DebertaV2Config(vocab_size=400, max_position_embeddings=20, position_biased_input=False,
                                type_vocab_size=0, **SIZES, **named(LABELS))  # fmt: skip
    return directory(folder / "native", tf.DebertaV2ForSequenceClassification, config)


def directory(path, kind, config):
    path.mkdir()
    tokenizer(path, words=["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])
    torch.manual_seed(0)
    kind(config).save_pretrained(path)
    return path


DENSE = {
    "file": dense_file,
    "classifier": dense_classifier,
    "directory": dense_directory,
    "native": dense_native,
}


def odd(part):
    """Shapes that no method stores, and numbers that are none."""
    yield from (part.flatten(), part[None], part.flatten()[0], part[:0], part[:, :0])
    yield from (torch.cat([part, part[:, :1]], 1), part[:, :-1])
    if part.dtype.is_floating_point:
        for value in (math.nan, math.inf):
            wrong = part.clone()
            wrong[-1, -1] = value
            yield wrong


def ending(path, command):
    """Exit code and words of a command that was refused, without the name of the file; None if it was not."""
    try:
        result = command()
    except EmbcompressError as error:
        return error.exit_code, error.message.removeprefix(f"{path}: ")
    assert not getattr(result, "differences", ())
    return None


def built(kind, path):
    """A model that the checkpoint fits."""
    if kind == "file":
        return Net(400, 16)
    return tf.AutoModelForSequenceClassification.from_config(tf.AutoConfig.from_pretrained(path))


def readers(kind, path, folder):
    """Everything that reads the parts of a kind of checkpoint, by its name; texts lie in ``folder``."""
    texts, output = folder / "texts.csv", path.with_stem("output")
    found = {
        "report": lambda: embcompress.report(path),
        "verify": lambda: embcompress.verify(path),
        "expand": lambda: embcompress.expand(path, output=output, force=True),
        "load": lambda: embcompress.load(built(kind, path), path),
        "from_pretrained": lambda: tf.AutoModel.from_pretrained(path),
        "predict": lambda: embcompress.predict(path, ["word1 word2"]),
        "finetune": lambda: embcompress.finetune(
            path, texts, output=output, recipe=QUICK, session=Session(force=True)
        ),
    }
    return {name: found[name] for name in READERS[kind]}


def wrong_parts(method, parts, *, few):
    """Suffix and tensor of each damage, and whether it must be refused."""
    for spec in method_for(method).parts:
        if spec.suffix in parts:
            part = parts[spec.suffix]
            types = [kind for kind in TYPES if kind != part.dtype]
            for kind in types[:: 5 if few else 1]:
                yield spec.suffix, part.to(kind), kind not in STORED[spec.elements]
            for other in [*odd(part)][:: 3 if few else 1]:
                # one number less of a list of rows is another list
                yield spec.suffix, other, True


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("svd", "file"),
        ("pq", "file"),
        ("screen+int4", "file"),
        ("lplr", "classifier"),
        ("pq", "directory"),
        ("svd", "native"),
    ],
)
def test_row_66_parts_are_refused_alike_some(shelf, tmp_path, method, kind):
    """A sample of the whole grid below."""
    check(shelf(method, kind), tmp_path, method, kind, few=True)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("method", "kind"), [*itertools.product(EVERY, ("file", "classifier", "directory")), ("svd", "native")]
)
def test_row_66_parts_are_refused_alike(shelf, tmp_path, method, kind):
    """Each part in each type and in odd shapes: the same code and words from all, and never a traceback."""
    check(shelf(method, kind), tmp_path, method, kind, few=False)


def check(small, folder, method, kind, *, few):
    for suffix, part, refused in wrong_parts(method, parts_of(small), few=few):
        path = resealed(small, folder / f"damaged{small.suffix}", {suffix: part})
        found = {name: ending(path, read) for name, read in readers(kind, path, small.parent).items()}
        assert len({*found.values()}) == 1, (suffix, part.dtype, part.shape, found)
        assert all((end is not None) == refused for end in found.values()), (suffix, part.dtype, part.shape)
        assert all(end is None or end[0] == 3 for end in found.values())


def test_row_66_words_of_the_command_line(shelf, tmp_path):
    """The part, what it is and what it should be; the same line and exit code from each command."""
    zeros = parts_of(shelf("pq", "file"))["0.zeros"]
    path = resealed(
        shelf("pq", "file"), tmp_path / "damaged.safetensors", {"0.zeros": zeros.to(torch.float32)}
    )
    for command in (("report",), ("verify",), ("expand", "-o", tmp_path / "dense.safetensors")):
        done = run(command[0], path, *command[1:])
        assert done.exit_code == 3
        assert f"{TABLE}: part 0.zeros is of F32, expected row numbers (I32)" in done.stderr


# ---- memory


def sparse(path: Path, method: str, shape, rank, parts) -> int:
    """A file whose parts are holes, but for those given as bytes; returns its size.

    Args:
        path: where to write.
        method: of its record.
        shape: (V, d).
        rank: by its record.
        parts: suffix -> (type, shape, bytes or None).
    """
    entries, data, at = {}, {}, 0
    widths = {"U8": 1, "F16": 2, "F32": 4, "I32": 4}
    for suffix, (dtype, size, content) in parts.items():
        count = math.prod(size) * widths[dtype]
        entries[f"embedding.{suffix}"] = {"dtype": dtype, "shape": size, "data_offsets": [at, at + count]}
        data[at], at = content, at + count
    dense = shape[0] * shape[1] * 4
    record = TableRecord(
        TABLE, shape, "F32", method, rank, "F16", 8, 1 - at / dense, 0.5, tuple(parts),
        seed=method_for(method).seed, digests=(NO_DIGEST,) * len(parts),
    )  # fmt: skip
    text = Description("0", {}, (record,)).to_json()
    raw(path, {"__metadata__": {"embcompress": text}, **entries})
    begin = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(begin + at)
        for place, content in data.items():
            if content is not None:
                file.seek(begin + place)
                file.write(content)
    return path.stat().st_size


def half(*values):
    return np.array(values, np.float16).tobytes()


def large(size):
    """For each byte part of each method, a file in which it is the large one."""
    rows, kept = size, 8 * size
    lplr = {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None),
            "1.codes": ("U8", [1, 1], None), "1.scales": ("F32", [1, 1], None),
            "0.bits": ("U8", [1, 2], bytes([1, 8]))}  # fmt: skip
    pq = {"0.codes": ("U8", [rows, 2], None), "0.extra": ("U8", [1, 1], None),
          "0.hot": ("U8", [rows // 8, 1], b"\x80"), "0.rates": ("U8", [2, 2], bytes([2, 2, 16, 2])),
          "0.codebooks": ("F16", [1, 4 + 516], None), "0.scales": ("F32", [2, 2], None),
          "0.zeros": ("I32", [rows // 4, 1], None),
          "1.codes": ("U8", [2, 2], None), "1.scales": ("F32", [2, 1], None)}  # fmt: skip
    side = math.isqrt(size)
    wide = {"0.codes": ("U8", [side, side], None), "0.scales": ("F16", [side, 1], None),
            "1.codes": ("U8", [side, side // 2], None), "1.scales": ("F32", [side, 1], None),
            "0.bits": ("U8", [1, 2], bytes([8, 4]))}  # fmt: skip
    return {
        "screen": ((kept, 1), None, {"0.kept": ("U8", [size, 1], None), "0.weight": ("F32", [1, 1], None)}),
        "screen+int8": (
            (kept, 1),
            None,
            {"0.kept": ("U8", [size, 1], None), "0.codes": ("U8", [1, 1], None),
             "0.scales": ("F16", [1, 1], half(1))},
        ),
        "int8": ((rows, 1), None, {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None)}),
        "int3": ((rows, 2), None, {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None)}),
        "lplr": ((rows, 1), 1, lplr),
        "lplr, right": ((side, side), side, wide),
        "pq": ((rows, 2), 2, pq),
        "svd": ((rows, 1), 1, {"0.weight": ("F32", [rows, 1], None), "1.weight": ("F32", [1, 1], None)}),
    }  # fmt: skip


@needs_proc
@pytest.mark.parametrize("size", [2 * MB, pytest.param(16 * MB, marks=pytest.mark.slow)])
def test_row_67_memory_of_claims_of_bits(tmp_path, size):
    """A hole of bits unfolds to no more than 32 bytes per byte; nor does any other part of bytes."""
    cases = large(size)
    if size == 2 * MB:
        cases = {name: cases[name] for name in ("screen", "pq", "lplr, right")}
    for name, (shape, rank, parts) in cases.items():
        path = tmp_path / "sparse.safetensors"
        stored = sparse(path, name.partition(",")[0], shape, rank, parts)
        room = ROOM + 32 * stored
        for end in commands(tmp_path, room, [("report", path), ("verify", path)]):
            assert end.code in (0, 1), (name, end)  # verify finds that no digest fits
            assert end.taken <= room


@pytest.mark.parametrize("name", ["screen", "screen+int8", "int8", "lplr", "pq"])
def test_row_67_the_bound_is_no_refusal_of_good_parts(tmp_path, name):
    """The sparse files decode to the zeros that they hold."""
    shape, rank, parts = large(1 << 10)[name]
    path = tmp_path / "sparse.safetensors"
    sparse(path, name, shape, rank, parts)
    embcompress.expand(path, output=tmp_path / "dense.safetensors")
    net = embcompress.load(torch.nn.ModuleDict({"embedding": torch.nn.Embedding(*shape)}), path)
    dense = tensors_of(tmp_path / "dense.safetensors")[TABLE]
    ids = torch.tensor([0, 1, 7, 8, shape[0] - 1])
    torch.testing.assert_close(net["embedding"](ids), dense[ids])
