"""The errors a user can meet, each with the exit code it carries out of the command line.

A message states the value that was met and the limit it broke; the remedy says what to do about it.
``assert`` is kept for our own mistakes; these classes are for everything that comes from outside.
"""

from __future__ import annotations


class EmbcompressError(Exception):
    """Base of every error raised on purpose: the work failed (exit code 1).

    Args:
        message: what was met, with the value and the limit it broke; one line.
        remedy: what the user can do; one line, may be empty when nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        # Names come from files that strangers wrote: a line break or an escape sequence
        # in one must not reach the terminal, and an error is one line.
        return printable(text)


class UsageError(EmbcompressError):
    """The request itself cannot be carried out as it stands (exit code 2)."""

    exit_code = 2


class MissingWeights(UsageError):  # noqa: N818 - it is the weights that are missing
    """A checkpoint lacks weights of the model that it is to fill (exit code 2)."""


class InputError(EmbcompressError):
    """The input is unsafe, corrupt or of a kind this tool does not read (exit code 3)."""

    exit_code = 3


class TargetError(EmbcompressError):
    """The size, rank or error asked for cannot be reached (exit code 4)."""

    exit_code = 4


class Interrupted(EmbcompressError):  # noqa: N818 - nobody made an error
    """The user stopped work that can go on later (exit code 130)."""

    exit_code = 130


def printable(text: str, limit: int = 500) -> str:
    """``text`` with control characters escaped and cut to ``limit`` characters."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def reason_of(error: Exception) -> str:
    """The first line of what another library raised, or the kind of error where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
