"""What a tokenizer.json claims of the maps inside of it, checked before its library believes it.

A ``Precompiled`` normalizer holds a map of SentencePiece in base64: the length of a trie in bytes, the
trie, and text. The library takes memory for the length before it looks whether the bytes are there, and
ends the process where it gets none.
"""

from __future__ import annotations

import base64
import json
from typing import Any

_KEY = "precompiled_charsmap"


def check_maps(text: str) -> None:
    """Refuse a map that is shorter than it says.

    Raises:
        ValueError: there is one, or the text is no JSON.
        RecursionError: it is nested without end.
    """
    json.loads(text, object_pairs_hook=_checked)


def _checked(pairs: list[tuple[str, Any]]) -> None:
    """Look at an object, and keep nothing of it; a key may stand there twice."""
    for key, held in pairs:
        if key == _KEY and isinstance(held, str):
            claimed = int.from_bytes(base64.b64decode(held[:8])[:4], "little")
            if claimed > len(held):
                raise ValueError(f"a map of {len(held):,} characters claims {claimed:,} bytes")
