"""Parameters that repeat a property: ``make test`` takes a few of them, ``make test-slow`` the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def quick(cases: Mapping[str, Any] | Iterable[Any], *names: str) -> list[Any]:
    """Parameters of a test, of which those not named are marked slow.

    Args:
        cases: value of each by its name, a tuple for several parameters; or values that have a ``name`` or
            are called what they print as.
        names: the cases that ``make test`` takes.
    """
    if not isinstance(cases, Mapping):
        cases = {str(getattr(case, "name", case)): case for case in cases}
    assert {*names} <= cases.keys(), {*names} - cases.keys()
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            id=name,
            marks=[] if name in names else [pytest.mark.slow],
        )
        for name, case in cases.items()
    ]
