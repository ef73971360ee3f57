"""Word vectors that gensim has saved (.kv, .model), as inert data: nothing in them is imported or called."""

from __future__ import annotations

from embcompress.checkpoint.vectors.gensim.format import Gensim

__all__ = ["Gensim"]
