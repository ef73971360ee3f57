"""What a compressed file of word vectors says about the file it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from embcompress.checkpoint.description import parse_entry
from embcompress.errors import InputError

RECORD_KEY = "embcompress.vectors"
"""Metadata entry with the record, as JSON."""

TABLE = "vectors.weight"
"""Name of the table that a file of word vectors is."""

VOCABULARY = "vectors.vocabulary"
"""Name of its tokens: their bytes (UTF-8, mostly) with a line feed between two, in the order of the rows."""

_SUFFIX = re.compile(r"(\.[\w-]{1,16}){0,2}", re.ASCII)


@dataclass(frozen=True)
class VectorRecord:
    """What expanding needs to give back the same format.

    Attributes:
        format: name of the format.
        suffix: what the name of the file ended in.
    """

    format: str
    suffix: str

    @classmethod
    def of(cls, path: Path, form: str) -> VectorRecord:
        """The record of a file; a suffix that no name should end in is left out."""
        bare = path.with_suffix("") if path.suffix.lower() == ".gz" else path
        suffix = path.name.removeprefix(bare.stem)
        return cls(form, suffix if _SUFFIX.fullmatch(suffix) else "")

    def to_json(self) -> str:
        """The text of the metadata entry."""
        return json.dumps(asdict(self))


def parse_record(metadata: Mapping[str, str], where: object) -> VectorRecord:
    """Read a record back from the metadata of a safetensors file.

    Raises:
        InputError: it is none of ours.
    """
    raw = parse_entry(metadata, RECORD_KEY, where)
    found = [raw.get(key) for key in ("format", "suffix")] if isinstance(raw, dict) else []
    match found:
        case [str(form), str(suffix)] if _SUFFIX.fullmatch(suffix):
            return VectorRecord(form, suffix)
    raise InputError(
        f"{where}: the metadata under {RECORD_KEY} are no format and suffix",
        remedy="make the file again from its source",
    )
