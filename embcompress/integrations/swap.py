"""Put compressed tables into a transformers model while it is loaded: begin → (weights load) → finish.

Before any weights are loaded, the tables are read and swapped in on the CPU, their ties are removed from the
model, and the modules are hidden; see :mod:`embcompress.integrations.hidden_modules`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from embcompress.checkpoint.description import Description, TableRecord
from embcompress.checkpoint.directory.checkpoint import Directory
from embcompress.checkpoint.directory.shards import ShardLayout
from embcompress.errors import UsageError
from embcompress.integrations.hidden_modules import HiddenModules
from embcompress.integrations.names import Names, patterns
from embcompress.loading.stored_tables import StoredTable, places_of, read_stored
from embcompress.loading.swapping import install, replacements
from embcompress.methods.modules import RIGHT_PARTS, Parts
from embcompress.nn import FactorizedEmbedding, FactorizedPair


@dataclass(frozen=True)
class SwappedTable:
    """A compressed table in a model.

    Attributes:
        record: the record in the files.
        owners: names of the modules that hold it; the table's own comes first.
        names: the names in the record -> those in the model, whether it has such a parameter or not.
        dtypes: element types of its parts in the files.
        right: the parts of a right factor that is stored as integers; the model holds it in floats.
        checksum: checksum of all parts.
    """

    record: TableRecord
    owners: tuple[str, ...]
    names: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    right: Parts
    checksum: int

    @classmethod
    def of(cls, table: StoredTable, owners: tuple[str, ...], names: Mapping[str, str]) -> SwappedTable:
        """What is needed to save a table later; see the attributes for ``owners`` and ``names``."""
        parts = table.parts
        return cls(
            table.record,
            owners,
            names,
            {suffix: part.dtype for suffix, part in parts.items()},
            {suffix: part for suffix, part in parts.items() if suffix in RIGHT_PARTS},
            checksum(parts),
        )


@dataclass(frozen=True)
class Swap:
    """A swap that has begun.

    Attributes:
        tables: the tables that were swapped in.
        hidden: hides their modules.
        fresh: names of biases of heads that no file holds.
        unexpected: patterns of the names in files that the model itself ignores.
    """

    tables: tuple[SwappedTable, ...]
    hidden: HiddenModules
    fresh: tuple[str, ...]
    unexpected: set[str] | list[str] | None

    def finish(self, model: PreTrainedModel) -> None:
        """Show the tables of a model whose weights are loaded, and move them to its device.

        Raises:
            UsageError: modules that share a table were put on several devices.
        """
        model._keys_to_ignore_on_load_unexpected = self.unexpected
        self.hidden.reveal()
        for name in self.fresh:
            nn.init.zeros_(model.get_parameter(name))  # as these models initialize nn.Linear
        device_map = getattr(model, "hf_device_map", {})
        if len({*map(str, device_map.values())}) > 1:  # hooks have put the modules where they belong
            _check_places(self.tables, device_map)
            return
        factors = {id(p) for pair in self.hidden.pairs for part in pair for p in part.parameters()}
        device = next((p.device for p in model.parameters() if id(p) not in factors), torch.device("cpu"))
        for pair in self.hidden.pairs:
            pair.to(device)


def begin_swap(
    model: PreTrainedModel, description: Description, files: Sequence[str], device_map: object
) -> Swap:
    """Swap compressed tables in, hidden from the loader.

    Args:
        model: built, without weights; changed in place.
        description: the record of the tables in the files.
        files: the weight files that will be loaded.
        device_map: the device map that from_pretrained was given.

    Raises:
        UsageError: a table does not fit the model, or is to be put on disk.
        InputError: the files contradict their record.
    """
    records = description.swapped
    # transformers calls this within torch.device("meta"). Fresh factors are overwritten, so making them must
    # not advance the caller's random numbers.
    with torch.device("cpu"), torch.random.fork_rng([]), torch.no_grad(), _opened(files) as checkpoint:
        names = Names.of(model)
        stored = {names.renamed(n) for n in checkpoint.tensors} - {names.renamed(r.name) for r in records}
        modules: dict[str, nn.Module] = {}
        tables = []
        places = {r.name: {*map(names.renamed, (r.name, *r.ties))} for r in records}
        for table in read_stored(checkpoint, description, others=False).tables:
            apart = {name for key, those in places.items() if key != table.record.name for name in those}
            new = _replacements(model, table, names, stored, apart, checkpoint.path)
            owners = tuple(name for name, module in new.items() if isinstance(module, FactorizedPair))
            known = {name: names.renamed(name) for name in (table.record.name, *table.record.ties)}
            tables.append(SwappedTable.of(table, owners, known))
            modules |= new
    if isinstance(device_map, Mapping):
        _check_disk(tables, device_map)
    names.forget_ties(model, {f"{owner}.weight" for owner in modules})
    install(model, modules)
    pairs = {owner: module for owner, module in modules.items() if isinstance(module, FactorizedPair)}
    biases = {f"{owner}.bias" for owner, pair in pairs.items() if getattr(pair, "bias", None) is not None}
    unexpected = model._keys_to_ignore_on_load_unexpected
    swap = Swap(
        tuple(tables),
        HiddenModules(pairs.values()),
        tuple(biases - stored - model.all_tied_weights_keys.keys()),
        unexpected,
    )
    model._keys_to_ignore_on_load_unexpected = {*(unexpected or ()), *patterns(model, records)}
    return swap


def _opened(files: Sequence[str]) -> Directory:
    """Open some or all weight files of a folder as one checkpoint."""
    names = tuple(Path(name).name for name in files)
    return Directory.of_files(Path(files[0]).parent, ShardLayout(names))


def checksum(parts: Parts) -> int:
    """CRC-32 of the parts' names, dtypes, shapes and bytes, to see whether any of them has changed."""
    total = 0
    for suffix in sorted(parts):
        part = parts[suffix].detach().cpu().contiguous()
        total = zlib.crc32(f"{suffix} {part.dtype} {list(part.shape)}".encode(), total)
        total = zlib.crc32(part.view(-1).view(torch.uint8).numpy().data, total)
    return total


