"""Sizes, counts and errors as text for people."""

from __future__ import annotations


def human_bytes(count: int) -> str:
    """A size in decimal units with three digits, as used by disks and model hubs."""
    return f"{_scaled(count)}B"


def human_flops(count: int) -> str:
    """A count with three digits and a decimal prefix."""
    return _scaled(count).rstrip()


def human_error(value: float) -> str:
    """A relative error with four decimals, or two digits if it is small."""
    return f"{value:.4f}" if value >= 0.0005 or value == 0 else f"{value:.1e}"


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 tensor``, ``2 tensors``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _scaled(count: int) -> str:
    """Three digits, a space and a decimal prefix, which is empty below a thousand."""
    value, prefix = float(count), ""
    for bigger in "kMGT":
        if value < 999.5:
            break
        value, prefix = value / 1000, bigger
    return f"{value:.3g} {prefix}"
