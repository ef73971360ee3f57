"""The model of a directory, opened with whatever weights it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from embcompress.errors import UsageError
from embcompress.loading.load import fill
from embcompress.pretrained.blueprint import blueprint
from embcompress.pretrained.library import OFFLINE, reading, running

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
        renamed: the name in the model of a name in the directory's weight files.
        size: bytes of these files.
        notes: what the user should know, one sentence each.
    """

    path: Path
    model: nn.Module
    causal: bool
    vocabulary: int
    renamed: Callable[[str], str]
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
        UsageError, InputError: see :func:`blueprint`; or a weight is missing, or cannot be read.
    """
    plan = blueprint(path)
    renamed: Callable[[str], str] = str
    notes: tuple[str, ...] = ()
    with reading(path):
        if plan.description and plan.description.swapped:
            model = plan.build()
            renamed, notes = filled(model, path)
        else:
            model = plan.kind.from_pretrained(path, config=plan.config, dtype=torch.float32, **OFFLINE)
        model.eval()
    causal = plan.kind.__name__.endswith(_CAUSAL)
    vocabulary = model.get_input_embeddings().num_embeddings
    return Pretrained(path, model, causal, vocabulary, renamed, plan.size, notes)


def filled(model: nn.Module, path: Path) -> tuple[Callable[[str], str], tuple[str, ...]]:
    """Load a compressed directory; tensors that the architecture has no use for are passed over with a note.

    Raises:
        UsageError: a weight of the model is missing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renamed = fill(model, path, strict=False)
    notes = tuple(str(warning.message) for warning in caught)
    if lacking := [note for note in notes if "missing from the file" in note]:
        raise UsageError(lacking[0], remedy="its architecture must be the one that config.json names")
    return renamed, notes
