"""Outputs appear whole or not at all: rows 31 and 32 of BAD_INPUTS, with real kills and limits."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource

import pytest
from helpers.checkpoints import (
    assert_one_line,
    assert_refused,
    contents,
    directory,
    start,
    succeed,
    table,
)
from helpers.quick import quick
from helpers.refusals import refused
from safetensors.numpy import save_file

from embcompress.errors import EmbcompressError, UsageError
from embcompress.storage.staging import staged, synced_in_background
from embcompress.storage.targets import check_target

TABLE = "embedding.weight"


def stage_of(target):
    """The staging place of an output."""
    return target.with_name(f".{target.name}.embcompress")


def model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({TABLE: table(), "rest": table(20, 20, seed=1)}, path)
    return path


def model_directory(tmp_path):
    shards = [{TABLE: table(), "norm": table(1, 16)[0]}, {"rest": table(20, 20, seed=1)}]
    return directory(tmp_path / "model", shards, vocab_size=64)


def rank_of(path):
    """The rank in an output, which tells old from new; the output is opened by ``report``."""
    return json.loads(succeed("report", path, "--json").stdout)["compressed"][0]["rank"]


# ---- staged(): the promise itself


def fail_halfway(target, error, *, force):
    with staged(target, force=force) as place:
        place.mkdir()
        (place / "half").write_text("half")
        raise error


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing(tmp_path, force, error):
    """Whatever is raised, interrupts too, what was written is removed and the old output stays."""
    target = tmp_path / "small.pt"
    if force:
        target.write_text("old")
    before = contents(tmp_path)
    with pytest.raises(error):
        fail_halfway(target, error, force=force)
    assert contents(tmp_path) == before


def test_a_block_that_ends_well_publishes_its_file(tmp_path):
    """The output gets its name at the end, not before, and nothing else remains."""
    with staged(tmp_path / "small.pt", force=False) as place:
        place.write_text("new")
        assert not (tmp_path / "small.pt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["small.pt"]
    assert (tmp_path / "small.pt").read_text() == "new"


def test_a_directory_replaces_a_directory_whole(tmp_path):
    """No file of the old output survives in the new one."""
    target = tmp_path / "small"
    target.mkdir()
    (target / "old").write_text("old")
    with staged(target, force=True) as place:
        place.mkdir()
        (place / "new").write_text("new")
    assert [*contents(tmp_path)] == ["small", "small/new"]


def test_an_output_that_came_into_being_meanwhile_is_kept(tmp_path):
    """Without --force the last moment decides, not the first."""
    target = tmp_path / "small.pt"

    def meet_another():
        with staged(target, force=False) as place:
            place.write_text("new")
            target.write_text("someone else's")

    with refused(UsageError, str(target)):
        meet_another()
    assert [p.name for p in tmp_path.iterdir()] == ["small.pt"]
    assert target.read_text() == "someone else's"


def test_leftovers_of_a_killed_run_are_swept(tmp_path):
    """Files, folders and links of a dead run are removed; what a link leads to is not."""
    target = tmp_path / "small.pt"
    stage = stage_of(target)
    (stage / "small.pt" / "deep").mkdir(parents=True)
    (stage / "small.pt" / "deep" / "half").write_text("half")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thing").write_text("x")
    (stage / "link").symlink_to(tmp_path / "precious")
    with staged(target, force=False) as place:
        assert not any(stage.iterdir())
        place.write_text("new")
    assert [*contents(tmp_path)] == ["precious", "precious/thing", "small.pt"]


def test_an_old_directory_whose_replacement_was_cut_short_comes_back(tmp_path):
    """Killed between the two renames, the old output is put back by the next run, even a failing one."""
    target = tmp_path / "small"
    waiting = stage_of(target) / "replaced"
    waiting.mkdir(parents=True)
    (waiting / "old").write_text("old")
    with pytest.raises(ValueError, match="again"), staged(target, force=True):
        raise ValueError("again")
    assert [*contents(tmp_path)] == ["small", "small/old"]


def test_the_lock_is_held_and_released(tmp_path):
    """A second run on the same output is refused while the first is at work, and not after it."""
    target = tmp_path / "small.pt"
    with staged(target, force=False) as place:
        place.write_text("first")
        with (
            refused(EmbcompressError, "another run") as caught,
            staged(target, force=True),
        ):
            pass
        assert caught.value.exit_code == 1
        assert place.read_text() == "first"
    with staged(target, force=True) as place:
        place.write_text("second")
    assert target.read_text() == "second"
    assert [*contents(tmp_path)] == ["small.pt"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_staging_place_that_is_no_directory_is_an_error(tmp_path, kind):
    """A file or link of that name is the user's: it is neither used nor removed."""
    target = tmp_path / "small.pt"
    if kind == "file":
        stage_of(target).write_text("mine")
    else:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thing").write_text("x")
        stage_of(target).symlink_to(tmp_path / "mine")
    before = contents(tmp_path)
    with pytest.raises(OSError, match=str(stage_of(target))), staged(target, force=False):
        pass
    assert contents(tmp_path) == before


