"""How closely a compressed model matches its original: hidden states, sentence vectors, perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embcompress.data.encoded import Ids, sorted_batches
from embcompress.errors import UsageError
from embcompress.pretrained.models import Outputs, Pretrained
from embcompress.pretrained.tokens import Tokens
from embcompress.progress import Progress, silent
from embcompress.training.devices import Runtime
from embcompress.training.recovery import Likeness

NEAREST = 5
"""Nearest neighbours compared for each text."""

MOST_NEIGHBOURS = 20_000
"""Most texts among which neighbours are sought; the number of pairs is their square."""

_BATCH = 64
_TOKENS = 1 << 14
_LOGITS = 1 << 26
"""Limits for what is computed together: texts, token ids, and token scores (256 MB in float32)."""

_BLOCK = 1024


def most_tokens(model: Pretrained) -> int:
    """Most token ids, padding included, that ``model`` may read together so that memory is bounded."""
    return min(_TOKENS, max(_LOGITS // model.vocabulary, 1)) if model.causal else _TOKENS


def check_alike(student: Pretrained, teacher: Pretrained) -> None:
    """Refuse two models whose outputs cannot be compared.

    Raises:
        UsageError: with what differs.
    """
    for what, mine, theirs in (
        ("rows in the table", student.vocabulary, teacher.vocabulary),
        ("hidden size", _width(student), _width(teacher)),
        ("predicts tokens", student.causal, teacher.causal),
    ):
        if mine != theirs:
            raise UsageError(
                f"{student.path}: {what} {mine}, the teacher {teacher.path} {theirs}",
                remedy="give the model that it was made from",
            )


def _width(model: Pretrained) -> int | None:
    return getattr(model.model.config, "hidden_size", None)


@dataclass(frozen=True)
class Differences:
    """Sums over some texts, from which losses and means are computed.

    Attributes:
        squares: squared distance of hidden states, over all tokens and components.
        cosines: cosines of sentence vectors (texts).
        divergence: Kullback–Leibler divergence of the predicted tokens; None if the models predict none.
    """

    squares: Tensor
    cosines: Tensor
    divergence: Tensor | None


def differences(student: Outputs, teacher: Outputs, mask: Tensor) -> Differences:
    """Differences between student and teacher, on the tokens where the mask (B×L) is 1."""
    inside = mask.bool()
    mine, theirs = student.hidden.float(), teacher.hidden.float()
    squares = (mine - theirs)[inside].square().sum()
    cosines = F.cosine_similarity(sentence_vectors(mine, mask), sentence_vectors(theirs, mask), dim=1)
    if student.logits is None or teacher.logits is None:
        return Differences(squares, cosines, None)
    predicted = _predicting(mask)
    divergence = F.kl_div(
        F.log_softmax(student.logits[predicted].float(), dim=-1),
        F.log_softmax(teacher.logits[predicted].float(), dim=-1),
        reduction="sum",
        log_target=True,
    )
    return Differences(squares, cosines, divergence)


def state_errors(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of each token's normalized states (N), for the tokens where the mask is 1.

    States (B×L×d) between layers may have components far larger than others, and tokens far longer ones;
    to mean 0 and variance 1 in each token, none drowns the others.
    """
    inside = mask.bool()
    mine, theirs = (F.layer_norm(each[inside].float(), each.shape[-1:]) for each in (student, teacher))
    return (mine - theirs).square().mean(dim=1)


