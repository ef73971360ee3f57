"""Tables hidden from the loader of transformers.

While weights load, a model is on the meta device. The loader gives memory and initial values to every
tensor that the files do not hold under its name in the model, and replaces buffers that no file holds by
empty ones. A *hidden* module does not show its factors. Initialization and tying ask for its dense weight;
they get a tensor on the meta device, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.nn import FactorizedPair

_WEIGHT = "_weight_in_front"


class HiddenModules:
    """Hides factorized modules until it is lifted.

    Args:
        pairs: the modules, whose tensors are where they have values.
    """

    def __init__(self, pairs: Iterable[FactorizedPair]) -> None:
        self.pairs = tuple({id(pair): pair for pair in pairs}.values())
        modules = {id(module): module for pair in self.pairs for module in pair.modules()}
        self._buffers = [
            (module, name, module.get_buffer(name))
            for module in modules.values()
            for name in sorted(module._non_persistent_buffers_set)
            if module._buffers.get(name) is not None
        ]
        for module in modules.values():
            module._is_hf_initialized = True  # type: ignore[assignment]
        for pair in self.pairs:
            pair.__dict__[_WEIGHT] = _dense(pair)
            pair.__class__ = _hidden_class(type(pair))

    def reveal(self) -> None:
        """Make the modules what they were; buffers that were replaced get their values again."""
        for module, name, value in self._buffers:
            replaced = module.get_buffer(name)
            module.register_buffer(name, value.to(replaced.device), persistent=False)
        for pair in self.pairs:
            pair.__class__ = type(pair).__bases__[0]
            del pair.__dict__[_WEIGHT]


def float_type(pair: FactorizedPair) -> torch.dtype:
    """The type that a module computes in."""
    return next(t.dtype for t in (*pair.parameters(), *pair.buffers()) if t.is_floating_point())


def _dense(pair: FactorizedPair) -> Tensor:
    """A tensor like the dense table, without memory."""
    columns = pair.rank if pair.projection is None else pair.projection.out_features
    dense = torch.empty(pair.lookup.num_embeddings, columns, dtype=float_type(pair), device="meta")
    dense._is_hf_initialized = True  # type: ignore[attr-defined]
    return dense


def _hidden_class(kind: type[FactorizedPair]) -> type[FactorizedPair]:
    """A subclass that shows a bias at most."""

    def state_dict(
        self: nn.Module, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        destination = {} if destination is None else destination
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    weight = property(lambda self: self.__dict__[_WEIGHT])
    return type(kind.__name__, (kind,), {"weight": weight, "state_dict": state_dict})
