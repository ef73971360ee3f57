"""A format that only the tests have: a line of JSON that says what follows, then the bytes of each tensor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import METADATA_KEY, parse_description
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.progress import silent

MAGIC = b'{"toy":'
LIMIT = 1 << 20


class ToyFile(Checkpoint):
    """One .toy file."""

    format = "toy"
    suffixes = (".toy",)

    def __init__(self, path, header, start):
        self.path, self._header, self._start = path, header, start
        self.tensors, self._places, offset = {}, {}, start
        for name, dtype, shape in header["tensors"]:
            nbytes = DTYPES[dtype].nbytes(int(np.prod(shape)))
            self.tensors[name] = TensorInfo(name, DTYPES[dtype], tuple(shape), nbytes)
            self._places[name], offset = offset, offset + nbytes
        self.size, self.weight_files = path.stat().st_size, (path,)
        if self.size != offset:
            raise InputError(f"{path}: {self.size:,} bytes, its header says {offset:,}", "download it again")
        self.aliases, self.config, self.notes = {}, {}, ()
        record = header.get(METADATA_KEY)
        self.description = None if record is None else parse_description(record, str(path))

    @classmethod
    def recognizes(cls, path):
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    @classmethod
    def open(cls, path):
        with path.open("rb") as file:
            line = file.readline(LIMIT)
        try:
            return cls(path, json.loads(line), len(line))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: its header cannot be read", "download it again") from None

    def rows(self, name, start, stop):
        info = self.tensors[name]
        dtype, columns = info.readable_dtype(), info.shape[1]
        offset = self._places[name] + dtype.nbytes(start * columns)
        stored = np.fromfile(self.path, dtype.storage, (stop - start) * columns, offset=offset)
        return dtype.decode(stored.reshape(stop - start, columns)).copy()

    def bytes_of(self, name):
        with self.path.open("rb") as file:
            file.seek(self._places[name])
            yield file.read(self.tensors[name].nbytes)

    def check_integrity(self, progress=silent):
        pass

    def sidecar(self, key):
        return self._header.get(key)

    def size_after(self, edit, description):
        entries, header = self._planned(edit, description)
        room = 128 * len(description.tables) if description else 0  # for measured figures in the record
        return len(header) + sum(entry.nbytes for entry in entries) + room

    def write(self, target, edit, description, progress=silent):
        entries, header = self._planned(edit, description)
        with target.open("xb") as file:
            file.write(header)
            for entry in entries:
                carried = isinstance(entry, TensorInfo)
                pieces = self.bytes_of(entry.name) if carried else map(entry.dtype.encode, entry.blocks())
                file.writelines(pieces)
        return ()

    def _planned(self, edit, description):
        entries = []
        for name, info in self.tensors.items():
            entries += [new for new in edit.add if new.replaces == name]
            entries += [info] if name not in edit.remove else []
        kept = {key: value for key, value in self._header.items() if key not in ("tensors", METADATA_KEY)}
        return entries, header_of(entries, description and description.to_dict(), **kept)

    @classmethod
    def amend(cls, target, description):
        written = cls.open(target)
        entries, data = written.tensors.values(), target.read_bytes()[written._start :]
        target.write_bytes(header_of(entries, description.to_dict()) + data)

    def close(self):
        pass


def header_of(entries, record, **others):
    """The first line of a file with these tensors."""
    tensors = [[entry.name, entry.dtype.name, [*entry.shape]] for entry in entries]
    body = {"toy": 1, **others, "tensors": tensors} | ({METADATA_KEY: record} if record else {})
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


class Toy:
    """Writes and reads .toy files, as the writers of ``helpers.formats`` do for other formats."""

    suffix = ".toy"

    @staticmethod
    def save(path: Path, tensors):
        arrays = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
        entries = [TensorInfo(n, DTYPES["F32"], a.shape, a.nbytes) for n, a in arrays.items()]
        path.write_bytes(header_of(entries, None) + b"".join(a.tobytes() for a in arrays.values()))
