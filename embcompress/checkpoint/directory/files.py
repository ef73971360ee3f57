"""The other files of a directory: copied, written, and summarized for comparison."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from embcompress.checkpoint.description import METADATA_KEY, Description
from embcompress.checkpoint.directory.card import CARD, card_text, taken_apart
from embcompress.checkpoint.directory.shards import read_json
from embcompress.storage.rawio import copy_range
from embcompress.storage.regular import open_regular, opened

CONFIG = "config.json"
QUANTIZATION = "quantization_config"


def is_our_record(record: object) -> bool:
    """Whether a ``quantization_config`` is the record of this package."""
    return isinstance(record, dict) and record.get("quant_method") == METADATA_KEY


def write_config(path: Path, description: Description | None) -> None:
    """Write the record where transformers looks for a quantization, or remove it.

    The record of another library stays: its layers need it, and there is room for one.
    """
    config = read_json(path)
    record = config.pop(QUANTIZATION, None)
    if record is not None and not is_our_record(record):
        return
    if description is not None and description.swapped:
        config[QUANTIZATION] = {"quant_method": METADATA_KEY, **description.to_dict()}
    write_json(path, config)


def write_json(path: Path, value: object) -> None:
    """Write a JSON document."""
    path.write_bytes(_json(value))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("ascii")


def write_document(path: Path, document: Any) -> None:
    """Write a JSON document, or delete it if it is None, with its folder if that is then empty."""
    if document is None:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    else:
        write_json(made(path), document)


def made(path: Path) -> Path:
    """Return ``path`` after making its parent directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def copy_file(source: Path, target: Path) -> None:
    """Copy contents and permission bits; a symbolic link is followed."""
    fd = open_regular(source)
    try:
        status = os.fstat(fd)
        out = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, status.st_mode & 0o777 | 0o200
        )
        try:
            copy_range(fd, 0, status.st_size, out)
        finally:
            os.close(out)
    finally:
        os.close(fd)


def other_files(
    folder: Path, files: Iterable[Path], documents: Mapping[str, Any], config_name: str
) -> dict[str, object]:
    """SHA-256 of each of ``files`` and of the ``documents`` that replace some of them, by name.

    config.json, the file ``config_name``, is listed by its entries. Our own record and the model card (see
    :func:`card_of`) are left out.
    """
    found: dict[str, object] = {}
    config = None
    for name in map(str, files):
        if name == config_name:
            config = read_json(folder / config_name)
        elif name != CARD and name not in documents:
            found[name] = _sha256(folder / name)
    for name, document in documents.items():
        if name == config_name:
            config = document
        elif document is not None:
            found[name] = hashlib.sha256(_json(document)).hexdigest()
    config = dict(config or {})
    if is_our_record(config.get(QUANTIZATION)):
        del config[QUANTIZATION]
    return {**found, **{f"{config_name} {key}": value for key, value in config.items()}}


def card_of(
    folder: Path,
    description: Description | None = None,
    made_from: Path | None = None,
    *,
    graph: bool = False,
) -> dict[str, object]:
    """The model card taken apart, after an edit if a ``description`` is given; SHA-256 of one too long."""
    text = card_text(folder)
    if text is None and (folder / CARD).is_file():
        return {CARD: _sha256(folder / CARD)}
    if text is None and description is None:
        return {}
    return taken_apart(text or "", description, made_from, graph=graph)


def _sha256(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
