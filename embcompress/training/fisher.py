"""The mean outer product of gradients of what a model is used for, with respect to its table's rows.

To second order, an error e of a looked-up row changes what the model says by e M eᵀ, with M the Fisher
information matrix of the row (Amari 1998, "Natural gradient works efficiently in learning"). For a
distribution that is twice the Kullback–Leibler divergence, for a sentence vector its squared distance, which
is twice one minus the cosine. M is estimated as Hutchinson (1990) estimates a trace: a random combination of
the outputs, whose weights have the covariance of the outputs' own information, has a gradient g with E[gᵀg] =
M.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from embcompress.data.encoded import sorted_batches
from embcompress.errors import UsageError
from embcompress.pretrained.library import running
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokens import Tokens
from embcompress.progress import Progress
from embcompress.tables import Table
from embcompress.training.devices import Runtime
from embcompress.training.likeness import most_tokens, sentence_vectors

_CLASSIFIER = "ForSequenceClassification"
"""Name ending of the architectures that score whole texts."""

_BATCH = 64
_SHARE = 4
"""Most texts computed together, and the share of the ids of a forward pass: gradients take more memory."""

_COMPARED = 64
"""Rows by which the table of a model is recognized."""


def check_looked_up(model: Pretrained, table: Table) -> None:
    """Refuse a table that is not the one in which a model looks its tokens up.

    Raises:
        UsageError: it is another one.
    """
    weight = model.model.get_input_embeddings().weight  # type: ignore[operator]
    rows, columns = table.rows.shape
    if tuple(weight.shape) == (rows, columns):
        stored = table.rows.read(0, min(_COMPARED, rows)).astype(np.float32)
        loaded = np.nan_to_num(weight[: len(stored)].numpy(force=True), nan=0.0, posinf=0.0, neginf=0.0)
        if np.array_equal(np.nan_to_num(stored, nan=0.0, posinf=0.0, neginf=0.0), loaded):
            return
    raise UsageError(
        f"{table.name}: is not the table in which {model.path} looks its tokens up",
        remedy="choose that one with --key, or leave out --metric",
    )


def outer_products(
    model: Pretrained, data: Tokens, runtime: Runtime, seed: int, progress: Progress
) -> NDArray[np.float64]:
    """Σ gᵀg over all tokens of all texts, for the gradient g (d) at the token's row.

    What the model is used for is the distribution of the next token for a causal language model, that of the
    labels for a sequence classifier, and the sentence vector, the normalized mean of the last hidden states,
    for all others. A head that is tied to the table adds what an error of its rows does: Σ ‖f‖² hᵀh for the
    hidden states h that meet it and the gradient f at its scores.

    Args:
        model: the model, whose parameters no longer require gradients afterwards.
        data: the texts.
        runtime: where to compute.
        seed: of the random combinations of outputs.
        progress: called as ``progress("metric", done, total)`` with numbers of texts.

    Returns:
        d×d; NaN or infinite if a gradient is.
    """
    model.model.requires_grad_(False)
    model.model.to(runtime.device)
    generator = torch.Generator().manual_seed(seed)
    columns, done = model.model.get_input_embeddings().embedding_dim, 0  # type: ignore[operator]
    total = np.zeros((columns, columns))
    for rows in sorted_batches(data.texts.lengths, _BATCH, max(most_tokens(model) // _SHARE, 1)):
        with running(model.path), _watched(model.model) as seen:
            score = _score(model, *data.tensors(rows, runtime.device), generator)
            places = (*seen.rows, *(scores for _, scores in seen.heads))
            found = torch.autograd.grad(score, places, materialize_grads=True)
        for gradient in found[: len(seen.rows)]:
            total += _gram(gradient)
        for (hidden, _), gradient in zip(seen.heads, found[len(seen.rows) :], strict=True):
            total += _gram(hidden.detach() * torch.linalg.vector_norm(gradient, dim=-1, keepdim=True))
        done += len(rows)
        progress("metric", done, len(data))
    return total


def _gram(vectors: Tensor) -> NDArray[np.float64]:
    """Σ gᵀg over the vectors (… × d): products in float32, their sum over batches in float64."""
    flat = vectors.reshape(-1, vectors.shape[-1]).float()
    return (flat.T @ flat).double().numpy(force=True)


@dataclass
class _Seen:
    """What passes through a model's table in a forward pass.

    Attributes:
        rows: looked-up rows (B×L×d), each a leaf of the graph.
        heads: hidden states (B×L×d) that meet the table as a head, and the scores that come of them.
    """

    rows: list[Tensor] = field(default_factory=list)
    heads: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@contextlib.contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    """Record looked-up rows and, where the head is tied to the table, what meets it."""
    seen = _Seen()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]

    def look_up(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        # Some models scale what they look up, and what counts are errors of the rows themselves.
        scale = getattr(module, "embed_scale", 1.0)
        seen.rows.append((output.detach() / scale).requires_grad_())
        return seen.rows[-1] * scale

    def meet(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.heads.append((args[0], output))

    hooks = [table.register_forward_hook(look_up)]
    if getattr(head, "weight", None) is table.weight:
        hooks.append(head.register_forward_hook(meet))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _score(model: Pretrained, ids: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """A random combination of what the model is used for, for a batch of texts (B×L)."""
    if type(model.model).__name__.endswith(_CLASSIFIER):
        return _informed(model.model(input_ids=ids, attention_mask=mask).logits, generator)
    outputs = model(ids, mask)
    if outputs.logits is not None:
        return _informed(outputs.logits[mask.bool()], generator)
    vectors = F.normalize(sentence_vectors(outputs.hidden.float(), mask), dim=1)
    return (vectors * _normal(vectors, generator)).sum()


def _informed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A combination of logits (N×C) whose weights have the covariance diag(p) − pᵀp, their information.

    A single logit is a regression's prediction, whose information is 1.
    """
    logits = logits.float()
    directions = _normal(logits, generator)
    if logits.shape[-1] > 1:
        shares = torch.softmax(logits.detach(), dim=-1)
        directions = directions * shares.sqrt()
        directions = directions - shares * directions.sum(dim=-1, keepdim=True)
    return (directions * logits).sum()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal numbers of the shape of ``like``, the same on every device."""
    return torch.randn(like.shape, generator=generator).to(like.device)
