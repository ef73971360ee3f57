"""The errors a user can see, each with the exit code of the command line.

A message states the value that was found and the limit it broke; the remedy says what to do about it.
These classes are for whatever comes from outside; ``assert`` is for our own bugs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class EmbcompressError(Exception):
    """Base class of all our errors: the work failed (exit code 1).

    Args:
        message: what went wrong, with the value found and the limit it broke; one line.
        remedy: what the user can do about it, one line; empty if nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        # Names come from untrusted files: no line break or escape sequence in one may reach the
        # terminal, and an error is one line.
        return printable(text)


class UsageError(EmbcompressError):
    """The request cannot be carried out as given (exit code 2)."""

    exit_code = 2


class MissingWeights(UsageError):  # noqa: N818 - it is the weights that are missing
    """A checkpoint lacks weights of the model that it is to fill (exit code 2)."""


class InputError(EmbcompressError):
    """The input is unsafe, corrupt, or in a form that this tool does not read (exit code 3)."""

    exit_code = 3


class TargetError(EmbcompressError):
    """The requested size, rank or error cannot be reached (exit code 4)."""

    exit_code = 4


class Interrupted(EmbcompressError):  # noqa: N818 - nobody made an error
    """The user stopped work that can be resumed (exit code 130)."""

    exit_code = 130


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Refuse a name that is not among ``choices``.

    Args:
        kind: what is chosen, e.g. ``"optimizer"``.
        name: what the user chose.
        choices: what there is.

    Raises:
        UsageError: with the choices.
    """
    choices = tuple(choices)
    if name not in choices:
        raise UsageError(f"{kind} {name!r}", remedy=f"choose from {', '.join(choices)}")


def printable(text: str, limit: int = 500) -> str:
    """Escape the control characters of ``text`` and cut it to ``limit`` characters."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def reason_of(error: BaseException) -> str:
    """The first line of what another library raised, or the kind of error where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
