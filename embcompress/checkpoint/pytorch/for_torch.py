"""A file's tensors for torch: as torch loads them, or built here where it refuses the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embcompress.checkpoint.pickles.nodes import SCALARS, Call, Made, OrderedMap, walk
from embcompress.checkpoint.pickles.reader import SAVE_AGAIN
from embcompress.checkpoint.pytorch.archive import Archive
from embcompress.checkpoint.pytorch.tensors import View, is_tensor, parse_view, unwrap
from embcompress.errors import InputError, reason_of
from embcompress.storage.rawio import read_exact

if TYPE_CHECKING:
    import torch


def torch_reads(archive: Archive) -> bool:
    """Whether torch reads a file by itself: all is as it was saved, and nothing is of another class."""
    return archive.protocol == 2 and archive.whole and not any(map(_is_other, walk(archive.root)))


def _is_other(node: object) -> bool:
    return (isinstance(node, Made) and not isinstance(node, OrderedMap)) or (
        isinstance(node, Call) and str(node.function) == "builtins.frozenset"
    )


def loaded_by_torch(path: Path) -> Any:
    """What torch makes of a file, which has been checked.

    Raises:
        InputError: the file has changed since.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if "memory" in str(error):
            raise MemoryError from error
        raise InputError(
            f"{path}: torch cannot load it ({reason_of(error)})",
            remedy="make sure that nothing else writes to it, and run again",
        ) from None


def state_for_torch(
    fd: int, archive: Archive, state: Mapping[Any, Any], names: Collection[str] | None, where: str
) -> dict[str, Any]:
    """Tensors of a state dict by name; those that share a storage in the file share it again.

    Args:
        fd: the file.
        archive: its contents.
        state: the state dict.
        names: which of its tensors to return; None for all, and for numbers and texts in it.
        where: name of the file, for error messages.

    Raises:
        InputError: a tensor is sparse, quantized or on no device, or its bytes cannot be read.
    """
    storages: dict[str, torch.Tensor] = {}
    found: dict[str, Any] = {}
    for name in state if names is None else names:
        node = state[name]
        if is_tensor(node):
            view = parse_view(unwrap(node), where)
            if view is None or not view.plain:
                raise InputError(
                    f"{where}: {name} is sparse, quantized or stored with flags, and something beside it "
                    "keeps torch from loading the file",
                    remedy=SAVE_AGAIN,
                )
            found[name] = _tensor(fd, archive, view, storages, where)
        elif isinstance(node, SCALARS):
            found[name] = node
    return found


def _tensor(
    fd: int, archive: Archive, view: View, storages: dict[str, torch.Tensor], where: str
) -> torch.Tensor:
    import torch

    key, dtype = view.storage.key, getattr(torch, view.torch_dtype, None)
    if dtype is None:
        raise InputError(f"{where}: holds {view.torch_dtype}, which this torch does not have", "update torch")
    if key not in storages:
        extent = archive.storages[key]
        storages[key] = torch.empty(extent.size, dtype=torch.uint8)
        if extent.size:
            read_exact(fd, extent.offset, storages[key].numpy(), where)
    made = torch.empty(0, dtype=dtype)
    return made.set_(storages[key].untyped_storage(), view.offset, view.shape, view.stride)
