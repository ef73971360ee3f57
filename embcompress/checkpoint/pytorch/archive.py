"""Open the two formats of ``torch.save``: the zip of torch 1.6 and later, and the older one.

Both give the pickled object as inert nodes, and the byte range of every storage in the file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from embcompress.checkpoint.names import check_not_pointer
from embcompress.checkpoint.pickles.nodes import StorageRef, walk
from embcompress.checkpoint.pickles.reader import PICKLE_LIMIT, SAVE_AGAIN, load
from embcompress.checkpoint.pytorch.modules import Budget, state_of_script
from embcompress.checkpoint.pytorch.plain import checked, weights_only
from embcompress.checkpoint.pytorch.tensors import check_storages, storage_bytes
from embcompress.errors import InputError
from embcompress.storage.rawio import read_at
from embcompress.storage.zipstore import AGAIN, Extent, check_stored, read_directory

ZIP_MAGIC: Final = b"PK\x03\x04"
LEGACY_MAGIC: Final = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of the old format: a number chosen to be recognized."""
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class Archive:
    """The contents of a ``torch.save`` file.

    Attributes:
        root: the saved object, as inert nodes.
        storages: storage key -> byte range of the storage.
        records: every record of a zip by name; empty for the old format.
        protocol: of the pickle.
        notes: what of the object is left out, one sentence each.
        whole: whether the root is all that was saved, as it was saved.
    """

    root: Any
    storages: Mapping[str, Extent]
    records: Mapping[str, Extent]
    protocol: int = 2
    notes: tuple[str, ...] = ()
    whole: bool = True


def read_archive(fd: int, path: Path, *, only_weights: bool = False) -> Archive:
    """Read and check everything but the elements of the tensors.

    Args:
        fd: the file.
        path: its name, for error messages.
        only_weights: leave out everything but weights and plain data, instead of refusing it.

    Raises:
        InputError: the file was not made by ``torch.save``, is damaged, or holds more than weights and plain
            data.
    """
    head = read_at(fd, 512, 0)
    if not head:
        raise InputError(f"{path}: is empty, 0 bytes", remedy=AGAIN)
    check_not_pointer(head, path)
    if head.startswith(ZIP_MAGIC):
        return _read_zip(fd, path, only_weights=only_weights)
    if head[:1] == b"\x80":
        return _read_legacy(fd, path, only_weights=only_weights)
    if head.lstrip()[:1] == b"<":
        raise InputError(
            f"{path}: is an HTML or XML page, not a model", remedy="download the file itself, not its page"
        )
    if head[257:262] == b"ustar":
        raise InputError(
            f"{path}: is a tar file, the format of torch before 0.1.10, which is not read",
            remedy="load it with an older torch and save it again",
        )
    raise InputError(f"{path}: begins with {head[:8]!r}, torch.save files do not", remedy=AGAIN)


def _plain(archive: Archive, where: str, pickle_size: int, *, only_weights: bool) -> Archive:
    """The archive without anything but weights and plain data, or an error."""
    check_storages(archive.root, archive.storages, where)
    root = archive.root
    plain = weights_only(root, where, _budget(pickle_size)) if only_weights else checked(root, where)
    if not plain.notes:
        return archive
    # What is left is in every protocol the same, and torch.load reads protocol 2 best.
    return _reduced(archive, plain.root, plain.notes)


def _reduced(archive: Archive, root: object, notes: tuple[str, ...]) -> Archive:
    """The archive with ``root`` alone; what else it holds is noted by size."""
    used = {node.key for node in walk(root) if isinstance(node, StorageRef)}
    left = sum(extent.size for key, extent in archive.storages.items() if key not in used)
    if left:
        what = "tensors that are no parameters or persistent buffers, or belong to what was dropped"
        notes = (*notes, f"{left:,} bytes were left out: {what}")
    return replace(archive, root=root, notes=notes, whole=False, protocol=2)


def _budget(pickle_size: int) -> Budget:
    """Far more than the names of tensors in a pickle of that size need."""
    return Budget((1 << 20) + 16 * pickle_size)


