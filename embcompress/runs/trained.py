"""Write a checkpoint again with trained values, as it was stored."""

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
    """Write ``source`` with the values of a trained module.

    Args:
        source: what was trained.
        target: does not exist yet.
        state: what was trained of the module, or all of it, by the names in the files.
        progress: called as ``progress(stage, done, total)``.
        trained: whether these are other values than those of ``source``.
        sources: file name -> SHA-256 of what the output was made from; None for ``source`` itself.

    Returns:
        The values as they are stored, by their names in the files.

    Raises:
        UsageError: a trained tensor has no name in the files.
        TargetError: a trained value is not finite, or too large for the stored type.
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
    """``state`` without second names of tensors that the files of ``source`` hold under another.

    Raises:
        UsageError: a tensor has no name in the files, and would be lost.
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
                f"{source.path}: {name}, which is trained, has no name in the weight files",
                remedy="save the model with save_pretrained, and factorize what that writes",
            )
    return named


def _rounded(source: Checkpoint, state: State) -> State:
    """``state`` with the right factors that are stored in integers as they will be read, and these integers.

    Raises:
        TargetError: a trained value is not finite.
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
    """Every stored tensor replaced by the one of that name in ``state``, in its stored type.

    Those that ``state`` does not name are carried over.
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
    """The values of one tensor as the one block it is written in.

    Raises:
        TargetError: when they are written, if one would become infinite.
    """

    def blocks() -> Iterator[Floats]:
        _check_range(name, values, dtype)
        yield values.numpy()

    return blocks


def _check_range(name: str, values: Tensor, dtype: DType) -> None:
    """Refuse values that would become infinite in a float type.

    Raises:
        TargetError: with the greatest.
    """
    peak = float(values.abs().max()) if dtype.is_table and values.numel() else 0.0
    if not peak <= dtype.largest and dtype.is_table:
        raise TargetError(
            f"{name}: a trained value is {peak:.3g}, {dtype.torch} ends at {dtype.largest:.5g}",
            remedy="train with a lower --learning-rate, or factorize with --dtype float32",
        )
