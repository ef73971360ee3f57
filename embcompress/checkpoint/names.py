"""Checks that all formats share: printable tensor names, and git-lfs pointers in place of files."""

from __future__ import annotations

from pathlib import Path

from embcompress.errors import InputError

NAME_LIMIT = 1024
"""Longest tensor name accepted, in characters; real ones stay under 200."""

FILE_NAME_LIMIT = 255
"""Longest file name, in bytes. File systems have none longer, and even looking one up is an error."""


def check_name(name: object, where: Path | str) -> None:
    """Refuse a tensor name that is not text, is too long, or holds control characters.

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
    """Refuse a git-lfs pointer: the small text file that takes the place of a large file in a repository.

    Raises:
        InputError: ``head``, the first bytes of a file, begins such a pointer.
    """
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a git-lfs pointer, not the file itself", remedy="run 'git lfs pull'")
