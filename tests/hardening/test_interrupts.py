"""Row 68 of BAD_INPUTS: Ctrl-C at any moment, also while libraries are being imported."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import click
import pytest
import torch
from helpers import distilling
from helpers.checkpoints import contents
from helpers.striking import strike
from helpers.weather import weather
from safetensors.torch import save_file

import embcompress.cli
from embcompress.checkpoint import open_checkpoint
from embcompress.cli.boundary import Boundary
from embcompress.interruption import MESSAGE, is_interrupt

COMMANDS = {
    "report": ("report", "model.safetensors"),
    "factorize": ("factorize", "model.safetensors", "--rank", "4", "-o", "out"),
    "expand": ("expand", "small.safetensors", "-o", "out"),
    "verify": ("verify", "small.safetensors", "--against", "model.safetensors"),
    "train": ("train", "texts.csv", "-o", "out.safetensors", "--epochs", "2"),
    "compress": (
        "compress",
        "dense.safetensors",
        "texts.csv",
        "--rank",
        "2",
        "-o",
        "out.safetensors",
        "--epochs",
        "1",
    ),
    "distil": ("distil", "small", "--teacher", "model", "--texts", "texts.txt", "-o", "out", "--epochs", "1"),
    "evaluate": ("evaluate", "dense.safetensors", "texts.csv"),
    "finetune": (
        "finetune",
        "little.safetensors",
        "texts.csv",
        "-o",
        "out.safetensors",
        "--epochs",
        "1",
    ),
}
OUTPUTS = "out*"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands read."""
    path = tmp_path_factory.mktemp("struck")
    save_file({"embedding.weight": torch.randn(800, 32)}, path / "model.safetensors")
    weather(path / "texts.csv")
    distilling.command(path, [f"w{i % 7} w{i % 11}" for i in range(60)])
    for command in (
        ("factorize", "model.safetensors", "--rank", "4", "-o", "small.safetensors"),
        ("train", "texts.csv", "-o", "dense.safetensors", "--epochs", "1"),
        ("factorize", "dense.safetensors", "--rank", "2", "-o", "little.safetensors"),
    ):
        ended = strike(path, command)
        assert ended.code == 0, ended.stderr
    return path


def check(folder, arguments, moments):
    """Strike at moments from the start to the end; returns how many came before the end."""
    before = contents(folder)
    whole = strike(folder, arguments)
    assert whole.code == 0, whole.stderr
    noted = 0
    for moment in moments:
        clear(folder)
        ended = strike(folder, arguments, moment * whole.seconds)
        noted += ended.noted
        assert "Traceback" not in ended.stderr
        assert "Exception ignored" not in ended.stderr
        if not ended.noted:  # it had ended
            assert ended.code == 0, ended.stderr
            continue
        assert ended.code == 130, (moment, ended)
        errors = [line for line in ended.stderr.replace("\r", "\n").splitlines() if "Error" in line]
        assert len(errors) == 1, ended.stderr
        if not any("--resume" in line for line in errors):
            assert errors == [f"Error: {MESSAGE}"]
            for output in folder.glob(OUTPUTS):  # published before the strike, so whole
                with open_checkpoint(output) as written:
                    written.check_integrity()
    clear(folder)
    assert contents(folder) == before
    return noted


def clear(folder):
    for path in folder.glob(OUTPUTS):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_row_68_some_moments(tmp_path):
    """One line, exit code 130, and nothing left."""
    save_file({"embedding.weight": torch.randn(800, 32)}, tmp_path / "model.safetensors")
    assert check(tmp_path, COMMANDS["factorize"], (0.05, 0.3, 0.55)) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_row_68_fifty_moments(folder, command):
    """From the first line of ours to the last."""
    assert check(folder, COMMANDS[command], [(i + 0.5) / 50 for i in range(50)]) >= 10


