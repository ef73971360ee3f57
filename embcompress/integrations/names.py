"""Names of parameters: in weight files, in a transformers model, and in the ties between them."""

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
"""The name of a parameter -> that of the one that it is tied to."""


@dataclass(frozen=True)
class Names:
    """Names of a dense model.

    Attributes:
        parameters: all, also several of one.
        ties: those that the loader will make.
        submodels: the ties that each part of the model would make when asked; the model itself is ``""``.
        renamed: how a name in the files becomes one in the model, as the loader does it.
    """

    parameters: Mapping[str, nn.Parameter]
    ties: Ties
    submodels: Mapping[str, Ties]
    renamed: Callable[[str], str]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Names:
        """Those of a model."""
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

    def kin(self, names: Collection[str]) -> list[str]:
        """These names, and all that the model ties to them."""
        found = dict.fromkeys(names)
        pairs = [*self.ties.items(), *((source, target) for target, source in self.ties.items())]
        while more := [other for name, other in pairs if name in found and other not in found]:
            found |= dict.fromkeys(more)
        return [name for name in found if name in self.parameters]

    def forget_ties(self, model: PreTrainedModel, swapped: Collection[str]) -> None:
        """Let ``model`` tie none of the swapped parameters, neither now nor when it is asked again."""
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
    """What matches the names of all that is stored for these tables, as the loader of ``model`` sees them."""
    names = {
        name
        for record in records
        for table in (record.name, *record.ties)
        for name in (table, *(part_name(table, suffix) for suffix in record.parts))
    }
    return {f"^{re.escape(name)}$" for name in names | {*map(Conversion(model).renamed, names)}}
