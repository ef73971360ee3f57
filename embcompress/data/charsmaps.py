"""Check the SentencePiece maps inside a tokenizer.json before its library reads them.

A ``Precompiled`` normalizer holds a SentencePiece map in base64: the length of a trie in bytes, the trie,
and text. The library allocates memory for that length before it checks whether the bytes are there, and
kills the process if the allocation fails.
"""

from __future__ import annotations

import base64
import json
from typing import Any

_KEY = "precompiled_charsmap"


def check_maps(text: str) -> None:
    """Refuse a map that is shorter than it claims.

    Raises:
        ValueError: there is one, or the text is not JSON.
        RecursionError: the text is nested too deep.
    """
    json.loads(text, object_pairs_hook=_checked)


def _checked(pairs: list[tuple[str, Any]]) -> None:
    """Check one object and keep nothing of it; pairs are used since a key may appear twice."""
    for key, held in pairs:
        if key == _KEY and isinstance(held, str):
            claimed = int.from_bytes(base64.b64decode(held[:8])[:4], "little")
            if claimed > len(held):
                raise ValueError(f"a map of {len(held):,} characters claims {claimed:,} bytes")
