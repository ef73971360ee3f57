"""How the names in a checkpoint map to those in a model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Protocol

from torch import nn

from embcompress.loading.stored_tables import Stored


class Naming(Protocol):
    """How the names in a file map to the names in a model."""

    def renamed(self, name: str) -> str:
        """The name in the model for a name in the file."""

    def merges(self, name: str) -> bool:
        """Whether the weight called ``name`` in the file is merged with others into one of the model's."""

    def converted(self, weights: Mapping[str, Any], where: object) -> dict[str, Any]:
        """The weights of a file, by their names in the model."""


@dataclass(frozen=True)
class _Renaming:
    """One function renames every name; no weights are merged."""

    renamed: Callable[[str], str]

    def merges(self, name: str) -> bool:  # noqa: ARG002
        return False

    def converted(self, weights: Mapping[str, Any], where: object) -> dict[str, Any]:  # noqa: ARG002
        return {self.renamed(name): value for name, value in weights.items()}


def naming_for(stored: Stored, model: nn.Module) -> Naming:
    """Find how the names in the file map to those in the model.

    Names may be the same, have a prefix on one side only, or be renamed by transformers. A transformers
    model keeps its body under ``base_model_prefix``, and the body alone has no such prefix; data
    parallelism, compilation and trainers add a prefix of their own to all names. The first mapping that
    gives every name in the file one in the model is taken. The file may hold more than the model, so
    without such a mapping it is the first that finds every table.
    """
    tables = [table.record.name for table in stored.tables]
    if not tables:
        return _Renaming(str)
    above = tables[0].split(".")[:-2]  # the modules around the one that holds the table
    prefixes = [".".join((*above[: i + 1], "")) for i in range(len(above))]
    base = getattr(model, "base_model_prefix", "")
    plain: list[Naming] = [
        _Renaming(str),
        *([_Renaming(f"{base}.".__add__)] if base else []),
        *(_Renaming(methodcaller("removeprefix", prefix)) for prefix in prefixes),
    ]
    everything = {*stored.others, *tables}
    in_model = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    in_model |= {name for name, _ in model.named_buffers()}
    if stored.others:  # the state dict of layers that are quantized may take work, and change them
        in_model |= model.state_dict().keys()

    def fits(naming: Naming, names: Collection[str]) -> bool:
        return in_model >= {*map(naming.renamed, names)} and _keeps_distinct(naming, everything)

    if found := next((naming for naming in plain if fits(naming, everything)), None):
        return found
    theirs = [*_transformers_namings(model, ["", *prefixes])]
    tried = [(naming, everything) for naming in theirs]
    tried += [(naming, {*tables}) for naming in (*theirs, *plain)]
    return next((naming for naming, names in tried if fits(naming, names)), plain[0])


def _keeps_distinct(naming: Naming, names: Collection[str]) -> bool:
    """Whether names stay distinct, except those whose weights are merged."""
    kept = [naming.renamed(name) for name in names if not naming.merges(name)]
    return len({*kept}) == len(kept)


def _transformers_namings(model: nn.Module, prefixes: Collection[str]) -> Iterator[Naming]:
    """What ``from_pretrained`` of a transformers model does to names, after each prefix is removed."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return
    with contextlib.suppress(ImportError):  # other versions rename nothing, or do it elsewhere
        from embcompress.loading.conversion import Conversion

        for prefix in prefixes:
            yield Conversion(model, prefix)
