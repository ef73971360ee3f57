"""Write a checkpoint with trained values, in the form in which it was stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import part_name
from embcompress.checkpoint.tensors import NewTensor
from embcompress.compression.digests import seal, unsealed
from embcompress.compression.outputs import write_copy
from embcompress.compression.sources import hashed
from embcompress.dtypes import DTYPES, DType, Floats
from embcompress.errors import TargetError, UsageError
from embcompress.methods.base import Blocks
from embcompress.methods.modules import RIGHT, RIGHT_PARTS, module_parts, trained_right
from embcompress.progress import Progress
from embcompress.training.loop import State


def write_trained(
    source: Checkpoint,
    target: Path,
    state: State,
    progress: Progress,
    *,
    trained: bool,
    sources: Mapping[str, str] | None = None,
) -> State:
    """Write a copy of ``source`` with trained values.

    Args:
        source: the checkpoint that was trained.
        target: the path of the copy, which does not exist yet.
        state: the trained tensors, or all tensors of the module, by their names in the files.
        progress: called as ``progress(stage, done, total)``.
        trained: whether the values may differ from those in ``source``.
        sources: file name -> SHA-256 of the files that the output was made from; None for the files of
            ``source``.

    Returns:
        The values in the form in which they were written, by their names in the files.

    Raises:
        UsageError: a trained tensor has no name in the files.
        TargetError: a trained value is NaN or too large for the stored type.
    """
    description = source.description
    with hashed(source) as digests:
        values = _rounded(source, with_names(source, state))
        if description is not None:
            tables = tuple(unsealed(replace(t, trained=t.trained or trained)) for t in description.tables)
            description = replace(description, source=sources or digests.result(), tables=tables)
        write_copy(source, target, with_values(source, values), description, progress)
    if description is not None:
        seal(target)
    return values


def with_names(source: Checkpoint, state: State) -> State:
    """Drop names of shared tensors that the files of ``source`` hold under another name.

    Raises:
        UsageError: a tensor has no name in the files and would be lost.
    """
    tables = source.description.tables if source.description else ()
    parts = {
        part_name(name, suffix)
        for table in tables
        for name in (table.name, *table.ties)
        for suffix in (*table.parts, RIGHT)
    }
    named = {name: value for name, value in state.items() if name in source.tensors or name in parts}
    kept = {(value.data_ptr(), value.shape) for value in named.values()}
    for name, value in state.items():
        if name not in named and (value.data_ptr(), value.shape) not in kept:
            raise UsageError(
                f"{source.path}: {name} is trained but has no name in the weight files",
                remedy="save the model with save_pretrained and factorize the result",
            )
    return named


def _rounded(source: Checkpoint, state: State) -> State:
    """Round the right factors that are stored as integers, and add these integers to ``state``.

    The factors returned are those that a reader will decode.

    Raises:
        TargetError: a trained value is NaN or infinite.
    """
    values = dict(state)
    for table in source.description.tables if source.description else ():
        names = dict(zip(table.parts, table.part_names, strict=True))
        parts = {
            suffix: torch.from_numpy(source.rows(names[suffix], 0, source.tensors[names[suffix]].shape[0]))
            for suffix in RIGHT_PARTS
            if suffix in names
        }
        if not parts:
            continue
        trained, columns = part_name(table.name, RIGHT), table.shape[1]
        _check_range(trained, state[trained], DTYPES["F32"])
        integers = trained_right(state[trained], parts, columns)
        read_back = module_parts({**parts, **integers}, columns)[RIGHT]
        values |= {names[suffix]: part for suffix, part in integers.items()}
        values |= {
            n: read_back for n in (part_name(o, RIGHT) for o in (table.name, *table.ties)) if n in state
        }
    return values


def with_values(source: Checkpoint, state: State) -> Edit:
    """Make the edit that replaces stored tensors with those in ``state``, in their stored types.

    Tensors that ``state`` does not name are carried over.
    """
    add = []
    for name, info in source.tensors.items():
        if name in source.aliases or name not in state or info.dtype is None or not info.dtype.storage:
            continue
        add.append(NewTensor(name, info.dtype, info.shape, name, _whole(name, state[name], info.dtype)))
    replaced = {new.name for new in add}
    aliases = {alias: name for alias, name in source.aliases.items() if name in replaced}
    return Edit(frozenset(replaced | aliases.keys()), tuple(add), aliases)


def _whole(name: str, values: Tensor, dtype: DType) -> Blocks:
    """Return a function that yields the values of a tensor as one block.

    Raises:
        TargetError: when the block is read, if a value is NaN or too large for ``dtype``.
    """

    def blocks() -> Iterator[Floats]:
        _check_range(name, values, dtype)
        yield values.numpy()

    return blocks


def _check_range(name: str, values: Tensor, dtype: DType) -> None:
    """Refuse values that are NaN or would become infinite in a float type.

    Raises:
        TargetError: there is such a value.
    """
    peak = float(values.abs().max()) if dtype.is_table and values.numel() else 0.0
    if not peak <= dtype.largest and dtype.is_table:
        raise TargetError(
            f"{name}: a trained value is {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
            remedy="train with a lower --learning-rate, or factorize with --dtype float32",
        )
