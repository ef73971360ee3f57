"""How transformers makes the weights of a model of those in its files, and the way back.

Classes rename weights (GPT-NeoX, LLaVA, Gemma 3), and hold in one tensor what files hold in many (the
experts of a mixture). What is what, transformers itself says; ``from_pretrained`` asks it the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from embcompress.checkpoint.description import TableRecord, part_name
from embcompress.errors import InputError, UsageError, reason_of
from embcompress.methods.modules import RIGHT


class Conversion:
    """The names and merged weights of a model, as it is when this is made: with dense tables.

    Args:
        model: a model of transformers; its tensors may be on the meta device.
        prefix: what stands before every name in the files.
    """

    def __init__(self, model: PreTrainedModel, prefix: str = "") -> None:
        found = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in found if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in found if isinstance(entry, WeightConverter)]
        self._by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        self._model, self._state, self._prefix = model, model.state_dict(), prefix

    def renamed(self, name: str) -> str:
        """The name in the model of a name in the files."""
        return self._place(name)[0]

    def merges(self, name: str) -> bool:
        """Whether what stands under ``name`` in the files becomes a part of something else."""
        return self._place(name)[1] is not None

    def _place(self, name: str) -> tuple[str, str | None]:
        """The name in the model, and the pattern of the converter that takes part in it."""
        name = name.removeprefix(self._prefix)
        base, state = self._model.base_model_prefix, self._state
        found = rename_source_key(name, self._renamings, self._converters, base, state)
        if found[0] not in state and name in state:
            found = rename_source_key(name, [], [], base, state)
        return found

    def converted(self, weights: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Weights by their names in the model; those that it does not have keep theirs.

        Args:
            weights: by their names in the files.
            where: the files, for messages.

        Raises:
            InputError: what is to become one tensor does not fit together.
        """
        found: dict[str, Any] = {}
        converters: dict[str, WeightConverter] = {}
        for name in sorted(weights, key=dot_natural_key):
            place, pattern = self._place(name)
            if place not in self._state:
                found[name] = weights[name]
            elif pattern is None:
                found[place] = weights[name]
            else:
                converter = converters.setdefault(place, deepcopy(self._by_pattern[pattern]))
                converter.add_tensor(place, name, pattern, weights[name])
        for place, converter in converters.items():
            try:
                made = converter.convert(place, model=self._model, config=self._model.config)
            except Exception as error:  # whatever its operations make of weights of other shapes
                raise InputError(
                    f"{where}: {place} cannot be made of its parts ({reason_of(error)})",
                    remedy="download or write the checkpoint again",
                ) from None
            found |= {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return found

    def stored(
        self,
        state: Mapping[str, Tensor],
        model: PreTrainedModel,
        names: Iterable[str],
        tables: Collection[TableRecord],
    ) -> dict[str, Tensor]:
        """Values of a loaded model by their names in its files; what has none there keeps its own.

        Args:
            state: state dict of ``model``, or a part of it.
            model: the loaded model, with compressed tables.
            names: all in the files.
            tables: the compressed ones.

        Raises:
            UsageError: transformers knows no way back for what it has merged.
        """
        parts = {
            part_name(name, suffix): part_name(self.renamed(name), suffix)
            for table in tables
            for name in (table.name, *table.ties)
            for suffix in dict.fromkeys((*table.parts, RIGHT))
        }
        places = {name: self._place(name) for name in names if name not in parts}
        plain = parts | {name: place for name, (place, pattern) in places.items() if pattern is None}
        found = {name: state[place] for name, place in plain.items() if place in state}
        merged = {
            place.replace(self._by_pattern[pattern].target_patterns[0], target)
            for place, pattern in places.values()
            if pattern is not None
            for target in self._by_pattern[pattern].target_patterns
        }
        if merged & state.keys():
            whole = {**model.state_dict(), **state}
            together = {name: whole[name].detach().cpu() for name in merged if name in whole}
            try:
                taken_apart = revert_weight_conversion(model, together)
            except Exception as error:  # an operation that has no way back, for one
                raise UsageError(
                    f"transformers cannot bring {min(together)} into the form of files ({reason_of(error)})",
                    remedy="train less: 'embcompress distil' has --train norms and --train factors",
                ) from error
            # Files of a body alone lack the prefix that the whole model has, and the other way round.
            base = f"{model.base_model_prefix}."
            spelled = {other: n for n in places for other in (n, base + n, n.removeprefix(base))}
            found |= {spelled.get(name, name): value for name, value in taken_apart.items()}
        return found | {n: v for n, v in state.items() if n not in merged and n not in {*plain.values()}}
