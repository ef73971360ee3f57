"""The record in a compressed file of word vectors about the file it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from embcompress.checkpoint.description import parse_entry
from embcompress.checkpoint.vectors.base import unpacked_name
from embcompress.checkpoint.vectors.packing import name_inside
from embcompress.errors import InputError

RECORD_KEY = "embcompress.vectors"
"""Metadata entry with the record, as JSON."""

TABLE = "vectors.weight"
"""Tensor name of the table in a file of word vectors."""

VOCABULARY = "vectors.vocabulary"
"""Tensor name of its tokens: bytes (mostly UTF-8), separated by line feeds, in the order of the rows."""

_SUFFIX = re.compile(r"(\.[\w-]{1,16}){0,2}", re.ASCII)


@dataclass(frozen=True)
class VectorRecord:
    """The format and suffix of the source, which expanding restores.

    Attributes:
        format: name of the format.
        suffix: suffix of the file name, with ``.gz`` or ``.bz2`` if it was compressed. For a zip archive,
            which is not written, that of the file in it.
    """

    format: str
    suffix: str

    @classmethod
    def of(cls, path: Path, form: str) -> VectorRecord:
        """The record of the file ``path``; an unusual suffix is left out."""
        name = name_inside(path)
        suffix = name.removeprefix(Path(unpacked_name(name)).stem)
        return cls(form, suffix if _SUFFIX.fullmatch(suffix) else "")

    def to_json(self) -> str:
        """The record as the text of the metadata entry."""
        return json.dumps(asdict(self))


def parse_record(metadata: Mapping[str, str], where: object) -> VectorRecord:
    """Read a record from the metadata of a safetensors file.

    Raises:
        InputError: the entry is not a valid record.
    """
    raw = parse_entry(metadata, RECORD_KEY, where)
    found = [raw.get(key) for key in ("format", "suffix")] if isinstance(raw, dict) else []
    match found:
        case [str(form), str(suffix)] if _SUFFIX.fullmatch(suffix):
            return VectorRecord(form, suffix)
    raise InputError(
        f"{where}: the metadata under {RECORD_KEY} is not a format and a suffix",
        remedy="make the file again from its source",
    )