WRAPPED = """
import signal, sys

import embcompress.cli
from embcompress.__main__ import main


class Part:
    def __set_name__(self, owner, name):
        signal.raise_signal(signal.SIGINT)


def run():
    {how}


embcompress.cli.main = run
main()
"""
HOWS = {
    "as it is": "signal.raise_signal(signal.SIGINT)",
    "wrapped": "type('Owner', (), {'part': Part()})",
    "lost": """
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise ImportError("no module")""",
    "in a destructor": """
    import time
    Dying = type("Dying", (), {"__del__": lambda self: signal.raise_signal(signal.SIGINT)})
    Dying()
    time.sleep(30)""",
    "in an import": """
    import time
    sys.meta_path.insert(0, type("Finder", (), {"find_spec": staticmethod(find)}))
    try:
        import nonsense
    except ImportError as error:
        assert "not struck" in str(error)
    time.sleep(30)""",
}
FIND = """
def find(name, *_):
    signal.raise_signal(signal.SIGINT)
    raise ImportError("not struck")
"""


def ended(code):
    """How a process that runs ``code`` ended, long before it would by itself."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)


@pytest.mark.parametrize("how", HOWS)
def test_whatever_becomes_of_an_interrupt_the_command_ends_in_one_line(how):
    """Wrapped by Python, lost by a library, raised where nothing can be raised, or during an import."""
    code = FIND + WRAPPED.format(how=HOWS[how])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False
    )
    assert (run.returncode, run.stderr) == (130, f"Error: {MESSAGE}\n")


def test_a_second_one_does_not_wait_for_the_import():
    """An import may hang."""
    code = WRAPPED.format(how=HOWS["in an import"])
    find = FIND.replace("raise ImportError", "signal.raise_signal(signal.SIGINT); raise ImportError")
    run = ended(find + code)
    assert (run.returncode, run.stderr) == (130, f"Error: {MESSAGE}\n")


def test_a_signal_that_is_ignored_stays_ignored():
    """Ctrl-C in the foreground must not end a job in the background."""
    code = WRAPPED.format(how="signal.raise_signal(signal.SIGINT); print('done')")
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    run = ended(ignoring)
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("cause", [True, False], ids=["as cause", "as context"])
def test_an_interrupt_is_found_in_the_chain(cause):
    """Whatever stands between; a chain may be a ring."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from (error if cause else None)
    except RuntimeError as error:
        found = ImportError("numpy")
        found.__cause__, error.__cause__ = error, error.__cause__ or found
    assert is_interrupt(found)
    assert not is_interrupt(ImportError("numpy"))


def test_errors_of_commands_that_come_of_an_interrupt_are_one(monkeypatch, tmp_path):
    """An import that fails by it is not reported as a library that is missing."""
    from click.testing import CliRunner

    def invoke(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("numpy failed") from None

    monkeypatch.setattr("click.Group.invoke", invoke)
    (tmp_path / "x").write_bytes(b"")
    run = CliRunner().invoke(embcompress.cli.cli, ["report", str(tmp_path / "x")])
    assert run.exit_code == 130
    assert run.stderr.strip() == f"Error: {MESSAGE}"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_an_interrupt_while_options_are_read_is_one():
    """Before any command runs."""
    from click.testing import CliRunner

    def strike(*_):
        raise KeyboardInterrupt

    group = Boundary(params=[click.Option(["--now"], is_flag=True, is_eager=True, callback=strike)])
    run = CliRunner().invoke(group, ["--now"])
    assert (run.exit_code, run.stderr.strip()) == (130, f"Error: {MESSAGE}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
def test_a_delayed_interrupt_is_raised_at_the_end(number):
    """Also when it is another thread that takes the signal."""
    code = f"""
import os, signal, threading, time
from embcompress import interruption

interruption.watch()
threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
try:
    with interruption.delayed():
        signal.pthread_sigmask(signal.SIG_BLOCK, {{{int(number)}}})  # so the thread gets it
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.2)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {{{int(number)}}})
        print("whole")
except KeyboardInterrupt:
    print("raised")
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("again")
"""
    assert ended(code).stdout.split() == ["whole", "raised", "again"]
