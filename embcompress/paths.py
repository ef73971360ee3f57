"""Paths that callers may give as text."""

from __future__ import annotations

from pathlib import Path


def make_paths(record: object, *names: str) -> None:
    """Turn the fields ``names`` of a frozen record that are text into paths, in its ``__post_init__``."""
    for name in names:
        if isinstance(value := getattr(record, name), str):
            object.__setattr__(record, name, Path(value))
