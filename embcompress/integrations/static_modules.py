"""sentence-transformers' ``StaticEmbedding`` and ``WordEmbeddings`` with compressed tables.

The library has no registry for such modules. So :func:`register` wraps ``load`` and ``save`` of both classes.
What is not compressed goes to the library as it came.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, WordEmbeddings
from torch import Tensor, nn

from embcompress.checkpoint.description import METADATA_KEY, Description, part_name
from embcompress.checkpoint.directory.modules import MAPPING, WEIGHTS
from embcompress.checkpoint.files import open_file
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError
from embcompress.integrations.hidden_modules import float_type
from embcompress.integrations.saving import described, resaved, stored_parts
from embcompress.integrations.swap import SwappedTable
from embcompress.loading.static import remapped, table_modules
from embcompress.loading.stored_tables import StoredTable, read_stored
from embcompress.loading.swapping import install, replacements
from embcompress.nn import FactorizedPair

_PLACES: Mapping[Any, str] = {StaticEmbedding: "embedding", WordEmbeddings: "emb_layer"}
"""Where each class holds its table."""
_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weight files of a module, in the order in which the library looks for them."""
_HELD = "_embcompress"
"""Attribute of a module that says how its table was stored."""


@dataclass(frozen=True)
class _Held:
    """How the table of a module was stored.

    Attributes:
        description: the record of its file.
        table: its table.
        others: further tensors in the file.
    """

    description: Description
    table: SwappedTable
    others: Mapping[str, Tensor]


def register() -> None:
    """Wrap ``load`` and ``save`` of both classes; a second call changes nothing."""
    for kind in _PLACES:
        if not hasattr(kind.load, "__wrapped__"):
            kind.load = classmethod(_loading(kind.load.__func__))
            kind.save = _saving(kind.save)


def _loading(original: Any) -> Any:
    """``load`` of a class that also reads compressed tables."""

    @functools.wraps(original)
    def load(cls: type, model_name_or_path: str, subfolder: str = "", **options: Any) -> Any:
        found = _read(cls, model_name_or_path, subfolder, options)
        if found is None:
            return original(cls, model_name_or_path, subfolder=subfolder, **options)
        description, table, others = found
        place, record = _PLACES[cls], table.record
        tokens = len(others.get(MAPPING, range(record.shape[0])))
        dtype = getattr(torch, DTYPES[record.dtype].torch)
        blank = torch.zeros((), dtype=dtype).expand(tokens, record.shape[1])  # takes no memory
        stand_in = type(
            cls.__name__, (cls,), {"load_torch_weights": lambda *_, **__: {f"{place}.weight": blank}}
        )
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            module = original(stand_in, model_name_or_path, subfolder=subfolder, **options)
        module.__class__ = cls
        dense = module.get_submodule(place)
        dense.weight = nn.Parameter(blank.to(dense.weight.dtype), dense.weight.requires_grad)
        with torch.random.fork_rng([]), torch.no_grad():
            install(module, _modules(module, place, table, others))
        swapped = SwappedTable.of(table, (place,), {record.name: f"{place}.weight"})
        setattr(module, _HELD, _Held(description, swapped, others))
        return module

    return load


def _read(
    cls: Any, path: str, subfolder: str, options: Mapping[str, Any]
) -> tuple[Description, StoredTable, Mapping[str, Tensor]] | None:
    """The record, the table and the other tensors of a module's weights; None if they are not compressed.

    Raises:
        InputError: they contradict their record.
    """
    where = {
        key: options[key]
        for key in ("token", "cache_folder", "revision", "local_files_only")
        if key in options
    }
    files = (cls.load_file_path(path, filename=name, subfolder=subfolder, **where) for name in _FILES)
    file = next((found for found in files if found is not None), None)
    if file is None:
        return None
    try:
        checkpoint = open_file(Path(file))
    except InputError:
        return None  # the library says what is wrong with it, or can read it
    with checkpoint:
        description = checkpoint.description
        if description is None or not description.swapped:
            return None
        stored = read_stored(checkpoint, description, others=True)
    return description, stored.tables[0], stored.others


def _modules(
    module: nn.Module, place: str, table: StoredTable, others: Mapping[str, Tensor]
) -> Mapping[str, nn.Module]:
    """The module that takes the place of the dense embedding, by its name."""
    contents = table.contents
    if MAPPING in others or WEIGHTS in others:
        contents = remapped(table_modules(table), others)
    new = replacements(module, f"{place}.weight", contents)
    if isinstance(contents, int):
        new[place].load_state_dict(dict(table.parts), strict=True)
    return new


def _saving(original: Any) -> Any:
    """``save`` of a class that stores a compressed table in the form that it was read in."""

    @functools.wraps(original)
    def save(self: Any, output_path: str, *args: Any, **options: Any) -> None:
        original(self, output_path, *args, **options)
        held: _Held | None = getattr(self, _HELD, None)
        pair = self.get_submodule(_PLACES[type(self)])
        if held is None or not isinstance(pair, FactorizedPair):
            return
        state = {name.replace("0.inner.", "0."): value for name, value in pair.state_dict().items()}
        parts = stored_parts(held.table, state)
        record = resaved(held.table, held.table.record, parts, float_type(pair))
        tensors = {part_name(record.name, suffix): part.contiguous() for suffix, part in parts.items()}
        metadata = {METADATA_KEY: described(held.description, [record]).to_json()}
        folder = Path(output_path)
        save_file({**held.others, **tensors}, folder / _FILES[0], metadata)
        (folder / _FILES[1]).unlink(missing_ok=True)

    return save
