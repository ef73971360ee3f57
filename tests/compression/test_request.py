"""A request is checked before anything is opened, and the recorded command asks for the same again."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.checkpoints import contents, succeed, table
from safetensors.numpy import save_file

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import EmbcompressError, UsageError

TABLE = "embedding.weight"


@pytest.fixture
def model(tmp_path):
    save_file({TABLE: table(200, 16), "fc.weight": table(4, 16)}, tmp_path / "model.safetensors")
    np.save(tmp_path / "counts.npy", np.arange(200.0))
    return tmp_path / "model.safetensors"


def command_of(path):
    with open_checkpoint(path) as opened:
        return opened.description.command


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4},
        {"ratio": 0.5, "method": "pq"},
        {"energy": 0.9, "keys": TABLE, "layout": "sequential"},
        {"max_error": 0.4, "keys": [TABLE], "dtype": "float16", "split_scale": "even"},
        {"max_size": 9e3, "method": "auto", "layout": "embcompress"},
        {"rank": 3, "weights": "counts.npy", "smoothing": 1.0, "nan": "zero"},
        {"rank": 3, "smoothing": 0.25, "text_column": "a b", "all_tables": True},
    ],
)
def test_the_recorded_command_writes_the_same_bytes(monkeypatch, model, options):
    """Run where the files are, it needs nothing but a place to write."""
    monkeypatch.chdir(model.parent)
    first, again = Path("first.safetensors"), Path("again.safetensors")
    embcompress.factorize(model, output=first, **options)
    words = shlex.split(command_of(first))
    assert words[:3] == ["embcompress", "factorize", model.name]
    succeed(*words[1:], "-o", again)
    assert again.read_bytes() == first.read_bytes()


def test_a_command_line_cannot_hold_an_array(model, tmp_path):
    """Such an output records no command; one of texts or files by any path has their names alone."""
    embcompress.factorize(model, rank=3, weights=np.arange(200.0), output=tmp_path / "a.safetensors")
    assert command_of(tmp_path / "a.safetensors") is None
    embcompress.factorize(model, rank=3, weights=tmp_path / "counts.npy", output=tmp_path / "b.safetensors")
    assert str(tmp_path) not in command_of(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rank": 2, "ratio": 0.5},
        {"ratio": 1.5},
        {"rank": 2, "method": "none"},
        {"rank": 2, "dtype": "int8"},
        {"rank": 2, "split_scale": "up"},
        {"rank": 2, "layout": "none"},
        {"rank": 2, "nan": "none"},
        {"rank": 2, "smoothing": 2.5},
        {"rank": 2, "weights": "counts.npy", "corpus": "texts.txt"},
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_opened(tmp_path, wrong):
    """A usage error, although the checkpoint is corrupt; its own error comes with a request that is right."""
    corrupt = tmp_path / "model.safetensors"
    corrupt.write_bytes(b"none")
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        embcompress.factorize(corrupt, **wrong)
    with pytest.raises(EmbcompressError) as caught:
        embcompress.factorize(corrupt, rank=2)
    assert caught.value.exit_code == 3
    assert contents(tmp_path) == before
