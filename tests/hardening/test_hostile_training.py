"""Classifiers, models and texts made to harm, given to the commands that train and run models.

As in test_hostile.py: real commands in little memory, whose every deed is noted. PyTorch and transformers are
loaded before the bound is drawn, since they alone take a gigabyte of addresses.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers import sequence_models
from helpers.checkpoints import assert_one_line
from helpers.hostile import MB, READING, Ended, commands, needs_proc
from helpers.weather import weather
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embcompress.data.tokenizing import RECORD_KEY

pytestmark = needs_proc

LEARNING = (
    *READING,
    *(f"embcompress.workflows.{name}" for name in ("train", "finetune", "evaluate", "compress")),
    *("embcompress.reports.learning_terminal", "embcompress.training.loop", "torch.optim"),
)
"""What train, finetune, evaluate and compress load."""
DISTILLING = (
    *LEARNING,
    *("embcompress.workflows.distil", "embcompress.reports.comparison_terminal"),
    *("transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto"),
)
"""What distil and evaluate load for a Hugging Face directory of a BERT."""
ROOM = 192 * MB
"""Address space for PyTorch to compute in; a good run of each command takes less."""
ONCE = ("--epochs", 1, "--batch-size", 8)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Good inputs of each kind, each of which passes under the bound."""
    folder = tmp_path_factory.mktemp("good")
    weather(folder / "texts.csv")
    texts = (folder / "texts.csv").read_text().splitlines()[1:]
    (folder / "texts.txt").write_text("\n".join(line.rsplit(",", 1)[0] for line in texts))
    sequence_models.saved(folder / "model", sequence_models.bert())
    jobs = [
        ("train", folder / "texts.csv", "-o", folder / "dense.safetensors", *ONCE),
        ("factorize", folder / "dense.safetensors", "--rank", 2, "-o", folder / "small.safetensors"),
        ("finetune", folder / "small.safetensors", folder / "texts.csv", "-o", folder / "t.safetensors",
         *ONCE),
        ("evaluate", folder / "small.safetensors", folder / "texts.csv"),
        ("factorize", folder / "model", "--rank", 4, "-o", folder / "small"),
        ("evaluate", folder / "small", folder / "texts.csv"),
        ("evaluate", folder / "small", "--teacher", folder / "model", "--texts", folder / "texts.txt"),
        ("finetune", folder / "small", folder / "texts.csv", "-o", folder / "tuned", *ONCE),
        ("distil", folder / "small", "--teacher", folder / "model", "--texts", folder / "texts.txt",
         "-o", folder / "distilled", *ONCE),
    ]  # fmt: skip
    for job, end in zip(jobs, commands(folder, ROOM, jobs, DISTILLING), strict=True):
        assert end.code == 0, (job, end)
    return folder


