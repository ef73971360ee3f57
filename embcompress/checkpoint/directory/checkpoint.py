"""A Hugging Face directory: config.json, tokenizer, and weights in one file or in shards.

The format of each weight file opens it. This class keeps the index and the configuration in step with
the weights and copies everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embcompress.checkpoint.base import AS_IT_IS, Checkpoint, Edit, Reading
from embcompress.checkpoint.description import Description, parse_description
from embcompress.checkpoint.directory.card import CARD, write_card
from embcompress.checkpoint.directory.files import (
    CONFIG,
    QUANTIZATION,
    card_of,
    copy_file,
    is_our_record,
    made,
    other_files,
    write_config,
    write_document,
    write_json,
)
from embcompress.checkpoint.directory.shards import (
    Index,
    ShardLayout,
    carried_files,
    find_layout,
    inside,
    read_json,
)
from embcompress.checkpoint.files import open_file
from embcompress.checkpoint.safetensors.file import NEW_METADATA, new_size, write_new
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.errors import InputError
from embcompress.progress import Progress, silent

_COMPARE_ROWS = 4096
_MOST_OPEN = 64
"""Weight files of a directory that are open at a time; many systems allow a process 1,024 or 256 in all."""


class Directory(Checkpoint):
    """A directory whose weights are one file, or several listed in an index."""

    format = "directory"

    def __init__(self, path: Path, layout: ShardLayout, parts: dict[str, Checkpoint]) -> None:
        self.path = path
        self.config_name = inside(layout.home, CONFIG)
        self._has_config = (path / self.config_name).exists()
        self._has_card = self._has_config or (path / CARD).is_file()
        self.config = read_json(path / self.config_name) if self._has_config else {}
        self.tensors: Mapping[str, TensorInfo] = {n: t for p in parts.values() for n, t in p.tensors.items()}
        self.aliases = {n: a for p in parts.values() for n, a in p.aliases.items()}
        self.size = sum(p.size for p in parts.values())
        self.weight_files = tuple(f for p in parts.values() for f in p.weight_files)
        self.holds_graph = any(part.holds_graph for part in parts.values())
        self._layout = layout
        self._parts = parts
        self._holders = {tensor: name for name, part in parts.items() for tensor in part.tensors}
        self._open: dict[str, Checkpoint] = {}
        carried = carried_files(path, layout, [file.relative_to(path) for file in self.weight_files])
        self.carried, self.left_out = carried.files, (*carried.other_weights, *carried.irregular)
        self.notes = (*(note for p in parts.values() for note in p.notes), *carried.notes)
        layout.check(path, parts)
        self.description = self._find_description()

    @property
    def folder(self) -> Path:
        return self.path / self._layout.home

    @property
    def needs_guard(self) -> bool:
        """Whether a stock ``from_pretrained`` could load the output and must be made to refuse it."""
        return self._has_config and not self.holds_graph

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Any directory is recognized; :meth:`open` finds out what it holds."""
        return path.is_dir()

    @classmethod
    def open(cls, path: Path) -> Self:
        return cls.open_as(path, AS_IT_IS)

    @classmethod
    def open_as(cls, path: Path, reading: Reading) -> Self:
        reading.check_one(path)
        return cls.of_files(path, find_layout(path), reading)

    @classmethod
    def of_files(cls, path: Path, layout: ShardLayout, reading: Reading = AS_IT_IS) -> Self:
        """Open the weight files of ``path`` that are in ``layout``."""
        parts: dict[str, Checkpoint] = {}
        try:
            for name in layout.files:
                parts[name] = open_file(path / name, reading)
                if len(layout.files) > _MOST_OPEN:
                    parts[name].suspend()
            opened = cls(path, layout, parts)
        except BaseException:
            for part in parts.values():
                part.close()
            raise
        opened.reading = reading
        return opened

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return self._part_of(name).rows(name, start, stop)

    @functools.cached_property
    def lookups(self) -> Mapping[str, str]:
        return {name: ids for part in self._parts.values() for name, ids in part.lookups.items()}

    @property
    def descriptions(self) -> Mapping[str, Description]:
        found = {self.config_name: self.description} if is_our_record(self.config.get(QUANTIZATION)) else {}
        found |= {name: part.description for name, part in self._parts.items()}
        return {name: each for name, each in found.items() if each is not None}

    def bytes_of(self, name: str) -> Iterator[bytes]:
        return self._part_of(name).bytes_of(name)

    def torch_state(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """The tensors, collected from the weight files that hold them."""
        state: dict[str, Any] = {}
        for file, part in self._parts.items():
            wanted = None if names is None else [name for name in names if name in part.tensors]
            if wanted is None or wanted:
                state |= self._part(file).torch_state(wanted)
        return state

    def remainder(
        self, edit: Edit | None = None, description: Description | None = None
    ) -> Mapping[str, object]:
        """The remainder of each weight file, the index, and all other files."""
        own = {n: None for n in self._parts} if edit is None else self._restricted(edit)
        found: dict[str, object] = {}
        for name, part_edit in own.items():
            changed = part_edit if part_edit is not None and part_edit.remove else None
            remainder = self._part(name).remainder(changed, description)
            found |= {f"{name} {key}": value for key, value in remainder.items()}
        for new in edit.add if edit else ():
            if new.file is not None:
                found |= {f"{new.file} metadata {key}": value for key, value in NEW_METADATA.items()}
        if self._layout.index is not None:
            found |= self._index_entries(self._layout.index, edit)
        found |= other_files(self.path, self.carried, edit.documents if edit else {}, self.config_name)
        shown = description if self._has_card else None
        return {**found, **card_of(self.path, shown, self.path, graph=self.holds_graph)}

    def _index_entries(self, index: Index, edit: Edit | None) -> dict[str, object]:
        """The entries of the index, after ``edit`` if there is one; totals are checked on opening."""
        shards, metadata = dict(index.weight_map), dict(index.metadata)
        keys = {*read_json(self.path / index.name)}
        if edit is not None:
            keys = {"metadata", "weight_map"}
            totals = {"total_size", *(metadata.keys() & {"total_parameters"})}
            metadata |= dict.fromkeys(totals, ...)
            shards = {n: f for f, p in self._parts.items() for n in _indexed(p) if n not in edit.remove}
            for file, own in self._restricted(edit).items():
                shards |= {new.name: file for new in own.add}
                shards |= dict.fromkeys(own.aliases, file) if self._parts[file].shares_memory else {}
        found: dict[str, object] = {f"{index.name} keys": sorted(keys)}
        found |= {f"{index.name} of {name}": file for name, file in shards.items()}
        return {**found, **{f"{index.name} metadata {key}": value for key, value in metadata.items()}}

    def check_integrity(self, progress: Progress = silent) -> None:
        """Check each weight file, and that a second set of weights holds the same values."""
        for name in self._parts:
            self._part(name).check_integrity(progress)
        for name in self._layout.others:
            with open_file(self.path / name, self.reading) as other:
                self._compare(name, other)

    def sidecar(self, key: str) -> object:
        return self.config.get(key)

    def size_after(self, edit: Edit, description: Description | None) -> int:
        return sum(new_size(new) for new in edit.add if new.file is not None) + sum(
            self._parts[name].size_after(own, description) if own.remove else self._parts[name].size
            for name, own in self._restricted(edit).items()
        )

    def _restricted(self, edit: Edit) -> dict[str, Edit]:
        """The edit of each weight file that is kept; a file that held only copies of a table is dropped."""
        own = {name: _restrict(edit, part) for name, part in self._parts.items()}
        return {n: e for n, e in own.items() if e.add or e.remove != self._parts[n].tensors.keys()}

    def write(
        self, target: Path, edit: Edit, description: Description | None, progress: Progress = silent
    ) -> tuple[str, ...]:
        target.mkdir()
        warnings: list[str] = []
        for new in edit.add:
            if new.file is not None:
                made(target / new.file)
                write_new(target / new.file, new)
        for name, own in self._restricted(edit).items():
            made(target / name)
            if own.remove:
                warnings += self._part(name).write(target / name, own, description, progress)
            else:
                copy_file(self.path / name, target / name)
        for relative in self.carried:
            copy_file(self.path / relative, made(target / relative))
        if self._layout.index is not None:
            self._write_index(target)
        for name, document in edit.documents.items():
            write_document(target / name, document)
        if self.needs_guard:
            write_config(target / self.config_name, description)
        about = description or self.description
        if about is not None and about.tables and self._has_card:
            # A model that is compressed already names its base.
            made_from = self.path if self.description is None else None
            dense = description is None
            write_card(target, about, made_from=made_from, dense=dense, graph=self.holds_graph)
        return tuple(warnings)

    @classmethod
    def amend(cls, target: Path, description: Description) -> None:
        """Amend the record in config.json and in each weight file that carries one, and the card."""
        with cls.open(target) as written:
            own = {name: type(part) for name, part in written._parts.items() if part.description is not None}
        for name, kind in own.items():
            kind.amend(target / name, description)
        if written.needs_guard:
            write_config(target / written.config_name, description)
        if (target / CARD).exists():
            write_card(target, description, graph=written.holds_graph)

    @property
    def descriptors(self) -> Mapping[Path, int]:
        if len(self._parts) > _MOST_OPEN:
            return {}  # shards are closed in turn
        return {file: fd for part in self._parts.values() for file, fd in part.descriptors.items()}

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _part_of(self, name: str) -> Checkpoint:
        return self._part(self._holders[name])

    def _part(self, name: str) -> Checkpoint:
        """The weight file ``name``, to be read; of many, those that were read last stay open."""
        part = self._parts[name]
        if len(self._parts) > _MOST_OPEN:
            self._open.pop(name, None)
            self._open[name] = part
            if len(self._open) > _MOST_OPEN:
                self._open.pop(next(iter(self._open))).suspend()
        return part

    def _find_description(self) -> Description | None:
        """The record in config.json, or else the one in the weights (a directory without config)."""
        if is_our_record(record := self.config.get(QUANTIZATION)):
            return parse_description(record, str(self.path / self.config_name))
        return next((p.description for p in self._parts.values() if p.description is not None), None)

    def check_editable(self) -> None:
        """Refuse also what a weight file refuses."""
        for name in self._parts:
            self._part(name).check_editable()

    def check_edit(self, edit: Edit) -> None:
        """Refuse also what a weight file refuses."""
        super().check_edit(edit)
        for name, own in self._restricted(edit).items():
            if own.remove:
                self._part(name).check_edit(own)

    def _compare(self, name: str, other: Checkpoint) -> None:
        """Refuse two sets of weights that differ: nothing says which one is meant."""

        def refuse(what: str) -> None:
            raise InputError(
                f"{self.path}: {name} disagrees with {self._layout.files[0]} ({what})",
                remedy="remove the one that is out of date",
            )

        theirs = {n: t for n, t in other.tensors.items() if n in self.tensors}
        for tensor, info in theirs.items():
            mine = self.tensors[tensor]
            if (mine.shape, mine.dtype) != (info.shape, info.dtype):
                refuse(f"{tensor} is {_kind(info)} against {_kind(mine)}")
            if not info.is_matrix or 0 in info.shape:  # an empty tensor has no values to compare
                continue
            for start in range(0, info.shape[0], _COMPARE_ROWS):
                stop = min(start + _COMPARE_ROWS, info.shape[0])
                if not np.array_equal(self.rows(tensor, start, stop), other.rows(tensor, start, stop), True):
                    refuse(f"the values of {tensor}")

    def _write_index(self, target: Path) -> None:
        """Write the index of the new shards, with its other metadata kept."""
        index = self._layout.index
        assert index is not None
        weight_map: dict[str, str] = {}
        total_size = total_parameters = 0
        for name in self._layout.files:
            if not (target / name).exists():
                continue
            with open_file(target / name) as part:
                for tensor in map(part.tensors.__getitem__, _indexed(part)):
                    weight_map[tensor.name] = Path(name).name
                    if tensor.name not in part.aliases:
                        total_size += tensor.nbytes
                        total_parameters += int(np.prod(tensor.shape, dtype=np.int64))
        metadata = {**index.metadata, "total_size": total_size}
        if "total_parameters" in metadata:
            metadata["total_parameters"] = total_parameters
        write_json(target / index.name, {"metadata": metadata, "weight_map": weight_map})


def _restrict(edit: Edit, part: Checkpoint) -> Edit:
    """The part of ``edit`` that concerns one weight file."""
    add = tuple(new for new in edit.add if new.replaces in part.tensors and new.file is None)
    names = {new.name for new in add}
    return Edit(
        frozenset(n for n in edit.remove if n in part.tensors),
        add,
        {alias: name for alias, name in edit.aliases.items() if name in names},
        graphs=edit.graphs,
    )


def _kind(info: TensorInfo) -> str:
    return f"{info.dtype.name if info.dtype else info.layout} {list(info.shape)}"


def _indexed(part: Checkpoint) -> list[str]:
    """The names in a weight file that an index lists."""
    return [name for name in part.tensors if part.shares_memory or name not in part.aliases]
