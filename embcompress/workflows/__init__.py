"""The public Python API: what each command does, without its terminal."""

from __future__ import annotations

from embcompress.workflows.expanding import expand
from embcompress.workflows.factorizing import factorize
from embcompress.workflows.reporting import report

__all__ = ["expand", "factorize", "report"]
