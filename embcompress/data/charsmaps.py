"""Check the maps of SentencePiece in the files of tokenizers before a library reads them.

Such a map holds the length of a trie in bytes, the trie, and text. A tokenizer.json has it in base64, in a
``Precompiled`` normalizer; a SentencePiece model has it as bytes, in its own normalizer. The library
tokenizers allocates memory for that length before it checks whether the bytes are there, and the process is
killed if the allocation fails.
"""

from __future__ import annotations

import base64
import json
import os
import string
from pathlib import Path
from typing import Any

from embcompress.errors import InputError
from embcompress.storage.protobuf import Wire
from embcompress.storage.regular import opened, read_limited

_KEY = "precompiled_charsmap"

_NORMALIZERS = (3, 5)
"""Fields of a ``ModelProto`` that hold a ``NormalizerSpec``; see sentencepiece_model.proto."""
_MAP = 2
"""Field of a ``NormalizerSpec`` that holds a map."""
_TIKTOKEN = (string.ascii_letters + string.digits + "+/= \r\n").encode()
"""All bytes of a vocabulary of tiktoken, which may have the same name. None of them begins such a field."""


def check_maps(text: str) -> None:
    """Refuse a map in a tokenizer.json that is shorter than it claims.

    Raises:
        ValueError: there is one, or the text is not JSON.
        RecursionError: the text is nested too deep.
    """
    json.loads(text, object_pairs_hook=_checked)


def check_model(path: Path, limit: int) -> None:
    """Refuse a SentencePiece model with a map that is shorter than it claims.

    Args:
        path: the model; a vocabulary of tiktoken is accepted too.
        limit: the most bytes that it may have.

    Raises:
        InputError: it has such a map, is too long, or is no such file.
    """
    if not read_limited(path, limit).translate(None, _TIKTOKEN):
        return
    with opened(path) as file:
        wire = Wire(file.fileno(), os.fstat(file.fileno()).st_size, str(path))
        for spec in wire.fields(0, wire.size):
            inner = wire.fields(spec.begin, spec.end) if spec.is_bytes and spec.number in _NORMALIZERS else ()
            for field in inner:
                if field.number == _MAP and field.is_bytes and field.length:
                    claimed = int.from_bytes(wire.read(field.begin, field.end)[:4], "little")
                    if claimed > field.length:
                        raise InputError(
                            f"{path}: a map of {field.length:,} bytes claims {claimed:,}",
                            remedy="download it again",
                        )


def _checked(pairs: list[tuple[str, Any]]) -> None:
    """Check one object and keep nothing of it; pairs are used since a key may appear twice."""
    for key, held in pairs:
        if key == _KEY and isinstance(held, str):
            claimed = int.from_bytes(base64.b64decode(held[:8])[:4], "little")
            if claimed > len(held):
                raise ValueError(f"a map of {len(held):,} characters claims {claimed:,} bytes")
