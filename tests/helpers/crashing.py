"""Commands that fail or die at an operation on files, at each in turn, and the runs that mend it.

As a program it is the place where all that happens: a process that has everything imported, for all the
tests of a session, and a fork for each run. A profile function sees every call of a C function before it
is made, so the n-th write, sync, rename and so on is where the n-th run raises an ``OSError`` or is
killed: "anywhere" is all of these places, and no clock decides.
"""

from __future__ import annotations

import errno
import functools
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

DEEDS = ("ENOSPC", "EIO", "SIGKILL", "SIGINT")
_SYSTEM = frozenset(
    {
        *("write", "pwrite", "writev", "pwritev", "copy_file_range", "sendfile", "truncate", "ftruncate"),
        *("fsync", "fdatasync", "rename", "replace", "link", "mkdir", "unlink", "remove", "rmdir"),
    }
)
_METHODS = frozenset({"write", "writelines", "flush", "truncate"})
_FILES = (io.BufferedWriter, io.BufferedRandom, io.FileIO, io.TextIOWrapper)
_TORCH = frozenset({"write_record", "write_end_of_file"})


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        deed: what was done to it, one of ``DEEDS``; empty where nothing was to be.
        code: exit code, or minus the signal.
        struck: whether it came as far as the operation.
        errors: what it said on stderr.
        files: SHA-256 of every file in the folder of its target, by path.
    """

    deed: str
    code: int
    struck: bool
    errors: str
    files: dict[str, str]


@functools.cache
def _server(*, learning):
    from helpers.server import Server

    return Server(["-B", __file__, *["learning"] * learning], {})


def strikes(deeds, arguments, target, *, old=None, stride=1):
    """A whole run, and then pairs: one that was struck, and the next one, which has to mend it.

    Args:
        deeds: some of ``DEEDS``, done in turn.
        arguments: the command line without its output.
        target: the output, in a folder of its own.
        old: what stands there before each run, None for nothing.
        stride: how many operations lie between two strikes.
    """
    server = _server(learning=arguments[0] not in ("factorize", "expand"))
    answer = server.ask([deeds, [*map(str, arguments)], str(target), old and str(old), stride])
    whole, *rest = [Run(*run) for run in answer]
    return whole, [*zip(rest[::2], rest[1::2], strict=True)]


def is_operation(function):
    """Whether a C function changes something on a disk; the terminal is none."""
    name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if getattr(owner, "__name__", None) == "posix":
        return name in _SYSTEM
    if isinstance(owner, _FILES):
        return name in _METHODS and getattr(owner, "name", "") not in ("<stdout>", "<stderr>")
    return name in _TORCH


class _Striker:
    """A profile function that strikes once, at operation ``moment``."""

    def __init__(self, deed, moment, flag):
        self._deed, self._left, self._flag = deed, moment, flag
        self._lock = threading.Lock()

    def __call__(self, _frame, event, function):
        if event != "c_call" or not is_operation(function):
            return
        with self._lock:
            self._left -= 1
            if self._left != -1:
                return
        os.write(self._flag, b"x")
        if self._deed.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self._deed])
        else:
            code = getattr(errno, self._deed)
            raise OSError(code, os.strerror(code))


def _command(arguments, striker=None):
    """A run of the command line in a fork; its exit code, whether it was struck, and its stderr."""
    from embcompress.cli import cli

    reading, flag = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(errors.fileno(), 2)
            if striker:
                profile = _Striker(*striker, flag)
                threading.setprofile(profile)
                sys.setprofile(profile)
            try:
                cli(arguments)
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(end.code or 0)
            finally:
                os._exit(99)
        os.close(flag)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        struck = os.read(reading, 1) == b"x"
        os.close(reading)
        errors.seek(0)
        return code, struck, errors.read().decode()


def listing(folder):
    """SHA-256 of every file in a folder, by path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _prepare(target, old):
    """The folder of the target as it is before a run."""
    shutil.rmtree(target.parent)
    target.parent.mkdir()
    if old:
        (shutil.copytree if os.path.isdir(old) else shutil.copy)(old, target)


def run_all(deeds, arguments, target, old, stride):
    """The whole run and the pairs, for :func:`strikes`."""
    target = Path(target)
    command = [*arguments, "-o", str(target)]
    forced = [*command, "--force"] if old else command
    runs = []

    def tell(deed, code, struck, errors):
        runs.append([deed, code, struck, errors, listing(target.parent)])

    _prepare(target, old)
    tell("", *_command(forced))
    moments, struck = zip(itertools.count(0, stride), itertools.cycle(deeds), strict=False), True
    while struck:
        moment, deed = next(moments)
        _prepare(target, old)
        code, struck, errors = _command(forced, (deed, moment))
        tell(deed, code, struck, errors)
        again = ["--resume"] * Path(f"{target}.resume").exists()
        tell("", *_command([*command, *again, *["--force"] * (target.exists() or bool(old))]))
    return runs


LOADED = (
    *("embcompress.workflows.factorize", "embcompress.workflows.expand", "embcompress.reports.terminal"),
    *("numpy.ma", "rich._emoji_codes"),
)
"""What factorize and expand import."""
LEARNING = (
    *(f"embcompress.workflows.{name}" for name in ("train", "compress", "distil")),
    *("embcompress.reports.learning_terminal", "embcompress.reports.comparison_terminal", "torch.profiler"),
)
"""What those import besides that learn; torch makes each fork ten times as expensive."""


def load(*, learning):
    """Import what the commands need."""
    for name in (*LOADED, *LEARNING * learning):
        importlib.import_module(name)
    if learning:
        import torch

        from embcompress.training import snapshots

        snapshots._PAUSE = snapshots._TIMES = 0.0  # a state is saved whenever it may be
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports much


def main():
    """Answer requests."""
    load(learning="learning" in sys.argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what shells start in the background ignores it
    gc.freeze()  # a collection in a fork would copy all that was loaded
    for request in sys.stdin:
        print(json.dumps(run_all(*json.loads(request))), flush=True)


if __name__ == "__main__":
    main()
