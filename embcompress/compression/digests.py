"""SHA-256 of each stored part, by which ``verify`` tells later whether an output is as it was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import NO_DIGEST, TableRecord
from embcompress.storage.rawio import sha256_of


def unsealed(record: TableRecord) -> TableRecord:
    """The record with room for the digests of its parts, which are about to be written."""
    return replace(record, digests=(NO_DIGEST,) * len(record.parts))


def sealed(written: Checkpoint, record: TableRecord) -> TableRecord:
    """The record with the digests of its parts in ``written``."""
    return replace(record, digests=tuple(digest_of(written, name) for name in record.part_names))


def digest_of(checkpoint: Checkpoint, name: str) -> str:
    """SHA-256 of the bytes of a stored tensor."""
    return sha256_of(checkpoint.bytes_of(name))


def seal(stage: Path) -> None:
    """Fill in the digests of a checkpoint that has just been written with :func:`unsealed` records."""
    with open_checkpoint(stage) as written:
        described, kind = written.description, type(written)
        assert described is not None, "without a record there are no digests"
        tables = tuple(sealed(written, record) for record in described.tables)
    kind.amend(stage, replace(described, tables=tables))