def test_a_good_target_passes(tmp_path):
    """A free name beside the input, and with force an old output, raise nothing."""
    source = tmp_path / "model.pt"
    source.write_text("model")
    check_target(tmp_path / "small.pt", (source,), force=False)
    (tmp_path / "small.pt").write_text("old")
    check_target(tmp_path / "small.pt", (source,), force=True)


# ---- row 31: places that cannot be written


def finished(process):
    """Exit code and stderr of a process that ends by itself."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == ""
    return process.returncode, err


LIMITS = {f"{kind}, {limit}": (kind, limit) for kind in ("file", "directory") for limit in (0, 700, 2500)}


@pytest.mark.parametrize(("kind", "limit"), quick(LIMITS, "file, 700", "directory, 2500"))
def test_row_31_file_size_limit(tmp_path, kind, limit):
    """A limit on the size of files (ulimit -f) ends the run at any stage of writing, and nothing stays."""
    model = model_file(tmp_path) if kind == "file" else model_directory(tmp_path)
    before = contents(tmp_path)
    process = start(
        *("factorize", model, "--rank", 4),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    code, err = finished(process)
    assert code == 1
    assert_one_line(err, "File too large; raise the file size limit (ulimit -f)")
    assert contents(tmp_path) == before


def without_override():
    """Let permissions bind root too: the new program may not override them."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; needs root, and only root needs it


def test_row_31_read_only_place(tmp_path):
    """A folder that may not be written is named, with where else to write as the remedy."""
    model = model_file(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    before = contents(tmp_path)
    output = closed / "small.safetensors"
    code, err = finished(start("factorize", model, "--rank", 4, "-o", output, preexec_fn=without_override))
    assert code == 1
    assert_one_line(
        err, f"{stage_of(output)}: Permission denied; check its permissions, or write elsewhere with -o"
    )
    assert contents(tmp_path) == before


def test_row_31_unreadable_input(tmp_path):
    """An input that may not be read is named."""
    model = model_file(tmp_path)
    model.chmod(0o000)
    code, err = finished(start("factorize", model, "--rank", 4, preexec_fn=without_override))
    model.chmod(0o600)
    assert code in {1, 2}
    assert "Error: " in err.splitlines()[-1]
    assert model.name in err.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_row_31_a_name_too_long_for_the_disk(tmp_path):
    """A name that the file system does not take is an error of one line."""
    model = model_file(tmp_path)
    output = tmp_path / ("x" * 250)
    assert_refused(tmp_path, "factorize", model, "--rank", 4, "-o", output, code=1, says="File name too long")


# ---- row 32: two runs; kills and failing disks are in test_crashes.py


def test_row_32_two_runs_on_one_target(tmp_path):
    """While one run holds the output, another exits with 1 and one line, and harms nothing."""
    model, target = model_file(tmp_path), tmp_path / "small.safetensors"
    stage = stage_of(target)
    stage.mkdir()
    (stage / target.name).write_bytes(b"half of what the other run writes")
    lock = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ("factorize", model, "--rank", 4, "-o", target)
        assert_refused(tmp_path, *command, code=1, says="another run is writing the same output")
    finally:
        os.close(lock)
    succeed(*command)
    assert sorted(p.name for p in tmp_path.iterdir()) == [model.name, target.name]


def test_row_32_two_runs_at_once(tmp_path):
    """Of two processes started together at most one is refused, and the output is whole."""
    model, target = model_file(tmp_path), tmp_path / "small.safetensors"
    runs = [start("factorize", model, "--rank", 4, "-o", target, "--quiet") for _ in range(2)]
    ends = [finished(process) for process in runs]
    assert 0 in {code for code, _ in ends}
    for code, err in ends:
        if code:
            assert code in {1, 2}
            assert_one_line(err, "small.safetensors")
    assert rank_of(target) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [model.name, target.name]


def test_a_sync_beside_the_work_reports_its_failure(tmp_path):
    """The kernel tells a failed write once, so the sync that hears of it must raise it."""
    with pytest.raises(FileNotFoundError), synced_in_background(tmp_path / "absent"):
        pass
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"bytes")
    with synced_in_background(tmp_path / "folder"):
        (tmp_path / "other").write_bytes(b"the block runs meanwhile")
