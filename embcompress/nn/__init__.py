"""Torch modules that replace a dense table."""

from __future__ import annotations

from embcompress.nn.coded import CodedEmbedding
from embcompress.nn.factorized import FactorizedEmbedding, FactorizedHead, FactorizedPair, Lookup
from embcompress.nn.lookup import CodedLookup

__all__ = [
    "CodedEmbedding",
    "CodedLookup",
    "FactorizedEmbedding",
    "FactorizedHead",
    "FactorizedPair",
    "Lookup",
]
