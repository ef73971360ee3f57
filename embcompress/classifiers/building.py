"""Build a classifier from its record: a built-in one by name, a user's own through a function they name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from embcompress.classifiers import classifier_for
from embcompress.classifiers.base import MODULE, Architecture
from embcompress.classifiers.record import ClassifierRecord
from embcompress.data.tokenizing import UNKNOWN
from embcompress.data.vectors import WordVectors
from embcompress.errors import UsageError
from embcompress.nn import FactorizedEmbedding

_START = 0.01
"""Standard deviation of the initial rows that have no pretrained vector. torch's default of 1 would drown
what training adds: the table would remain noise, and noise has no low rank."""


def build(record: ClassifierRecord, *, factory: str | None = None) -> nn.Module:
    """Build the module that a record describes, with fresh weights.

    Args:
        record: what to build.
        factory: ``package.module:function`` of the user's own module. It is called as
            ``function(tokens=V, labels=C, padding=id)`` and its result as ``module(tokens, lengths)``, see
            ``Classifier.forward``. Only a factory that the user names is imported; the one in a
            checkpoint is compared with it and never run.

    Raises:
        UsageError: the factory is missing, differs from the record's, or makes an unsuitable module.
    """
    architecture = record.architecture
    if architecture.name != MODULE and factory is not None:
        raise UsageError(
            f"--model {factory}: the checkpoint is a built-in {architecture.name}",
            remedy="leave out --model",
        )
    sizes = {
        "tokens": len(record.tokenizer.vocabulary),
        "labels": len(record.labels),
        "padding": record.tokenizer.padding,
    }
    if architecture.name != MODULE:
        return classifier_for(architecture.name).build(architecture, **sizes)
    if factory != architecture.factory:
        raise UsageError(
            f"--model {factory}: the checkpoint was made with {architecture.factory}"
            if factory
            else f"the checkpoint holds a module of your own, made by {architecture.factory}",
            remedy=f"if you trust that code, pass --model {architecture.factory}",
        )
    return own_module(factory, **sizes)


def own_module(factory: str, *, tokens: int, labels: int, padding: int) -> nn.Module:
    """Call the user's function and check the module it makes; see :func:`build`.

    Raises:
        UsageError: it cannot be imported or called, or does not make a module with an embedding of
            ``tokens`` rows.
    """
    function = _imported(factory)
    sizes = {"tokens": tokens, "labels": labels, "padding": padding}
    try:
        inspect.signature(function).bind(**sizes)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--model {factory}: {error}", remedy="it is called with tokens=, labels= and padding="
        ) from None
    with _user_code(factory):
        module = function(**sizes)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--model {factory}: made a {type(module).__name__}", remedy="it must return an nn.Module"
        )
    module = module.float()
    token_embedding(module, tokens, factory)
    if any(getattr(part, "sparse", False) for part in module.modules()):
        raise UsageError(f"--model {factory}: has an embedding with sparse=True", remedy="leave it dense")
    _check_scores(module, factory, labels)
    return module


@contextlib.contextmanager
def _user_code(factory: str) -> Iterator[None]:
    """Turn any exception in the user's own code into an error that names its option."""
    try:
        yield
    except Exception as error:
        raise UsageError(
            f"--model {factory}: {type(error).__name__}: {error}", remedy="run it alone to see where"
        ) from error


@torch.no_grad()
def _check_scores(module: nn.Module, factory: str, labels: int) -> None:
    """Refuse a module whose scores have the wrong shape, before it is trained for hours."""
    was_training = module.training
    tokens = torch.ones(2, 3, dtype=torch.int64)
    with _user_code(factory):
        shape = tuple(module.eval()(tokens, torch.tensor([3, 3])).shape)
    module.train(was_training)
    if shape != (2, labels):
        raise UsageError(
            f"--model {factory}: scores of shape {list(shape)} for 2 texts and {labels} labels",
            remedy=f"forward(tokens, lengths) must return [2, {labels}]",
        )


def token_embedding(
    module: nn.Module, tokens: int, what: str = ""
) -> nn.Embedding | nn.EmbeddingBag | FactorizedEmbedding:
    """The first embedding in ``module`` with ``tokens`` rows.

    Raises:
        UsageError: there is none.
    """
    kinds = (FactorizedEmbedding, nn.Embedding, nn.EmbeddingBag)
    for part in module.modules():
        if isinstance(part, kinds) and part.num_embeddings == tokens:
            return part
    raise UsageError(
        f"{what or type(module).__name__}: has no nn.Embedding with {tokens:,} rows, one per token",
        remedy="make it with as many rows as the argument tokens= says",
    )


@torch.no_grad()
def start_table(module: nn.Module, record: ClassifierRecord, vectors: WordVectors | None) -> int:
    """Fill a fresh table with pretrained vectors, and with small noise where there are none.

    The rows of padding and of unknown tokens are zero. A user's own module keeps its own initial values
    where there is no vector.

    Returns:
        Number of rows that pretrained vectors fill.

    Raises:
        UsageError: the vectors have another width, or the table is not a single matrix.
    """
    vocabulary = record.tokenizer.vocabulary
    embedding = token_embedding(module, len(vocabulary))
    weight = embedding.weight
    if record.architecture.name != MODULE:
        nn.init.normal_(weight, std=_START)
        weight[record.tokenizer.padding] = 0
        if UNKNOWN in vocabulary:  # training texts never contain it, so its row would remain noise
            weight[vocabulary.index(UNKNOWN)] = 0
    if vectors is None:
        return 0
    if isinstance(embedding, FactorizedEmbedding):
        raise UsageError("a table of factors takes no vectors", remedy="leave out --vectors")
    if vectors.matrix.shape[1] != weight.shape[1]:
        raise UsageError(
            f"vectors of {vectors.matrix.shape[1]} dimensions for an embedding of {weight.shape[1]}",
            remedy=f"use --dimension {vectors.matrix.shape[1]}, or leave it out",
        )
    row_of = {token: row for row, token in enumerate(vectors.tokens)}
    found = [
        (i, row_of[t]) for i, t in enumerate(vocabulary) if t in row_of and i != record.tokenizer.padding
    ]
    places, rows = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T
    weight[places] = torch.from_numpy(vectors.matrix)[rows].to(weight.dtype)
    return len(found)


def own_architecture(factory: str, module: nn.Module, tokens: int) -> Architecture:
    """The architecture of a user's own module, of which only the factory and the width are recorded."""
    return Architecture(MODULE, token_embedding(module, tokens).embedding_dim, (), 0.0, factory=factory)


def _imported(factory: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; the working directory is searched as well."""
    name, _, attribute = factory.partition(":")
    remedy = "write package.module:function, importable from here"
    if not name or not attribute:
        raise UsageError(f"--model {factory}: names no function", remedy=remedy)
    here = os.getcwd()
    sys.path.insert(0, here)  # for this import only: files here must not shadow packages later
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"--model {factory}: {error}", remedy=remedy) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"--model {factory}: is not a function", remedy=remedy)
    return found  # type: ignore[no-any-return]
