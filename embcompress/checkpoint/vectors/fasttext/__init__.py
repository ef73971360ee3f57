"""Models of fastText (.bin, .ftz): words, buckets of n-grams, and what training and labels need."""

from __future__ import annotations

from embcompress.checkpoint.vectors.fasttext.format import FastText

__all__ = ["FastText"]
