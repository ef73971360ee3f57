"""Which files of a directory hold its weights, and which are copied unchanged."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.directory.modules import MODULES, read_modules, static_modules
from embcompress.checkpoint.names import FILE_NAME_LIMIT, check_name, check_not_pointer
from embcompress.errors import InputError, UsageError
from embcompress.storage.regular import read_limited

JSON_LIMIT = 64 << 20
"""Longest config.json or index accepted, in bytes; real ones stay under 10 MB."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files in the order in which transformers looks for them."""

_NOT_IN_A_FILE_NAME = set('/\\:"<>|?*')
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE)
"""Names that Windows takes for a device, whatever their suffix."""

_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf", ".tflite", ".mlmodel", ".pb")
_OTHER_FOLDERS = re.compile(r"onnx|openvino|coreml|original|checkpoint-\d+|\.git|\.cache|__pycache__")
"""Folders that hold the model in another format or an earlier state, or nothing of the model."""
_NO_WEIGHTS = ("training_args.bin",)
"""Files that transformers names like weights but that hold none."""


@dataclass(frozen=True)
class Index:
    """An index file: which shard holds which tensor. All names of files are relative to the directory."""

    name: str
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class ShardLayout:
    """The weight files of a directory.

    Attributes:
        files: the weight files in use, in order.
        index: the index over them, None for a single file.
        others: a second set of weights, which must hold the same values and is not copied.
        home: the folder, inside the directory, of config.json and the tokenizer; empty for the directory
            itself.
    """

    files: tuple[str, ...]
    index: Index | None = None
    others: tuple[str, ...] = ()
    home: str = ""

    def check(self, path: Path, parts: Mapping[str, Checkpoint]) -> None:
        """Compare the index with the tensors that the shards hold.

        Raises:
            InputError: a tensor is not where the index says, or is in two shards, or total_size is wrong.
        """
        if self.index is None:
            return
        where = path / self.index.name
        for name, shard in self.index.weight_map.items():
            if name not in parts[shard].tensors:
                raise InputError(
                    f"{where}: says {name} is in {shard}, which does not hold it",
                    remedy="download the directory again",
                )
        first: dict[str, str] = {}
        for shard, part in parts.items():
            for name in part.tensors:
                if first.setdefault(name, shard) != shard:
                    raise InputError(
                        f"{where}: {name} is in both {first[name]} and {shard}",
                        remedy="remove the one that is out of date",
                    )
        sizes = {n: info.nbytes for part in parts.values() for n, info in part.tensors.items()}
        shared = sum(sizes[name] for part in parts.values() for name in part.aliases)
        stated, found = self.index.metadata.get("total_size"), sum(sizes.values()) - shared
        # Some writers count shared memory once per name; older transformers counted a tied head it did
        # not store.
        known = [found, found + shared, *(found + size for size in sizes.values())]
        if stated is not None and stated not in known:
            raise InputError(
                f"{where}: total_size is {stated}, the shards hold {found} bytes",
                remedy="download the directory again, or correct total_size",
            )


def find_layout(path: Path) -> ShardLayout:
    """Find the weights of the directory ``path`` as transformers or sentence-transformers would.

    Raises:
        UsageError: there are none, or several with nothing to choose between them.
        InputError: the index or modules.json is broken or leads out of the directory.
    """
    modules = read_modules(path)
    layout = _layout_in(path, modules[0].folder if modules else "")
    files = layout.files
    if len(static := static_modules(path)) > 1:
        files += _layout_in(path, static[1].folder).files
    return replace(layout, files=files)


def _layout_in(path: Path, home: str) -> ShardLayout:
    """The weights in the folder ``home`` of the directory ``path``.

    Raises:
        UsageError, InputError: see :func:`find_layout`.
    """
    standard = [inside(home, name) for name in _STANDARD]
    present = [name for name in standard if (path / name).is_file()]
    if present:
        first, *rest = (_expand(path, name) for name in present)
        return ShardLayout(first.files, first.index, tuple(f for other in rest for f in other.files), home)
    folder = path / home
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    found = [inside(home, n) for n in names if Path(n).suffix in _SUFFIXES and (folder / n).is_file()]
    if len(found) == 1:
        return ShardLayout((found[0],), home=home)
    what = f"several weight files ({', '.join(found)})" if found else "no weight file"
    where = f", where {MODULES} says that its first module is" if home else ""
    again = home and not found
    raise UsageError(
        f"{path}: {what}; looked for {', '.join(standard)}{where}",
        remedy="download the directory again" if again else "name the weight file itself",
    )


