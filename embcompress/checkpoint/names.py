"""Checks that all formats share: names that can be shown, and files that are not what they say."""

from __future__ import annotations

from pathlib import Path

from embcompress.errors import InputError

NAME_LIMIT = 1024
"""Longest tensor name taken, in characters; real ones stay under 200."""

FILE_NAME_LIMIT = 255
"""Longest name of a file, in bytes; file systems have no longer ones, and asking for one is an error."""


def check_name(name: object, where: Path | str) -> None:
    """Refuse a tensor name that is no text, too long, or would control the terminal.

    Raises:
        InputError: with the offending name, escaped.
    """
    if not isinstance(name, str):
        raise InputError(f"{where}: a tensor name is {type(name).__name__}, not text")
    if len(name) > NAME_LIMIT:
        raise InputError(
            f"{where}: a tensor name of {len(name):,} characters, limit {NAME_LIMIT:,}",
            remedy="rename the tensor",
        )
    if not name.isprintable():
        raise InputError(
            f"{where}: tensor name {name!r} holds control characters", remedy="rename the tensor"
        )


def check_not_pointer(head: bytes, path: Path) -> None:
    """Refuse the text file that stands in a repository for a large one.

    Raises:
        InputError: ``head`` is the beginning of a git-lfs pointer.
    """
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a git-lfs pointer, not the file itself", remedy="run 'git lfs pull'")
