"""An overlay, as containers have it, cannot rename directories of a lower layer: they are copied aside."""

from __future__ import annotations

import pytest
from helpers.mounts import with_mounts

STRIKE = """
import os, signal, subprocess, sys, threading
from pathlib import Path
from helpers.crashing import is_operation, listing
from embcompress.storage.staging import discard, rename, staged

def mount():
    subprocess.run("umount m 2>/dev/null; rm -rf u w; mkdir u w;"
                   "mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m", shell=True, check=True)

def replace():
    with staged(Path("m/old"), force=True) as stage:
        stage.mkdir()
        for name in ("new", "same"):
            (stage / name).write_text(name)

def struck(moment):
    # The operations are those of the main thread and of C functions, as in test_crashes.
    child = os.fork()
    if not child:
        left = [moment]
        def profile(_frame, event, function):
            if event == "c_call" and is_operation(function):
                left[0] -= 1
                if left[0] == -1:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(profile)
        replace()
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def under(path):
    return {name: digest for name, digest in listing(path).items()} if path.exists() else {}

mount()
try:
    os.rename("m/old", "m/other")
except OSError as error:
    assert error.errno == 18, error
else:
    sys.exit(77)  # this overlay renames such directories
old = under(Path("m/old"))
replace()
new = under(Path("m/old"))
assert new.keys() == {"new", "same"} and len(old) == 3, (old, new)
assert os.listdir("m") == ["old"], os.listdir("m")
ends, moment, went_on = set(), 0, True
while went_on:
    mount()
    went_on = struck(moment)
    stage = Path("m/.old.embcompress")
    places = {name: under(path) for name, path in
              (("place", Path("m/old")), ("copied", stage / "copied"), ("replaced", stage / "replaced"))}
    whole = [name for name, found in places.items() if found in (old, new)]
    assert whole, (moment, places)
    ends.add((*whole, "new" if places["place"] == new else ""))
    try:  # the next run puts it right, also where it fails
        with staged(Path("m/old"), force=True):
            raise KeyError
    except KeyError:
        pass
    assert under(Path("m/old")) in (old, new), (moment, under(Path("m/old")))
    assert os.listdir("m") == ["old"], (moment, os.listdir("m"))
    moment += 1
assert {("place", "")} < ends, ends
assert any("copied" in end for end in ends), ends

mount()
rename(Path("m/old"), Path("m/kept"))
assert under(Path("m/kept")) == old and os.listdir("m") == ["kept"]
mount()
discard(Path("m/old"))
assert os.listdir("m") == []

mount()  # what the user puts in the place of a half-removed directory is not touched
Path("m/.old.embcompress/copied").mkdir(parents=True)
Path("m/.old.embcompress/copied/same").write_text("older")
Path("m/old/mine").write_text("mine")
try:
    with staged(Path("m/old"), force=True):
        raise KeyError
except KeyError:
    pass
assert Path("m/old/mine").read_text() == "mine"
print(moment)
"""


def test_row_32_a_directory_of_a_lower_layer(tmp_path):
    """Killed at any operation, the old directory or the new one is whole, and the next run finds it."""
    (tmp_path / "l/old/deep").mkdir(parents=True)
    for number, name in enumerate(("same", "deep/first", "deep/large")):
        (tmp_path / "l/old" / name).write_text("old" * (number + 1))
    (tmp_path / "m").mkdir()
    (tmp_path / "layers").mkdir()
    # The layers lie on a file system of their own: an overlay cannot be the upper layer of another.
    mounts = "mount -t tmpfs none layers; cp -r l m layers; cd layers"
    done = with_mounts(tmp_path, mounts, "-c", STRIKE)
    if done.returncode == 77:
        pytest.skip("no overlay here, or one that renames")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
