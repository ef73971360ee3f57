"""Runs of the real command line in little memory, with a note of whatever they open, run or connect to.

Each command runs in a fork of a process that has loaded its modules, and may take only so much address
space more than that one has. Tests that need the same modules share the process.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import assert_one_line, contents
from helpers.server import Server

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="address space is measured in /proc, and limited by Linux"
)

MB = 1 << 20

DRIVER = r"""
import functools, gc, importlib, json, os, resource, sys, tempfile, time

for module in sys.argv[1:]:
    importlib.import_module(module)
from embcompress.cli import main

ELSEWHERE = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
             "subprocess.Popen", "pickle.find_class", "socket.__new__", "socket.connect",
             "socket.getaddrinfo", "urllib.Request"}
CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
           "os.chmod": 1, "os.chown": 1, "os.truncate": 1, "os.utime": 1}
seen = []

def is_inside(path, folder):
    if isinstance(path, int):
        return True  # of a file that was opened, which was seen
    path = os.path.realpath(os.path.join(os.getcwd(), os.fsdecode(path)))
    return path in ("/dev/null", folder) or path.startswith(folder + os.sep)

def hook(folder, event, args):
    changed = args[:CHANGES.get(event, 0)]
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        changed = args[:1]
    if event in ELSEWHERE or not all(is_inside(path, folder) for path in changed):
        seen.append(f"{event} {args}")

def run(folder, room, arguments, out, err, told):
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.chdir(folder)
    tempfile.tempdir = folder  # rows of text vectors are kept in a file without a name
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # torch makes it when it needs it
    sys.addaudithook(functools.partial(hook, folder))
    space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + room, space + room))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    sys.argv = ["embcompress", *arguments]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException as error:  # what Python would print as a traceback
        code = repr(error)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.flush()
    sys.stderr.flush()
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmPeak"))
    told.write(json.dumps([code, seen, peak * 1024 - space]).encode())
    told.flush()
    os._exit(0)

def forked(folder, room, arguments):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            run(folder, room, arguments, out, err, told)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err, told):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "backslashreplace"))
        return [status, *texts]

gc.freeze()  # a collection in a fork would copy all that was loaded
for line in sys.stdin:
    folder, room, jobs = json.loads(line)
    print(json.dumps([forked(folder, room, arguments) for arguments in jobs]), flush=True)
"""
"""Loads modules, and then runs the commands of each request one after another, each in a fork of its own."""

READING = (
    *(f"embcompress.workflows.{name}" for name in ("report", "factorize", "expand")),
    *(f"embcompress.reports.{name}" for name in ("terminal", "report_terminal", "chart")),
    *("embcompress.methods.stats", "embcompress.checkpoint.files", "embcompress.native", "numpy"),
)
"""What report, factorize and expand load."""
ONNX = (*READING, "embcompress.checkpoint.onnx.file", "embcompress.checkpoint.onnx.surgery", "onnx")
"""The same with the library of ONNX."""
COUNTING = (*READING, "embcompress.data.counting", "embcompress.data.tokenizing", "tokenizers")
"""The same with the library of tokenizers."""

ROOM = 48 * MB
"""Address space that small files are read and computed in; a good one takes 32 MB, most of it buffers."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code, or the error that would have been a traceback.
        stdout: what it printed.
        stderr: likewise.
        taken: bytes of address space at its peak, beyond what Python with its modules has.
    """

    code: int | str
    stdout: str
    stderr: str
    taken: int


@functools.cache
def _server(modules: tuple[str, ...]) -> Server:
    """The process that has these modules loaded, and a folder for what it writes itself."""
    scratch = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, scratch)  # run after the process has ended, which was registered later
    return Server(
        ["-c", DRIVER, *modules],
        {
            "PYTHONDONTWRITEBYTECODE": "1",
            "MALLOC_ARENA_MAX": "1",  # each thread would set 64 MB of addresses aside
            "TMPDIR": scratch,
            "TORCHINDUCTOR_CACHE_DIR": scratch,  # torch makes it when it is loaded
            "TOKENIZERS_PARALLELISM": "false",
            "RUST_BACKTRACE": "0",
            "COLUMNS": "200",
        },
    )


def commands(
    folder: Path, room: int, jobs: Iterable[Sequence[object]], modules: Sequence[str] = READING
) -> list[Ended]:
    """Run the command line with each of ``jobs``, in ``folder``, in ``room`` bytes of address space.

    None may run or connect to anything, nor write outside ``folder``.
    """
    every = [[str(argument) for argument in job] for job in jobs]
    done = _server(tuple(modules)).ask([str(folder.resolve()), room, every])
    ended = []
    for job, (status, stdout, stderr, told) in zip(every, done, strict=True):
        assert status == 0, f"{job} was ended by {status}: {stderr[-500:]}"
        code, seen, taken = json.loads(told)
        assert seen == [], f"{job} did {seen}"
        ended.append(Ended(code, stdout, stderr, taken))
    assert len(ended) == len(every)
    return ended


def assert_harmless(
    folder: Path, jobs: Iterable[Sequence[object]], *, codes: Iterable[int] = (3,), **options: Any
) -> list[Ended]:
    """Each of ``jobs`` fails with one of ``codes`` and one line, and ``folder`` is as it was."""
    before = contents(folder)
    jobs, codes = list(jobs), {*codes}
    ended = commands(folder, options.pop("room", ROOM), jobs, **options)
    for job, end in zip(jobs, ended, strict=True):
        assert end.code in codes, (job, end)
        assert end.stdout == "", job
        assert_one_line(end.stderr, "")
        assert "out of memory" not in end.stderr, job
    assert contents(folder) == before
    return ended


def assert_good(folder: Path, *paths: Path, modules: Sequence[str] = READING) -> None:
    """What is no harm passes under the same bound, and a smaller copy is written and made dense again."""
    jobs: list[Sequence[object]] = []
    for path in paths:
        small, dense = (path.with_name(f"{path.stem}-{kind}{path.suffix}") for kind in ("small", "dense"))
        jobs.append(("report", path, "--curve"))
        jobs += [("factorize", path, "--rank", 2, "-o", small), ("expand", small, "-o", dense)]
    for job, end in zip(jobs, commands(folder, ROOM, jobs, modules), strict=True):
        assert end.code == 0, (job, end)


def both(path: Path) -> list[tuple[object, ...]]:
    """A command that reads ``path``, and one that would write."""
    return [("report", path), ("factorize", path, "--rank", 1)]


def assert_plain(text: str) -> None:
    """Nothing in ``text`` controls a terminal."""
    assert all(c.isprintable() or c == "\n" for c in text), text
