"""The model of a directory, opened with whatever weights it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import METADATA_KEY
from embcompress.integrations import registered
from embcompress.loading.fit import Misfit
from embcompress.pretrained.blueprint import Blueprint, blueprint
from embcompress.pretrained.library import OFFLINE, reading, running

State = dict[str, Tensor]
"""Tensors by name."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Endings of the names of architectures that predict the next token."""


@dataclass(frozen=True)
class Outputs:
    """What a model makes of some texts.

    Attributes:
        hidden: last hidden states (B×L×d).
        logits: scores of the next tokens (B×L×V), None where it predicts none.
    """

    hidden: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Pretrained:
    """The model of a directory, in float32 and in evaluation mode.

    Attributes:
        path: the directory.
        model: an instance of the architecture that config.json names.
        causal: whether it predicts the next token.
        vocabulary: rows of its table.
        stored_state: see :class:`Loaded`.
        size: bytes of these files.
        notes: what the user should know, one sentence each.
    """

    path: Path
    model: nn.Module
    causal: bool
    vocabulary: int
    stored_state: Callable[[State], State]
    size: int
    notes: tuple[str, ...]

    def __call__(self, tokens: Tensor, mask: Tensor) -> Outputs:
        """The outputs for token ids (B×L), of which the mask (B×L) says which are there."""
        given = {"input_ids": tokens, "attention_mask": mask}
        with running(self.path):
            if not self.causal:
                return Outputs(self.model.base_model(**given)[0], None)  # type: ignore[operator]
            found = self.model(**given, output_hidden_states=True, use_cache=False)
            return Outputs(found.hidden_states[-1], found.logits)


def open_pretrained(path: Path) -> Pretrained:
    """The model of a directory; see :class:`Pretrained`.

    Raises:
        UsageError, InputError: see :func:`blueprint` and :func:`loaded`.
    """
    plan = blueprint(path)
    opened = loaded(plan)
    causal = plan.kind.__name__.endswith(_CAUSAL)
    vocabulary = opened.model.get_input_embeddings().num_embeddings
    return Pretrained(path, opened.model, causal, vocabulary, opened.stored_state, plan.size, opened.notes)


@dataclass(frozen=True)
class Loaded:
    """A model with the weights of its directory, in float32 and in evaluation mode.

    Attributes:
        model: of transformers.
        stored_state: its state dict, or a part of it, by the names in the weight files. What has no name
            there keeps its own, unless it is never trained.
        notes: what the user should know, one sentence each.
    """

    model: Any
    stored_state: Callable[[State], State]
    notes: tuple[str, ...]


def loaded(plan: Blueprint) -> Loaded:
    """What ``from_pretrained`` makes of a directory, compressed or dense.

    Raises:
        UsageError: a weight of the model is missing, or of another shape.
        InputError: the directory cannot be read.
    """
    with open_checkpoint(plan.path) as checkpoint:
        checkpoint.check_integrity()
        names, files = frozenset(checkpoint.tensors), checkpoint.weight_files
    # These files, whatever they are called, and no others that config.json may name.
    plan.config.transformers_weights = (
        files[0].name if [f.suffix for f in files] == [".safetensors"] else None
    )
    description = plan.description
    tables = description.swapped if description else ()
    if description and tables:
        plan.config.quantization_config = {"quant_method": METADATA_KEY, **description.to_dict()}
    with reading(plan.path), registered():
        from embcompress.loading.conversion import Conversion

        model, found = plan.kind.from_pretrained(
            plan.path,
            config=plan.config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, in one line
            output_loading_info=True,
            **OFFLINE,
        )
        conversion = Conversion(plan.outline)
    misfit = Misfit(
        [f"{name} ({[*here]}, the model has {[*there]})" for name, here, there in found["mismatched_keys"]],
        sorted(found["missing_keys"]),
        sorted(found["unexpected_keys"]),
    )
    remedy = "its architecture must be the one that config.json names"
    replace(misfit, unknown=()).check(plan.path, strict=True, remedy=remedy)
    fixed = {n for n, value in model.state_dict(keep_vars=True).items() if not value.requires_grad} - names

    def stored_state(state: State) -> State:
        stored = conversion.stored(state, model, names, tables)
        return {name: value for name, value in stored.items() if name not in fixed}

    notes = (f"{plan.path}: {misfit.too_much}",) if misfit.unknown else ()
    return Loaded(model.eval(), stored_state, notes)
