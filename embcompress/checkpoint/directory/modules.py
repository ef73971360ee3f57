"""modules.json of sentence-transformers: the modules of a model in order, and their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcompress.checkpoint.names import FILE_NAME_LIMIT, check_not_pointer
from embcompress.errors import InputError
from embcompress.storage.regular import read_limited

MODULES = "modules.json"

_LIMIT = 1 << 20
"""Longest modules.json accepted, in bytes; real ones stay under 2 kB."""


@dataclass(frozen=True)
class Module:
    """One module of a sentence-transformers model.

    Attributes:
        folder: folder of its files, inside the directory; empty for the directory itself (``"."`` too).
        kind: last part of its class name, e.g. ``"StaticEmbedding"``.
        entry: its whole entry in modules.json.
    """

    folder: str
    kind: str
    entry: Mapping[str, Any]


def read_modules(path: Path) -> tuple[Module, ...]:
    """The modules of the directory ``path``, in order; empty if it has no modules.json.

    Raises:
        InputError: modules.json is broken, or leads out of the directory.
    """
    file = path / MODULES
    if not file.exists():
        return ()
    text = read_limited(file, _LIMIT)
    check_not_pointer(text[:64], file)
    try:
        parsed = json.loads(text)
        return tuple(_module(entry) for entry in parsed)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{file}: is not a list of modules ({type(error).__name__}: {error})", remedy="download it again"
        ) from None


def home_of(path: Path) -> Path:
    """The folder of a directory's first module, in which its configuration and its tokenizer are.

    Raises:
        InputError: see :func:`read_modules`.
    """
    modules = read_modules(path)
    return path / modules[0].folder if modules else path


def reads_first_token(path: Path) -> bool:
    """Whether the vector of a text is the hidden state of its first token, not the mean over all.

    Raises:
        InputError: see :func:`read_modules`, or the configuration of the pooling is broken.
    """
    pooling = [module.folder for module in read_modules(path) if module.kind == "Pooling"]
    file = path / pooling[0] / "config.json" if pooling else path
    if not file.is_file():
        return False
    try:
        config = json.loads(read_limited(file, _LIMIT))
        # Before version 6 there was an entry for each mode, of which several could be on.
        modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value is True}
        return config.get("pooling_mode") == "cls" or modes == {"pooling_mode_cls_token"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file}: is no configuration of a pooling ({type(error).__name__}: {error})",
            remedy="download it again",
        ) from None


def _module(entry: Mapping[str, Any]) -> Module:
    folder, kind = entry["path"], entry["type"]
    if not isinstance(folder, str) or not isinstance(kind, str):
        raise TypeError("path and type must be text")
    if folder == ".":  # as model2vec writes it
        folder = ""
    if folder == ".." or set(folder) & set("/\\:\0"):
        raise ValueError(f"path {folder!r} leads out of the directory")
    if len(folder.encode()) > FILE_NAME_LIMIT:
        raise ValueError(f"a path of {len(folder):,} characters, limit {FILE_NAME_LIMIT} bytes")
    return Module(folder, kind.rpartition(".")[2], entry)


STATIC = {"StaticEmbedding", "WordEmbeddings"}
"""Classes of modules that hold a table and nothing else."""

MAPPING, WEIGHTS = "mapping", "weights"
"""Names of what model2vec may store besides the table: the row of each token, and a factor for each."""


def static_modules(path: Path) -> tuple[Module, ...]:
    """A model's leading table module, and the Dense that follows it directly; empty for other models.

    Raises:
        InputError: see :func:`read_modules`.
    """
    modules = read_modules(path)
    if not modules or modules[0].kind not in STATIC:
        return ()
    return modules[:2] if len(modules) > 1 and modules[1].kind == "Dense" else modules[:1]