def stamped(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and modification time of all files in a folder, some of which are too large to read."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def assert_refused(folder: Path, jobs: Sequence[Sequence[object]]) -> list[Ended]:
    """Each of ``jobs`` fails with one line, and ``folder`` is unchanged."""
    before = stamped(folder)
    ended = commands(folder, ROOM, jobs, DISTILLING)
    for job, end in zip(jobs, ended, strict=True):
        assert end.code in (2, 3), (job, end)
        assert end.stdout == "", job
        assert_one_line(end.stderr, "")
        assert "out of memory" not in end.stderr, job
    assert stamped(folder) == before
    return ended


# ---- texts


def hole(path: Path) -> Path:
    """A terabyte of zeros that needs no disk space."""
    path.write_bytes(b"text,label\n")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    return path


def test_row_59_texts_without_end(good, tmp_path):
    """Records are limited wherever texts are read, and a label for each text does not make a huge layer."""
    small, model, out = good / "small", good / "model", tmp_path / "out"
    quote, columns = tmp_path / "quote.csv", tmp_path / "columns.csv"
    quote.write_bytes(b'text,label\n"' + b"x\n" * (8 * MB))
    columns.write_bytes(b"text,label" + b",x" * (8 * MB))
    jobs: list[tuple[object, ...]] = []
    for texts in (hole(tmp_path / "hole.csv"), quote, columns):
        jobs += [
            ("train", texts, "-o", out.with_suffix(".pt")),
            ("finetune", f"{small}.safetensors", texts, "-o", f"{out}.safetensors"),
            ("evaluate", f"{small}.safetensors", texts),
            ("finetune", small, texts, "-o", out),
        ]
    for texts in (quote, hole(tmp_path / "hole.txt")):
        jobs += [
            ("distil", small, "--teacher", model, "--texts", texts, "-o", out),
            ("evaluate", small, "--teacher", model, "--texts", texts),
            ("factorize", model, "--rank", 4, "--corpus", texts, "-o", out),
        ]
    labels = tmp_path / "labels.csv"
    labels.write_text("text,label\n" + "".join(f"a,{number}\n" for number in range(100_000)))
    *ended, last = assert_refused(tmp_path, [*jobs, ("train", labels, "-o", out.with_suffix(".pt"))])
    for end in ended:
        assert end.code == 3
        assert re.search("line [12]: .* limit", end.stderr), end
    assert "line 10002: label '10000' is one more than 10,000, the limit" in last.stderr


def test_row_118_texts_without_end_or_bottom_in_each_format(good, tmp_path):
    """Lines are limited in every format and encoding, and so is what unfolds from gzip."""
    small, model, out = good / "small", good / "model", tmp_path / "out"
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    row = b"x" * 1000 + b",b\n"
    bomb = packer.compress(b"text,label\n") + b"".join(packer.compress(row * 1000) for _ in range(50))
    bomb += packer.flush()
    files = {
        "bomb.csv": (bomb, ()),
        "bomb.txt": (bomb, ()),
        "line.csv.gz": (gzip.compress(bytes(b"text,label\n" + b"a" * (20 * MB)), 1), ()),
        "deep.jsonl": (b"[" * (1 * MB - 1) + b"\n", ()),
        "deeper.jsonl": (b'{"text":' * 100_000, ()),
        "keys.jsonl": (b"{" + b",".join(b'"%d":0' % i for i in range(70_000)) + b"}", ()),
        "long.jsonl": (b'{"text": "' + b"x" * (8 * MB), ()),
        "number.jsonl": (b'{"text": "a", "label": ' + b"9" * (MB // 2) + b"}\n" + b'{"text": 1e9', ()),
        "fast.txt": (b"__label__a " + b"x" * (8 * MB), ("--text-format", "fasttext")),
    }
    jobs: list[tuple[object, ...]] = []
    for name, (content, words) in files.items():
        (tmp_path / name).write_bytes(content)
        if len(jobs) % 2:
            jobs.append(("train", tmp_path / name, "-o", out.with_suffix(".pt"), *words))
        else:
            jobs.append(("factorize", model, "--rank", 4, "--corpus", tmp_path / name, "-o", out, *words))
    endless = hole(tmp_path / "hole.txt")
    for words in (("--encoding", "utf-16"), ("--encoding", "utf-32-be"), ("--text-format", "jsonl")):
        jobs.append(("evaluate", small, "--teacher", model, "--texts", endless, *words))
    jobs.append(("factorize", model, "--rank", 4, "--check", endless, "-o", out))
    jobs.append(("distil", small, "--teacher", model, "--texts", tmp_path / "bomb.txt", "-o", out))
    for job, end in zip(jobs, assert_refused(tmp_path, jobs), strict=True):
        assert end.code in (2, 3), (job, end)


# ---- classifiers


MORE = "describes a model of far more tensors than its weights"
RECORDS = {
    "dimension": (
        {"architecture": {"dimension": (1 << 24) - 1}},
        3,
        "record says [30, 16777215]",
    ),
    "hidden": (
        {"architecture": {"hidden": [(1 << 24) - 1] * 2}},
        3,
        "record says [67108860",
    ),
    "layers": ({"architecture": {"hidden": [1] * 200_000}}, 3, MORE),
    "labels": (
        {"labels": [str(number) for number in range(200_000)]},
        3,
        "200,000 labels, limit 10,000",
    ),
    "code": ({"architecture": {"name": "module", "factory": "os:system"}}, 2, "if you trust that code"),
    "length": ({"max_length": 10**4000}, 0, ""),
}
"""Changes to a classifier's record, and the result of each."""


def test_row_60_records_of_classifiers_that_claim_more_than_there_is(good, tmp_path):
    """Nothing is built that the stored weights do not fill; a limit is not taken for a size."""
    with safe_open(good / "dense.safetensors", "pt") as file:
        metadata = file.metadata()
    jobs = []
    for name, (changes, *_) in RECORDS.items():
        record = json.loads(metadata[RECORD_KEY])
        for key, value in changes.items():
            record[key] = {**record[key], **value} if isinstance(value, dict) else value
        path = tmp_path / f"{name}.safetensors"
        save_file(load_file(good / "dense.safetensors"), path, {**metadata, RECORD_KEY: json.dumps(record)})
        jobs.append(("evaluate", path, good / "texts.csv"))
    ended = commands(tmp_path, ROOM, jobs, LEARNING)
    for end, (name, (_, code, words)) in zip(ended, RECORDS.items(), strict=True):
        assert end.code == code, (name, end)
        assert words in end.stderr, (name, end)


# ---- directories


BILLION = 10**9
COUNT = "limit 100,000"
CONFIGS = {
    **{
        key: ({key: BILLION}, 3, "its weights are")
        for key in ("hidden_size", "vocab_size", "intermediate_size", "max_position_embeddings")
    },
    **{key: ({key: BILLION}, 3, COUNT) for key in ("num_hidden_layers", "num_labels", "num_attention_heads")},
    "layers": ({"num_hidden_layers": 99_000}, 3, MORE),
    "labels": (
        {"id2label": {str(number): str(number) for number in range(200_000)}},
        3,
        "200,000 labels, limit 10,000",
    ),
    "heads": ({"num_attention_heads": -1}, 3, "the model does not run"),
    "code": ({"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}, 0, ""),
    "kernel": ({"attn_implementation": "someone/kernel"}, 0, ""),
    "experts": ({"experts_implementation": "someone/kernel"}, 3, "not supported"),
    "dotted": ({"architectures": ["os.system"]}, 2, "code that comes with a model is not run"),
    "class": ({"architectures": ["Trainer"]}, 2, "has no architecture Trainer"),
    "quantized": ({"quantization_config": {"quant_method": "bitsandbytes"}}, 2, "quantized by bitsandbytes"),
    "function": ({"hidden_act": "os.system"}, 3, "os.system"),
    "dtype": ({"dtype": "system"}, 3, "system"),
    "chunks": ({"chunk_size_feed_forward": BILLION}, 0, ""),
}
"""Changes to a config.json, and the result of each."""


def with_config(source: Path, target: Path, changes: Mapping[str, object]) -> Path:
    """A copy of a directory with changes to its config.json, and code next to it."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    if "num_labels" in changes:
        del config["id2label"], config["label2id"]
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    (target / "evil.py").write_text(f"open({str(target.parent / 'ran')!r}, 'w')\n")
    return target


def test_row_61_configurations_that_claim_more_than_there_is(good, tmp_path):
    """Nothing is built that the stored weights do not fill, nothing fetched, and no name leads to code.

    Dense directories, as those of teachers, are loaded by transformers itself, after the same check.
    """
    jobs, expected = [], []
    for name, (changes, *outcome) in CONFIGS.items():
        jobs.append(("evaluate", with_config(good / "small", tmp_path / name, changes), good / "texts.csv"))
        expected.append(outcome)
    for name in ("hidden_size", "num_hidden_layers", "layers", "code"):
        changes, *outcome = CONFIGS[name]
        teacher = with_config(good / "model", tmp_path / f"{name}-teacher", changes)
        jobs.append(("evaluate", good / "small", "--teacher", teacher, "--texts", good / "texts.txt"))
        expected.append(outcome)
    ended = commands(tmp_path, ROOM, jobs, DISTILLING)
    for job, end, (code, words) in zip(jobs, ended, expected, strict=True):
        assert end.code == code, (job, end)
        assert words in end.stderr, (job, end)
    assert not (tmp_path / "ran").exists()


VALUES = (-1, 0, 3, BILLION, 10**30, 1e300, True, None, "x", [], {}, [BILLION] * 3)


@pytest.mark.slow
def test_row_61_any_value_of_any_key(good, tmp_path):
    """Each gives a result or an error of one line, never a traceback."""
    config = json.loads((good / "small" / "config.json").read_text())
    jobs = []
    for key in (key for key in config if key != "quantization_config"):
        for number, value in enumerate(VALUES):
            path = with_config(good / "small", tmp_path / f"{key}-{number}", {key: value})
            jobs.append(("evaluate", path, good / "texts.csv"))
    assert len(jobs) > 250
    ended = commands(tmp_path, ROOM, jobs, DISTILLING)
    odd = [(job[1].name, end) for job, end in zip(jobs, ended, strict=True) if end.code not in (0, 2, 3)]
    assert odd == []
    for end in ended:
        if end.code:
            assert_one_line(end.stderr, "")
