"""What `make audit` says of the lists that pip-audit makes."""

from __future__ import annotations

import pytest
from audit import summary

CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
FLAWED = {"name": "torch", "version": "2.5.0", "vulns": [{"id": "CVE-2025-32434", "fix_versions": ["2.6.0"]}]}
UNKNOWN = {"name": "click", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("dependencies", "lines", "code"),
    [
        ([CLEAN, UNKNOWN], ["0 advisories for 1 packages; 1 could not be checked"], 0),
        ([UNKNOWN], ["not checked: the package index offers no advisories for any of 1 packages"], 0),
        (
            [FLAWED, CLEAN],
            [
                "torch 2.5.0: CVE-2025-32434, fixed in 2.6.0",
                "1 advisories for 2 packages; 0 could not be checked",
            ],
            1,
        ),
    ],
    ids=["clean", "unknown", "flawed"],
)
def test_the_summary(dependencies, lines, code):
    """Advisories fail it; an index without any is no all-clear, and is called what it is."""
    assert summary(dependencies) == (lines, code)