def _replacements(
    model: PreTrainedModel,
    table: StoredTable,
    names: Names,
    stored: Collection[str],
    apart: Collection[str],
    where: Path,
) -> dict[str, nn.Module]:
    """Make the modules that hold the parts, by the names of the modules they replace.

    Args:
        model: see :func:`begin_swap`.
        table: the table.
        names: the names and ties of the model.
        stored: the names in the model of what the files store in full.
        apart: those of the other tables.
        where: the files, for messages.

    Raises:
        UsageError: the table does not fit the model.
    """
    main, *ties = places_of(table.record, model, names.parameters, names.renamed, where)
    tied = names.with_ties([main, *ties], apart)
    for name in tied:
        if name == main or name not in stored:  # a tied weight that is stored in full keeps its own
            owner, _, leaf = name.rpartition(".")
            _stand_in(model.get_submodule(owner), leaf)
    new = replacements(model, main, table.contents, ties=tied, untie=stored, apart=apart)
    if isinstance(table.contents, int):
        pair = next(module for module in new.values() if isinstance(module, FactorizedEmbedding))
        pair.load_state_dict(dict(table.parts), strict=True)
    return new


def _stand_in(module: nn.Module, leaf: str) -> None:
    """Give a module on the meta device a blank weight on the CPU that takes no memory, and its scale.

    The modules that replace it are then made on the CPU, too.

    Raises:
        UsageError: the scale is not known.
    """
    old = module.get_parameter(leaf)
    blank = torch.zeros((1,) * old.dim(), dtype=old.dtype).expand(old.shape)
    module.register_parameter(leaf, nn.Parameter(blank, requires_grad=old.requires_grad))
    scale = getattr(module, "embed_scale", None)
    if isinstance(scale, Tensor) and scale.is_meta:
        value = getattr(module, "scalar_embed_scale", None)
        if not isinstance(value, int | float):
            raise UsageError(
                f"the scale of a {type(module).__name__} is unknown, as it has no scalar_embed_scale",
                remedy="run 'embcompress expand' and load the dense result",
            )
        module.register_buffer("embed_scale", torch.tensor(value, dtype=scale.dtype), persistent=False)


def _place(module: str, device_map: Mapping[str, object]) -> str:
    """The device that a device map gives a module, or else the nearest module around it; empty if none."""
    names = module.split(".")
    above = (".".join(names[:i]) for i in range(len(names), -1, -1))
    return str(next((device_map[name] for name in above if name in device_map), ""))


def _check_disk(tables: Sequence[SwappedTable], device_map: Mapping[str, object]) -> None:
    for owner in (owner for table in tables for owner in table.owners):
        if _place(owner, device_map) == "disk":
            raise UsageError(
                f"device_map puts {owner}, a compressed table, on disk", remedy="put it on the CPU or a GPU"
            )


def _check_places(tables: Sequence[SwappedTable], device_map: Mapping[str, object]) -> None:
    for table in tables:
        places = {owner: _place(owner, device_map) for owner in table.owners}
        if len({*places.values()}) > 1:
            raise UsageError(
                f"device_map puts modules that share {table.record.name} on several devices: {places}",
                remedy="put them on one",
            )
