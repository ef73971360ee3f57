"""The registry of optimizers: PyTorch's own, each in the fastest form that always works."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from embcompress.errors import UsageError, check_choice


@dataclass(frozen=True)
class OptimizerEntry:
    """A registry entry: an optimizer of PyTorch and its defaults.

    Attributes:
        name: registry name.
        learning_rate: default learning rate.
        description: one line for help texts.
        make: the class.
        arguments: what it is called with besides the rate and the weight decay.
        fused_on: device types on which its fused kernel is used.
    """

    name: str
    learning_rate: float
    description: str
    make: Callable[..., Optimizer]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fused_on: frozenset[str] = frozenset()

    def build(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
    ) -> Optimizer:
        """Make an optimizer of ``parameters``, which must already be on the device they are trained on.

        Gradients must be dense: fused kernels do not support those of ``nn.Embedding(sparse=True)``.

        Args:
            parameters: parameters to train.
            learning_rate: learning rate, which a schedule may change.
            weight_decay: L2 penalty, added to the gradients as weight_decay·w; for adamw, decoupled from
                them. 0 for none.

        Raises:
            UsageError: a number is outside its range.
        """
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise UsageError(f"learning rate {learning_rate}", remedy="choose a finite number above 0")
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise UsageError(f"weight decay {weight_decay}", remedy="choose a finite number of at least 0")
        trained = list(parameters)
        arguments = dict(self.arguments)
        if all(p.device.type in self.fused_on and p.is_floating_point() for p in trained):
            arguments["fused"] = True
        return self.make(trained, lr=learning_rate, weight_decay=weight_decay, **arguments)


# Milliseconds for a step of a 15,000×300 table on one CPU core with PyTorch 2.13:
#              for-loop  foreach  fused
#     sgd           1.8      1.7    1.3   not used: fails if a parameter gets its first gradient late
#     adam, adamw  7–21      6.6    2.1
#     adagrad       4.1      5.2    1.3
#     rmsprop       4.7      4.9    none
#     adadelta    10–23    10–15    none
# The for-loop is PyTorch's default on CPU, foreach on CUDA. Fused steps use the same formulas, rounded
# in another order.
_EVERYWHERE = frozenset({"cpu", "cuda", "mps"})

OPTIMIZERS: Mapping[str, OptimizerEntry] = {
    entry.name: entry
    for entry in (
        OptimizerEntry("sgd", 0.1, "stochastic gradient descent with momentum 0.9", SGD, {"momentum": 0.9}),
        OptimizerEntry("adam", 1e-3, "Adam (Kingma & Ba 2015)", Adam, fused_on=_EVERYWHERE),
        OptimizerEntry(
            "adamw",
            1e-3,
            "Adam with decoupled weight decay (Loshchilov & Hutter 2019)",
            AdamW,
            {},
            _EVERYWHERE,
        ),
        OptimizerEntry("rmsprop", 1e-3, "RMSprop (Tieleman & Hinton 2012)", RMSprop),
        # There is no kernel on MPS, and the one on CUDA varies in speed (pytorch/pytorch#153038).
        OptimizerEntry("adagrad", 1e-2, "Adagrad (Duchi et al. 2011)", Adagrad, fused_on=frozenset({"cpu"})),
        OptimizerEntry("adadelta", 1.0, "Adadelta (Zeiler 2012)", Adadelta),
    )
}
"""Every optimizer by name, as ``choices.OPTIMIZERS`` lists them; contract tests run over it."""


def optimizer_for(name: str) -> OptimizerEntry:
    """The optimizer registered under ``name``.

    Raises:
        UsageError: there is no such optimizer.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]