def _read_zip(fd: int, path: Path, *, only_weights: bool) -> Archive:
    where = str(path)
    records = read_directory(fd, where, deflated=True)
    # Like torch, take the folder of the first record as the folder of all.
    folder = next(iter(records), "").partition("/")[0]
    inside = {name.removeprefix(f"{folder}/"): extent for name, extent in records.items()}
    scripted = "constants.pkl" in inside or any(name.startswith("code/") for name in inside)
    _check_kind(inside, path, scripted=scripted, only_weights=only_weights)
    if scripted:
        code = {_module_of(name): extent for name, extent in inside.items() if name.startswith("code/")}
        records = {name: extent for name, extent in records.items() if extent.packed is None}
        inside = {name: extent for name, extent in inside.items() if extent.packed is None}
    check_stored(records, where)
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if len(pickles) > 1:
        raise InputError(f"{path}: holds {len(pickles)} pickles, {pickles[0]} and {pickles[1]}", remedy=AGAIN)
    if "data.pkl" not in inside:
        raise InputError(f"{path}: is a zip without data.pkl, so not one of torch.save", remedy=SAVE_AGAIN)
    _check_byte_order(fd, inside, path)
    extent = inside["data.pkl"]
    if extent.size > PICKLE_LIMIT:
        raise InputError(
            f"{path}: its data.pkl has {extent.size:,} bytes, limit {PICKLE_LIMIT:,}", remedy=SAVE_AGAIN
        )
    saved = load(read_at(fd, extent.size, extent.offset), where)
    storages = {n.removeprefix("data/"): e for n, e in inside.items() if n.startswith("data/")}
    archive = Archive(saved.root, storages, records, saved.protocol)
    if not scripted:
        return _plain(archive, where, extent.size, only_weights=only_weights)
    check_storages(saved.root, storages, where)
    state = state_of_script(saved.root, fd, code, where, _budget(extent.size))
    if not state:
        raise InputError(
            f"{path}: is a TorchScript archive without parameters: if it is frozen, its code has them as "
            "constants",
            remedy="save the state dict of the model from before torch.jit.freeze",
        )
    note = "the file is a TorchScript archive: its state dict was taken, its code was left out"
    plain = weights_only(state, where)
    return _reduced(archive, plain.root, (note, *plain.notes))


_EXPORTED = {"archive_format", "models/model.json", "serialized_exported_program.json"}
"""Records that only ``torch.export.save`` writes."""


def is_exported(names: Iterable[str]) -> bool:
    """Whether a zip with records of these names was made by ``torch.export.save``."""
    return any(name == each or name.endswith(f"/{each}") for name in names for each in _EXPORTED)


def _check_kind(inside: Mapping[str, Extent], path: Path, *, scripted: bool, only_weights: bool) -> None:
    """Refuse a program, unless its weights alone are asked for and can be had."""
    if is_exported(inside):
        raise InputError(
            f"{path}: is a program of torch.export, a graph with its weights",
            remedy="compress its state dict, torch.save(torch.export.load(path).state_dict, 'model.pt'), "
            "load that into the model and export it again",
        )
    if scripted and not only_weights:
        raise InputError(
            f"{path}: is a TorchScript archive, which is code as well as weights",
            remedy="run factorize or report with --weights-only to take its state dict; load that into the "
            "model and script it again",
        )


def _module_of(record: str) -> str:
    """``__torch__.a.b`` for ``code/__torch__/a/b.py``."""
    return record.removeprefix("code/").removesuffix(".py").replace("/", ".")


def _check_byte_order(fd: int, inside: Mapping[str, Extent], path: Path) -> None:
    extent = inside.get("byteorder")
    order = read_at(fd, min(extent.size, 16), extent.offset) if extent else b"little"
    if order != b"little":
        raise InputError(
            f"{path}: its byte order is {order.decode('latin1')!r}, only 'little' is read",
            remedy="load and save it on a little-endian machine",
        )


def _read_legacy(fd: int, path: Path, *, only_weights: bool) -> Archive:
    where = str(path)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        magic = load(data, where)
        if magic.root != _LEGACY_NUMBER:
            checked(magic.root, where)
            raise InputError(f"{path}: is a pickle, but not one of torch.save", remedy=SAVE_AGAIN)
        protocol = load(data, where, magic.end)
        if protocol.root != _LEGACY_PROTOCOL:
            raise InputError(f"{path}: has torch protocol {_brief(protocol.root)}, only 1001 is known")
        system = load(data, where, protocol.end)
        if not isinstance(system.root, dict) or system.root.get("little_endian") is not True:
            raise InputError(
                f"{path}: does not say that it is little-endian",
                remedy="load and save it on a little-endian machine",
            )
        saved = load(data, where, system.end, legacy=True)
        keys = load(data, where, saved.end)
        if not isinstance(keys.root, list) or not all(isinstance(key, str) for key in keys.root):
            raise InputError(f"{path}: has no list of storages after its pickle", remedy=AGAIN)
        refs = {node.key: node for node in walk(saved.root) if isinstance(node, StorageRef)}
        storages: dict[str, Extent] = {}
        position = keys.end
        for key in keys.root:
            if key not in refs or key in storages:
                raise InputError(f"{path}: lists storage {key} that nothing uses, or twice", remedy=AGAIN)
            # A storage is its number of elements, in eight bytes, followed by their bytes.
            numel = int.from_bytes(data[position : position + 8], "little", signed=True)
            nbytes = storage_bytes(refs[key])
            if numel != refs[key].numel or position + 8 + nbytes > size:
                raise InputError(
                    f"{path}: storage {key} needs {nbytes:,} bytes for {refs[key].numel:,} elements; "
                    f"{max(0, size - position - 8):,} bytes for {numel:,} are there",
                    remedy=AGAIN,
                )
            storages[key] = Extent(position + 8, nbytes, None)
            position += 8 + nbytes
    archive = Archive(saved.root, storages, {}, saved.protocol)
    return _plain(archive, where, saved.end - system.end, only_weights=only_weights)


def _brief(value: object) -> str:
    return str(value) if isinstance(value, int) else type(value).__name__
