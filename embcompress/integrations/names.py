"""Names of parameters: in weight files, in a transformers model, and in its ties."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.loading.conversion import Conversion

Ties = dict[str, str]
"""Name of a tied parameter -> name of the parameter that it is tied to."""


@dataclass(frozen=True)
class Names:
    """The parameter names and ties of a dense model.

    Attributes:
        parameters: every parameter by name; a shared one is there under each of its names.
        ties: the ties that the loader will make.
        submodels: the ties that each submodel declares, by its name; the model itself is ``""``.
        renamed: maps a name in the files to a name in the model, as the loader does.
    """

    parameters: Mapping[str, nn.Parameter]
    ties: Ties
    submodels: Mapping[str, Ties]
    renamed: Callable[[str], str]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Names:
        """Collect the names and ties of a model."""
        return cls(
            dict(model.named_parameters(remove_duplicate=False)),
            dict(model.all_tied_weights_keys),
            {
                name: module.get_expanded_tied_weights_keys(all_submodels=False)
                for name, module in model.named_modules()
                if isinstance(module, PreTrainedModel)
            },
            Conversion(model).renamed,
        )

    def with_ties(self, names: Collection[str], apart: Collection[str] = ()) -> list[str]:
        """The given names, and every name that the model ties to one of them, except those in ``apart``."""
        found = dict.fromkeys(names)
        pairs = [*self.ties.items(), *((source, target) for target, source in self.ties.items())]
        while more := [other for name, other in pairs if name in found and other not in {*found, *apart}]:
            found |= dict.fromkeys(more)
        return [name for name in found if name in self.parameters]

    def forget_ties(self, model: PreTrainedModel, swapped: Collection[str]) -> None:
        """Remove the ties of the swapped parameters, for the loader and for ``tie_weights`` later."""
        for prefix, ties in self.submodels.items():
            submodel = cast(PreTrainedModel, model.get_submodule(prefix))
            within = {name.removeprefix(f"{prefix}.") for name in swapped if name.startswith(prefix)}
            kept = _without(ties, within)
            if kept != ties:
                submodel._tied_weights_keys = kept
            submodel.all_tied_weights_keys = _without(submodel.all_tied_weights_keys, within)


def _without(ties: Ties, names: Collection[str]) -> Ties:
    return {target: source for target, source in ties.items() if target not in names and source not in names}


def patterns(model: PreTrainedModel, records: Sequence[TableRecord]) -> set[str]:
    """Regular expressions for the names of these tables and their parts, in the files and in ``model``."""
    names = {
        name
        for record in records
        for table in (record.name, *record.ties)
        for name in (table, *(part_name(table, suffix) for suffix in record.parts))
    }
    return {f"^{re.escape(name)}$" for name in names | {*map(Conversion(model).renamed, names)}}
