"""What a refusal must say: class, exit code, and the values, limits and names it is about.

The words around them are free. Where a text that is expected holds numbers, quoted values, shapes, options or
names of files and tensors, these must stand in the message in that order; where it holds none, it is a
keyword, which must stand there as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embcompress.errors import EmbcompressError, InputError, Interrupted, TargetError, UsageError

CODES: dict[type[Exception], int] = {
    EmbcompressError: 1,
    UsageError: 2,
    InputError: 3,
    TargetError: 4,
    Interrupted: 130,
}
"""Exit code of each class, as documented."""
_TOKEN = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|\[[^\]]*\]|\S+""")


def facts(text: str) -> list[str]:
    """What of ``text`` is no plain word: ``line 3: 1 numbers, expected 2`` has 3, 1 and 2."""
    found = (token.strip(".,;:?!()…") for token in _TOKEN.findall(text))
    return [token for token in found if re.search(r"[^A-Za-z’'×]|^['\"]", token)] or [text]


def assert_says(message: str, *expected: str) -> None:
    """Whether ``message`` has the facts of each text, those of one text in their order."""
    for text in expected:
        place = 0
        for fact in facts(text):
            found = message.find(fact, place)
            assert found >= 0, f"{fact!r} of {text!r} is not in {message!r}"
            place = found + len(fact)


@contextmanager
def refused(kind: type[Exception], *expected: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """The block raises a ``kind``: its exit code, and one printable line with the facts of ``expected``."""
    with pytest.raises(kind) as caught:
        yield caught
    code = next((CODES[base] for base in type(caught.value).__mro__ if base in CODES), None)
    assert getattr(caught.value, "exit_code", None) == code
    assert str(caught.value).isprintable()
    assert_says(str(caught.value), *expected)
