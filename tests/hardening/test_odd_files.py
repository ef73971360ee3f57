"""Row 69 of BAD_INPUTS: names that lead to pipes, sockets, devices, or endless files.

A reader that opened a pipe would wait for ever, and one that read ``/dev/zero`` would take all memory.
"""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from helpers.checkpoints import assert_one_line, directory, table
from helpers.hostile import COUNTING, READING, ROOM, commands, needs_proc

pytestmark = needs_proc

TERABYTE = 1 << 40
ODD = ("pipe", "link to a pipe", "device", "endless")
SAYS = {"pipe": "is a pipe", "link to a pipe": "is a pipe", "device": "is a device", "endless": "limit"}


def put(path, kind):
    """Something odd in the place of a file."""
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link to a pipe":
            os.mkfifo(path.parent.parent / f"{path.parent.name} {path.name}")
            path.symlink_to(path.parent.parent / f"{path.parent.name} {path.name}")
        case "device":
            path.symlink_to("/dev/zero")
        case "endless":
            with path.open("wb") as file:
                file.truncate(TERABYTE)


def assert_refused(folder, jobs, *, code=3, modules=READING):
    """Each of ``jobs`` fails with ``code`` and one line, and no name comes or goes."""
    before = sorted(folder.rglob("*"))
    ended = commands(folder, ROOM, jobs, modules)
    for job, end in zip(jobs, ended, strict=True):
        assert end.code == code, (job, end)
        assert_one_line(end.stderr, "")
    assert sorted(folder.rglob("*")) == before
    return ended


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory with every small file that is read, and its compressed copy."""
    path = tmp_path_factory.mktemp("models")
    model = directory(path / "model", [{"embedding.weight": table()}, {"b": np.ones(3, np.float32)}])
    (model / "README.md").write_text("# Mine\n")
    (model / "modules.json").write_text("[]")
    (path / "texts.txt").write_text("words\n")
    (end,) = commands(path, ROOM, [("factorize", model, "--rank", 2, "-o", path / "small")])
    assert end.code == 0, end
    return path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "modules.json"])
def test_row_69_small_files_of_a_directory(models, tmp_path, name):
    """Refused in one line, before anything is read that is not a file."""
    jobs, said = [], []
    for kind in ODD:
        for source in ("model", "small"):
            path = shutil.copytree(models / source, tmp_path / f"{kind} {source}")
            if name == "model.safetensors.index.json" and kind != "endless":
                continue  # then it counts as absent, as for transformers
            put(path / name, kind)
            done = (
                (("report",), ("factorize", "--rank", 2)) if source == "model" else (("expand",), ("verify",))
            )
            jobs += [(*job, path) for job in done]
            said += [SAYS[kind]] * (len(jobs) - len(said))
    for says, end in zip(said, assert_refused(tmp_path, jobs), strict=True):
        assert f"{name}: " in end.stderr
        assert says in end.stderr


def test_row_69_files_that_are_only_carried(models, tmp_path):
    """They are left out without being opened, and the user is told."""
    jobs = []
    for kind in ("pipe", "device"):
        path = shutil.copytree(models / "model", tmp_path / kind)
        for name in ("README.md", "notes.txt"):
            put(path / name, kind)
        jobs += [("factorize", path, "--rank", 2, "-o", tmp_path / f"{kind} small")]
    for end in commands(tmp_path, ROOM, jobs):
        assert end.code == 0, end
        assert "left out, because they are not regular files: README.md, notes.txt" in end.stderr
    checks = [("verify", tmp_path / f"{k} small", "--against", tmp_path / k) for k in ("pipe", "device")]
    for end in commands(tmp_path, ROOM, checks):
        assert end.code == 0, end
    assert (tmp_path / "pipe small" / "README.md").read_text().startswith("---")
    assert not (tmp_path / "pipe small" / "notes.txt").exists()


def test_row_69_the_words_of_a_static_model(tmp_path):
    """With which texts are split for WordEmbeddings."""
    jobs = []
    for kind in ODD:
        path = directory(tmp_path / kind, [{"emb_layer.weight": table()}])
        words = {"path": "", "type": "sentence_transformers.models.WordEmbeddings"}
        (path / "modules.json").write_text(json.dumps([words]))
        put(path / "whitespacetokenizer_config.json", kind)
        jobs.append(("factorize", path, "--rank", 2, "--corpus", tmp_path / "texts.txt"))
    (tmp_path / "texts.txt").write_text("words\n")
    for kind, end in zip(ODD, assert_refused(tmp_path, jobs), strict=True):
        assert "whitespacetokenizer_config.json: " in end.stderr
        assert SAYS[kind] in end.stderr


def test_row_69_tokenizers(models, tmp_path):
    """With which tokens are counted."""
    jobs = []
    for kind in ODD:
        path = shutil.copytree(models / "model", tmp_path / kind)
        put(path / "tokenizer.json", kind)
        jobs.append(("factorize", path, "--rank", 2, "--corpus", models / "texts.txt"))
    for kind, end in zip(ODD, assert_refused(tmp_path, jobs, modules=COUNTING), strict=True):
        assert "tokenizer.json: " in end.stderr
        assert SAYS[kind] in end.stderr


def test_row_69_files_that_the_user_names(models, tmp_path):
    """A wrong name is a wrong request; an endless array of counts is a wrong file."""
    jobs, model = [], models / "model"
    for kind in ("pipe", "device"):
        for name in ("counts.csv", "counts.npy"):
            (tmp_path / kind).mkdir(exist_ok=True)
            put(tmp_path / kind / name, kind)
            jobs.append(("factorize", model, "--rank", 2, "--weights", tmp_path / kind / name))
        jobs.append(("report", tmp_path / kind / "counts.npy"))
    for end in assert_refused(tmp_path, jobs, code=2, modules=COUNTING):
        assert "is not a regular file" in end.stderr
    put(tmp_path / "counts.npy", "endless")
    job = ("factorize", model, "--rank", 2, "--weights", tmp_path / "counts.npy")
    (end,) = commands(tmp_path, ROOM, [job], COUNTING)
    assert end.code == 3, end
    assert "1,099,511,627,776 bytes, limit" in end.stderr