def sentence_vectors(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states (B×L×d) of each text over its tokens, without padding (B×d)."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _predicting(mask: Tensor) -> Tensor:
    """Positions (B×L) that are followed by a token, as booleans."""
    return F.pad(mask[:, 1:], (0, 1)).bool()


@dataclass(frozen=True)
class Measured:
    """The result of :func:`measure`.

    Attributes:
        likeness: comparison of the two models.
        variance: variance of a token's hidden state in the teacher, summed over components.
    """

    likeness: Likeness
    variance: float


@torch.no_grad()
def measure(
    student: Pretrained,
    teacher: Pretrained,
    data: Tokens,
    runtime: Runtime,
    progress: Progress = silent,
) -> Measured:
    """Compare two models on texts; both must be on the runtime's device.

    They run in their own precision, so that the result does not depend on how they were trained.

    Args:
        student: the compressed model.
        teacher: the original.
        data: the texts.
        runtime: device of the models.
        progress: called as ``progress("compare", done, total)`` with numbers of texts.
    """
    batches = sorted_batches(data.texts.lengths, _BATCH, most_tokens(student))
    squares = cosine = divergence = 0.0
    tokens = predicted = done = 0
    losses = np.zeros(2)
    sums: list[Tensor] = []  # per batch, the sums of hidden states and of their squares
    vectors: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows in batches:
        ids, mask = data.tensors(rows, runtime.device)
        pair = student(ids, mask), teacher(ids, mask)
        found = differences(*pair, mask)
        squares += float(found.squares)
        cosine += float(found.cosines.sum())
        tokens += int(mask.sum())
        hidden = pair[1].hidden[mask.bool()].double()
        sums.append(torch.stack([hidden.sum(dim=0), hidden.square().sum(dim=0)]).cpu())
        for outputs, place in zip(pair, vectors, strict=True):
            place.append(sentence_vectors(outputs.hidden.float(), mask).cpu())
        if found.divergence is not None:
            divergence += float(found.divergence)
            predicted += int(mask[:, 1:].sum())
            losses += [_next_token_loss(outputs, ids, mask) for outputs in pair]
        done += len(rows)
        progress("compare", done, len(data))
    first, second = torch.stack(sums).sum(dim=0) / tokens
    variance = max(float((second - first.square()).sum()), 1e-30)
    order = np.argsort(np.concatenate(batches))
    mine, theirs = (torch.cat(place)[order] for place in vectors)
    perplexities = [math.exp(min(loss / predicted, 700.0)) for loss in losses] if predicted else [None, None]
    likeness = Likeness(
        texts=len(data),
        error=squares / tokens / variance,
        cosine=cosine / len(data),
        neighbours=neighbours_kept(mine, theirs),
        teacher_perplexity=perplexities[1],
        perplexity=perplexities[0],
        divergence=divergence / predicted if predicted else None,
    )
    return Measured(likeness, variance)


def _next_token_loss(outputs: Outputs, ids: Tensor, mask: Tensor) -> float:
    """Summed cross-entropy of all tokens that follow another."""
    assert outputs.logits is not None
    predicted = _predicting(mask)
    return float(
        F.cross_entropy(outputs.logits[predicted].float(), ids[:, 1:][mask[:, 1:].bool()], reduction="sum")
    )


def neighbours_kept(mine: Tensor, theirs: Tensor, nearest: int = NEAREST) -> float:
    """Fraction of each row's nearest other rows, by cosine, that are the same in both matrices (N×d each).

    Only the first ``MOST_NEIGHBOURS`` rows are compared.
    """
    pair = [F.normalize(rows[:MOST_NEIGHBOURS], dim=1) for rows in (mine, theirs)]
    count = len(pair[0])
    nearest = min(nearest, count - 1)
    if nearest < 1:
        return 1.0
    same = 0
    for start in range(0, count, _BLOCK):
        sets = [_nearest(rows, start, min(start + _BLOCK, count), nearest) for rows in pair]
        same += int((sets[0][:, :, None] == sets[1][:, None, :]).sum())
    return same / (count * nearest)


def _nearest(rows: Tensor, start: int, stop: int, nearest: int) -> Tensor:
    """Indices of the rows nearest to rows ``start:stop``, themselves excluded (n×nearest)."""
    cosines = rows[start:stop] @ rows.T
    cosines[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
    return cosines.topk(nearest, dim=1).indices


def batches_within(rows: Ids, lengths: Ids, most: int) -> list[Ids]:
    """``rows`` in parts of at most ``most`` ids, padding included, so that a step's memory is bounded."""
    return [rows[part] for part in sorted_batches(lengths[rows], len(rows), most)]
