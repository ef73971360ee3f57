"""What ``save_pretrained`` writes for a model with compressed tables: the same layout as factorizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from embcompress.checkpoint.description import Description, TableRecord, part_name
from embcompress.dtypes import DTYPES
from embcompress.errors import UsageError
from embcompress.integrations.hidden_modules import float_type
from embcompress.integrations.swap import SwappedTable, checksum
from embcompress.methods.modules import RIGHT, right_factor, trained_right
from embcompress.nn import FactorizedPair
from embcompress.storage.rawio import sha256_of
from embcompress.version import __version__


def described(before: Description, records: Sequence[TableRecord]) -> Description:
    """The record of the saved directory: that of the loaded one with new ``records``."""
    return replace(before, version=__version__, tables=tuple(records))


def stored_state(
    model: PreTrainedModel, tables: Sequence[SwappedTable]
) -> tuple[dict[str, Tensor], list[TableRecord]]:
    """Collect the tensors to be written and the new records.

    Each table is there once, as its method stores it, with a guard under its own name.

    Raises:
        UsageError: a table is offloaded or was replaced, or transformers would rename it but not its parts.
    """
    state = model.state_dict()
    records = []
    for table in tables:
        pair = model.get_submodule(table.owners[0])
        if not isinstance(pair, FactorizedPair):
            raise UsageError(
                f"{table.owners[0]} is a {type(pair).__name__}, not a compressed table any more",
                remedy="load the model again, or expand it with 'embcompress expand' before it is changed",
            )
        main = f"{table.owners[0]}.weight"
        parts = stored_parts(table, {s: state[part_name(main, s)] for s in pair.state_dict() if s != "bias"})
        for owner in table.owners:
            for suffix in [s for s in model.get_submodule(owner).state_dict() if s != "bias"]:
                state.pop(f"{owner}.{suffix}", None)
        dtype = float_type(pair)
        state |= {part_name(main, suffix): part for suffix, part in parts.items()}
        state[main] = torch.empty(0, dtype=dtype)
        records.append(_record(model, table, parts, dtype))
    return state, records


def stored_parts(table: SwappedTable, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module in the form that its method stores.

    Raises:
        UsageError: the table is offloaded.
    """
    if any(part.is_meta for part in held.values()):
        raise UsageError(
            f"{table.record.name} is offloaded and cannot be saved",
            remedy="load the model without offloading",
        )
    parts: dict[str, Tensor] = {}
    for suffix in table.record.parts:
        if suffix in held:
            parts[suffix] = _narrow(held[suffix].detach().cpu(), table.dtypes[suffix])
    if len(parts) < len(table.record.parts):
        weight, before = held[RIGHT].detach().cpu(), right_factor(table.right, table.record.shape[1])
        assert before is not None
        unchanged = torch.equal(before.to(weight.dtype), weight)
        integers = trained_right(before if unchanged else weight.float(), table.right, table.record.shape[1])
        parts |= integers
    return {suffix: parts[suffix] for suffix in table.record.parts}


def _narrow(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a part to the dtype it had in the file, if that is no larger and loses nothing."""
    smaller = part.to(dtype)
    same = dtype.itemsize <= part.dtype.itemsize and torch.equal(smaller.to(part.dtype), part)
    return smaller if same else part


def _record(
    model: PreTrainedModel, table: SwappedTable, parts: Mapping[str, Tensor], dtype: torch.dtype
) -> TableRecord:
    """The new record of a table: its names in the file, and what has changed since it was read.

    Raises:
        UsageError: transformers renames the table but not its parts.
    """
    old, main = table.record, f"{table.owners[0]}.weight"
    held = [f"{owner}.weight" for owner in table.owners]
    written = _written_names(model, [*held, *(part_name(main, suffix) for suffix in parts)])
    for suffix in parts:
        if written[part_name(main, suffix)] != part_name(written[main], suffix):
            raise UsageError(
                f"{main}: transformers renames the table but not its part {suffix} in files of this class",
                remedy="keep the directory that 'embcompress factorize' wrote",
            )
    ties = {tie: written[table.names[tie]] for tie in old.ties if table.names[tie] in held[1:]}
    copies = tuple(ties[copy] for copy in old.copies if copy in ties)
    named = replace(old, name=written[main], ties=tuple(ties.values()), copies=copies)
    return resaved(table, named, parts, dtype)


def resaved(
    table: SwappedTable, named: TableRecord, parts: Mapping[str, Tensor], dtype: torch.dtype
) -> TableRecord:
    """The new record of a table that is saved.

    Args:
        table: the table as it was loaded.
        named: its record, with the names that it is saved under.
        parts: what is stored.
        dtype: the type that the model computes in.
    """
    changed, old = checksum(parts) != table.checksum, table.record
    new = replace(
        named,
        trained=old.trained or changed,
        digests=tuple(_digest(part) for part in parts.values()),
    )
    kind = _dtype_name(dtype)
    if not changed and kind == old.dtype:
        return new
    dense = old.shape[0] * old.shape[1] * dtype.itemsize
    size = sum(part.numel() * part.element_size() for part in parts.values())
    left = parts.get("0.weight")
    stored = old.stored_dtype if left is None else _dtype_name(left.dtype)
    return replace(new, dtype=kind, stored_dtype=stored, ratio=1 - size / dense)


def _digest(part: Tensor) -> str:
    """SHA-256 of a tensor's bytes as they are written."""
    return sha256_of([part.contiguous().view(-1).view(torch.uint8).numpy().data])


def _dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known.torch == str(dtype).removeprefix("torch."))


def _written_names(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """Names in the model -> names in a file."""
    numbered = {name: torch.tensor([i]) for i, name in enumerate(names)}
    reverted = revert_weight_conversion(model, numbered)
    return {names[int(number)]: str(name) for name, number in reverted.items()}
