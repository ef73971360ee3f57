"""Open the model of a directory with its weights, compressed or dense."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import METADATA_KEY
from embcompress.errors import UsageError
from embcompress.integrations import registered
from embcompress.loading.fit import Misfit
from embcompress.methods.decoding import check_stored
from embcompress.pretrained.blueprint import Blueprint, blueprint
from embcompress.pretrained.library import OFFLINE, reading, running

State = dict[str, Tensor]
"""Tensors by name."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Name endings of the architectures that predict the next token."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for a batch of texts.

    Attributes:
        hidden: last hidden states (B×L×d).
        logits: scores of the next tokens (B×L×V), None if the model predicts none.
    """

    hidden: Tensor
    logits: Tensor | None


class _Reached(BaseException):
    """A layer has computed its output, and what comes after it is not wanted; no error for anyone to catch.

    Args:
        state: the output.
    """

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


@dataclass(frozen=True)
class Pretrained:
    """The model of a directory, in float32 and in evaluation mode.

    Attributes:
        path: the directory.
        model: an instance of the class that config.json names.
        causal: whether the model predicts the next token.
        vocabulary: rows of its table, V.
        stored_state: see :class:`Loaded`.
        size: bytes of the weight files.
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
        """Run the model on token ids (B×L); the mask (B×L) is 1 for tokens and 0 for padding."""
        given = {"input_ids": tokens, "attention_mask": mask}
        with running(self.path):
            if not self.causal:
                return Outputs(self.model.base_model(**given)[0], None)  # type: ignore[operator]
            found = self.model(**given, output_hidden_states=True, use_cache=False)
            return Outputs(found.hidden_states[-1], found.logits)

    @functools.cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The layers from the first to the last; empty where they cannot be told from other modules."""
        config: Any = self.model.config
        count = getattr(config.get_text_config(), "num_hidden_layers", 0)
        lists = (part for part in self.model.modules() if isinstance(part, nn.ModuleList))
        return tuple(next((found for found in lists if len(found) == count), ()))

    def states_after(self, layer: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        """The hidden states (B×L×d) after one of the layers; those above it are not computed.

        Raises:
            UsageError: the model runs without calling this layer.
        """

        def reached(_module: nn.Module, _given: object, output: Any) -> None:
            raise _Reached(output if isinstance(output, Tensor) else output[0])

        hook = layer.register_forward_hook(reached)
        try:
            with running(self.path):
                self.model.base_model(input_ids=tokens, attention_mask=mask)  # type: ignore[operator]
        except _Reached as found:
            return found.state
        finally:
            hook.remove()
        raise UsageError(
            f"{self.path}: the model does not call its layers one by one", remedy="choose --train all"
        )


def open_pretrained(path: Path) -> Pretrained:
    """Open the model of a directory.

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
        model: the transformers model.
        stored_state: converts its state dict, or part of it, to the names in the weight files. A weight that
            has no name there keeps its own; one that is never trained is left out.
        notes: what the user should know, one sentence each.
    """

    model: Any
    stored_state: Callable[[State], State]
    notes: tuple[str, ...]


def loaded(plan: Blueprint) -> Loaded:
    """Load the model of a directory, compressed or dense, with ``from_pretrained``.

    Raises:
        UsageError: a weight of the model is missing or has another shape.
        InputError: the directory cannot be read.
    """
    with open_checkpoint(plan.path) as checkpoint:
        checkpoint.check_integrity()
        for record in plan.description.tables if plan.description else ():
            check_stored(checkpoint, record)  # transformers itself would load any numbers in a native form
        names, files = frozenset(checkpoint.tensors), checkpoint.weight_files
    # Load these files, whatever they are called, and no others that config.json may name.
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
            plan.folder,
            config=plan.config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, in one line
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
