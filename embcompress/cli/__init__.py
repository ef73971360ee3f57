"""The command line: parse, call a workflow, show its result.

A command is a file of this folder with a function of the same name, and one line in ``COMMANDS``.
Everything heavy is imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import os

import click

from embcompress.cli.boundary import Boundary
from embcompress.cli.streams import guard_streams
from embcompress.version import __version__

COMMANDS = (
    "compress",
    "distil",
    "evaluate",
    "expand",
    "factorize",
    "finetune",
    "report",
    "train",
    "verify",
)
"""Every command by the name of its file."""


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="embcompress")
def cli() -> None:
    """Make the embedding tables of saved models small.

    Reads Hugging Face directories, .safetensors files, PyTorch checkpoints, ONNX models and word
    vectors; never runs code from them.

    Exit codes: 0 done, 1 failed, 2 usage, 3 input unsafe or corrupt, 4 target not reachable, 130
    interrupted.
    """


for _name in COMMANDS:
    cli.add_command(getattr(importlib.import_module(f"{__name__}.{_name}"), _name))


def main() -> None:
    """Entry point of the ``embcompress`` command."""
    # OpenBLAS threads spin for 20 ms after each product, on the cores that hash and copy the input
    # meanwhile; 2**4 cycles is the shortest they can. It must be set before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    guard_streams()
    cli(prog_name="embcompress")
