"""The mean outer product of gradients of what a model is used for, with respect to its table's rows.

To second order, an error e of a looked-up row changes what the model says by e M eᵀ, with M the Fisher
information matrix of the row (Amari 1998, "Natural gradient works efficiently in learning"). For a
distribution that is twice the Kullback–Leibler divergence, for a sentence vector its squared distance, which
is twice one minus the cosine. M is estimated as Hutchinson (1990) estimates a trace: a random combination of
the outputs, whose weights have the covariance of their information, has a gradient g with E[gᵀg] = M.
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

from embcompress.checkpoint.directory.modules import reads_first_token
from embcompress.data.encoded import sorted_batches
from embcompress.errors import UsageError
from embcompress.pretrained.library import running
from embcompress.pretrained.models import Pretrained
from embcompress.pretrained.tokens import Tokens
from embcompress.progress import Progress
from embcompress.tables import Table
from embcompress.training.devices import Runtime
from embcompress.training.likeness import most_tokens, sentence_vectors
from embcompress.training.sensitivity import gram_of

_CLASSIFIER = "ForSequenceClassification"
"""Name ending of the architectures that score whole texts."""

_BATCH, _TOKENS, _LOGITS = 64, 1024, 4
"""Limits for what is computed together, as gradients take more memory than outputs: texts, token ids, and the
share of the ids of a forward pass where each has scores of all tokens."""

DRAWS = 4
"""Random combinations of the outputs for each text. With one alone, all-MiniLM-L6-v2 with ``pq`` at 0.95 kept
a hundredth fewer of its neighbours."""

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
    labels for a sequence classifier, and for all others the sentence vector, normalized: the mean of the last
    hidden states, or the first one if the model is pooled so. A head that is tied to the table adds what an
    error of its rows does: Σ ‖f‖² hᵀh for the hidden states h that meet it and the gradient f at its scores.

    Args:
        model: the model, whose parameters no longer require gradients afterwards.
        data: the texts.
        runtime: where to compute.
        seed: of the random combinations of outputs.
        progress: called as ``progress("metric", done, total)`` with numbers of texts.

    Returns:
        d×d; NaN or infinite if a gradient is.

    Raises:
        UsageError: the model does not look its tokens up in an ``nn.Embedding``.
        InputError: the model does not run.
    """
    model.model.requires_grad_(False)
    model.model.to(runtime.device)
    generator = torch.Generator().manual_seed(seed)
    columns, done = model.model.get_input_embeddings().embedding_dim, 0  # type: ignore[operator]
    total = np.zeros((columns, columns))
    first = reads_first_token(model.path)
    most = max(min(_TOKENS, most_tokens(model) // _LOGITS), 1)
    for rows in sorted_batches(data.texts.lengths, _BATCH, most):
        with running(model.path), _watched(model.model) as seen:
            used = _used(model, *data.tensors(rows, runtime.device), first=first)
            if not seen.rows:
                raise UsageError(
                    f"{model.path}: a {type(model.model).__name__} does not look its tokens up in a module",
                    remedy="leave out --metric",
                )
            for draw in range(DRAWS):
                total += _products(seen, used.combined(generator), keep=draw < DRAWS - 1)
        done += len(rows)
        progress("metric", done, len(data))
    return total / DRAWS


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
    """Record what is looked up in a model's table, and what meets it where a head is tied to it."""
    seen = _Seen()
    weight = model.get_input_embeddings().weight  # type: ignore[operator]

    def look_up(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        # Some models scale what they look up, and what counts are errors of the rows themselves.
        scale = getattr(module, "embed_scale", 1.0)
        seen.rows.append((output.detach() / scale).requires_grad_())
        return seen.rows[-1] * scale

    def meet(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.heads.append((args[0], output))

    hooks = []
    for module in model.modules():
        if getattr(module, "weight", None) is weight:
            hooks.append(module.register_forward_hook(meet if isinstance(module, nn.Linear) else look_up))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Used:
    """What a model is used for.

    Attributes:
        outputs: sentence vectors, or the logits of labels or tokens (N×C).
        is_distribution: whether they are logits.
    """

    outputs: Tensor
    is_distribution: bool

    def combined(self, generator: torch.Generator) -> Tensor:
        """A random combination of the outputs, whose weights have the covariance of their information.

        That is the identity for a vector, and diag(p) − pᵀp for the logits of probabilities p.
        """
        # Drawn on the CPU, so that they are the same on every device.
        weights = torch.randn(self.outputs.shape, generator=generator).to(self.outputs.device)
        if self.is_distribution:
            shares = torch.softmax(self.outputs.detach(), dim=-1)
            weights = weights * shares.sqrt()
            weights = weights - shares * weights.sum(dim=-1, keepdim=True)
        return (weights * self.outputs).sum()


def _used(model: Pretrained, ids: Tensor, mask: Tensor, *, first: bool) -> _Used:
    """What the model is used for, for a batch of texts (B×L).

    ``first`` says whether a text's vector is the hidden state of its first token.
    """
    if type(model.model).__name__.endswith(_CLASSIFIER):
        logits = model.model(input_ids=ids, attention_mask=mask).logits.float()
        return _Used(logits, is_distribution=logits.shape[-1] > 1)  # a single one is a prediction itself
    outputs = model(ids, mask)
    if outputs.logits is not None:
        return _Used(outputs.logits[mask.bool()].float(), is_distribution=True)
    hidden = outputs.hidden.float()
    vectors = hidden[:, 0] if first else sentence_vectors(hidden, mask)
    return _Used(F.normalize(vectors, dim=1), is_distribution=False)


def _products(seen: _Seen, score: Tensor, *, keep: bool) -> NDArray[np.float64]:
    """Σ gᵀg for the gradients of ``score`` at what a forward pass has seen; ``keep`` its graph for more."""
    places = (*seen.rows, *(scores for _, scores in seen.heads))
    found = torch.autograd.grad(score, places, retain_graph=keep, materialize_grads=True)
    vectors = [*found[: len(seen.rows)]]
    for (hidden, _), gradient in zip(seen.heads, found[len(seen.rows) :], strict=True):
        vectors.append(hidden.detach() * torch.linalg.vector_norm(gradient, dim=-1, keepdim=True))
    total = gram_of(vectors[0])
    for each in vectors[1:]:
        total += gram_of(each)
    return total
