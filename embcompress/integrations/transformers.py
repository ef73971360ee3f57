"""Importing this module makes transformers load compressed directories; see ``quantizer``."""

from __future__ import annotations

from embcompress.integrations.quantizer import EmbcompressConfig, EmbcompressQuantizer, register

__all__ = ["EmbcompressConfig", "EmbcompressQuantizer", "register"]

register()
