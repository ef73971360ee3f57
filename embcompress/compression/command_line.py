"""The command line that does what a call of a workflow does, for the record of an output."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_WHERE = {"path", "output", "dry_run", "force", "progress"}
"""Arguments that change nothing in an output."""

_FILES = {"weights", "corpus", "importance"}
"""Arguments that are files in a command line, and may be arrays or records in Python."""


def command_line(workflow: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """The command for a call, with files by their names alone: where they lay is nobody's business.

    Args:
        workflow: whose command has its name.
        arguments: all of the call's, by name; those that are left at their defaults are left out.

    Returns:
        The command, or None where an argument cannot be written in a command line.
    """
    words = ["embcompress", workflow.__name__, _name(arguments["path"])]
    for name, parameter in inspect.signature(workflow).parameters.items():
        value = arguments[name]
        if name in _FILES:
            if isinstance(value, str | Path):
                words += ["--" + name, _name(value)]
            elif value is not None:
                return None
            continue
        if name in _WHERE or value == parameter.default or (name == "keys" and not value):
            continue
        option = "--" + {"keys": "key", "all_tables": "all"}.get(name, name.replace("_", "-"))
        if value is True:
            words.append(option)
        elif name == "keys":
            words += [
                word for key in ((value,) if isinstance(value, str) else value) for word in (option, key)
            ]
        else:
            whole = isinstance(value, float) and value.is_integer()
            words += [option, str(int(value) if whole else value)]
    return shlex.join(words)


def _name(path: str | Path) -> str:
    """The last part of a path; of ``.`` the name of the directory."""
    return Path(path).name or Path(path).resolve().name