def inside(home: str, name: str) -> str:
    """The path of a file in the folder ``home``, relative to the directory."""
    return f"{home}/{name}" if home else name


def _expand(path: Path, name: str) -> ShardLayout:
    if not name.endswith(".index.json"):
        return ShardLayout((name,))
    index = _read_index(path, name)
    return ShardLayout(tuple(sorted(set(index.weight_map.values()))), index)


def _read_index(directory: Path, place: str) -> Index:
    path = directory / place
    raw = read_json(path)
    weight_map, metadata = raw.get("weight_map"), raw.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(metadata, dict):
        raise InputError(f"{path}: has no weight_map from names to shards", remedy="download it again")
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    for name, shard in weight_map.items():
        check_name(name, path)
        check_name(shard, path)
        # The rules of every platform apply: drive letters and backslashes are refused on Unix too,
        # since directories are copied between machines.
        is_plain = shard and not shard.startswith(".") and not shard.endswith((".", " "))
        if not is_plain or set(shard) & _NOT_IN_A_FILE_NAME or _DEVICE.fullmatch(shard):
            raise InputError(
                f"{path}: shard {shard!r} leads out of the directory",
                remedy="shards are plain file names; do not use this directory",
            )
        if (length := len(shard.encode())) > FILE_NAME_LIMIT:
            raise InputError(
                f"{path}: shard {shard[:40]}… has a name of {length:,} bytes, limit {FILE_NAME_LIMIT}",
                remedy="download the directory again",
            )
        if Path(shard).suffix != suffix:
            raise InputError(
                f"{path}: shard {shard} is not a {suffix} file", remedy="download the directory again"
            )
        if not (path.parent / shard).is_file():
            raise InputError(f"{path}: shard {shard} is missing", remedy="download the directory again")
    home = place.removesuffix(path.name).removesuffix("/")
    return Index(place, {name: inside(home, shard) for name, shard in weight_map.items()}, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        InputError: it is too long, or not a JSON object.
    """
    text = read_limited(path, JSON_LIMIT)
    check_not_pointer(text[:64], path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: is not JSON ({reason})", remedy="download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object", remedy="download it again")
    return value


def _is_other_weights(relative: Path, home: str) -> bool:
    """Whether a file holds weights that are not in use; further modules, in other folders, keep theirs."""
    if relative.suffix in _OTHER_WEIGHTS:
        return True
    beside = relative.parent in {Path(), Path(home)}
    return relative.suffix in _SUFFIXES and beside and relative.name not in _NO_WEIGHTS


@dataclass(frozen=True)
class Carried:
    """The files of a directory besides the weights in use, which are written anew.

    Attributes:
        files: relative paths of the files to copy.
        other_weights: names of files and folders that are left out: weights in other formats or precisions
            and training states hold the dense table and would undo the saving.
        irregular: names of pipes, sockets and devices, which are never opened.
    """

    files: tuple[Path, ...]
    other_weights: tuple[str, ...]
    irregular: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        whys = (("hold other weights", self.other_weights), ("are not regular files", self.irregular))
        return tuple(f"left out, because they {why}: {', '.join(names)}" for why, names in whys if names)


def carried_files(path: Path, layout: ShardLayout) -> Carried:
    """Which files of the directory ``path`` are copied, and which are left out."""
    own = {*layout.files, *((layout.index.name,) if layout.index else ())}
    carried: list[Path] = []
    left_out: list[str] = [*layout.others]
    irregular: list[str] = []
    skip = {*own, *layout.others, *(inside(layout.home, name) for name in _STANDARD)}

    def visit(folder: Path) -> None:
        for entry in sorted(folder.iterdir()):
            relative = entry.relative_to(path)
            mode = entry.stat().st_mode
            if stat.S_ISDIR(mode):
                if str(relative) != layout.home and (
                    _OTHER_FOLDERS.fullmatch(entry.name)
                    or entry.is_symlink()
                    or entry.suffix == ".embcompress"
                ):
                    left_out.append(f"{relative}/")
                else:
                    visit(entry)
            elif str(relative) in skip:
                continue
            elif not stat.S_ISREG(mode):
                irregular.append(str(relative))
            elif _is_other_weights(relative, layout.home):
                left_out.append(str(relative))
            else:
                carried.append(relative)

    visit(path)
    return Carried(tuple(carried), tuple(left_out), tuple(irregular))
