"""What the README shows is run here, and what it says was printed is compared."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_model
from torch import nn

import embcompress
from embcompress.cli import cli

README = (Path(__file__).parent.parent / "README.md").read_text()


def fenced(language):
    """The fenced blocks of that language; opening and closing fences alternate."""
    parts = re.split(r"^```(\w*)\n", README, flags=re.MULTILINE)[1:]
    opened = zip(parts[::4], parts[1::4], strict=True)
    return [text for kind, text in opened if kind == language]


def run(line):
    done = CliRunner().invoke(cli, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def test_commands_run_as_shown(minilm, tmp_path, monkeypatch):
    """The four commands work one after another on the real MiniLM, and report prints what is shown."""
    (tmp_path / "model").symlink_to(minilm)
    monkeypatch.chdir(tmp_path)
    (block,) = fenced("sh")
    outputs = [run(line) for line in block.splitlines()]
    assert len(outputs) == 4
    (shown,) = (text for text in fenced("") if text.startswith("model  directory"))
    assert [line.rstrip() for line in outputs[0].splitlines()] == shown.splitlines()


def test_python_runs_as_shown(tmp_path, monkeypatch):
    """The Python example factorizes and loads."""
    monkeypatch.chdir(tmp_path)

    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"embedding": nn.Embedding(500, 32), "out": nn.Linear(32, 2)})

    save_model(model(), "model.safetensors")
    (code,) = fenced("python")
    names = {"model": model()}
    exec(code, names)
    assert isinstance(names["model"]["embedding"], embcompress.FactorizedEmbedding)
    assert names["result"].tables[0].rank == 3


def test_every_option_and_exit_code_is_documented():
    """An option that joins a command, or a new exit code, must be explained in the README."""
    for command in cli.commands.values():
        for option in (o for o in command.params if isinstance(o, click.Option)):
            assert any(flag in README for flag in option.opts), f"{command.name} {option.opts}"
    codes = {error.exit_code for error in vars(embcompress.errors).values() if hasattr(error, "exit_code")}
    assert codes == {1, 2, 3, 4}
    for code in (0, *codes, 130):
        assert re.search(rf"Exit codes.*\b{code} \w+", README)


@pytest.mark.parametrize("name", ["demo", "test", "test-slow", "lint", "bench"])
def test_make_targets_exist(name):
    """Each make target that the README names is in the Makefile."""
    assert f"make {name}" in README
    assert re.search(rf"^{name}:", (Path(__file__).parent.parent / "Makefile").read_text(), re.MULTILINE)
