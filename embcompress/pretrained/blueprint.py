"""Read what a directory says about its model, and check it against the weights before any allocation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import METADATA_KEY, Description
from embcompress.checkpoint.directory.modules import home_of, read_modules
from embcompress.errors import InputError, UsageError
from embcompress.nn.outline import SAME_MODEL, outlined_for
from embcompress.pretrained.library import OFFLINE, check_files, library, reading

_SPARE = 1 << 24
"""Float32 numbers that a model may have beyond twice its weights: masks, positions, a fresh head."""


@dataclass(frozen=True)
class Blueprint:
    """What is needed to build the model of a directory.

    Attributes:
        path: the directory.
        folder: the folder in it that holds config.json, weights and tokenizer; mostly the directory itself.
        kind: the transformers class that config.json names.
        config: its configuration, without ``quantization_config``.
        outline: the dense model on torch's meta device, which needs no memory.
        description: the record of compression, None if the weights are dense.
        size: bytes of the weight files.
    """

    path: Path
    folder: Path
    kind: Any
    config: Any
    outline: Any
    description: Description | None
    size: int


def blueprint(path: Path) -> Blueprint:
    """Read what a directory says about its model.

    Raises:
        UsageError: ``path`` is not the directory of a model of tokens; the model is an encoder-decoder or was
            quantized by another library; transformers has no such class or is missing.
        InputError: transformers cannot read the directory, or config.json does not match the weights.
    """
    folder = home_of(path)
    if not (folder / "config.json").exists():
        raise UsageError(
            f"{path}: is not a Hugging Face directory, config.json is missing",
            remedy="give the directory of a model",
        )
    library()
    with open_checkpoint(path) as checkpoint:
        description, size = checkpoint.description, checkpoint.size
        shapes, is_graph = checkpoint.dense_shapes, checkpoint.holds_graph
    if is_graph:
        raise UsageError(
            f"{path}: holds an ONNX model, which transformers does not run",
            remedy="give the PyTorch model that it was exported from",
        )
    check_files(folder)
    with reading(path):
        config = library().AutoConfig.from_pretrained(folder, **OFFLINE)
    _check_kind(path, config)
    kind = _without_head(path, config, _architecture(config, path), shapes)
    config._attn_implementation = None  # the default here: a name could be that of code to download
    config.chunk_size_feed_forward = 0  # otherwise only texts of its multiples in length work
    with reading(path), outlined_for(len(shapes), f"{path}: config.json"):
        outline = kind(config)
    _check_size(path, outline, sum(map(math.prod, shapes.values())))
    _check_embedding(path, outline)
    return Blueprint(path, folder, kind, config, outline, description, size)


def _check_size(path: Path, outline: Any, stored: int) -> None:
    """Refuse a model that is much larger than its weights, which are ``stored`` numbers.

    Raises:
        InputError: it is.
    """
    nbytes = sum(tensor.nbytes for tensor in itertools.chain(outline.parameters(), outline.buffers()))
    if nbytes > 4 * (2 * stored + _SPARE):
        raise InputError(
            f"{path}: config.json describes a model of {nbytes:,} bytes, its weights are {stored:,} numbers",
            remedy=SAME_MODEL,
        )


def _check_embedding(path: Path, outline: Any) -> None:
    """Refuse a model whose input is not looked up in a table of tokens.

    Raises:
        UsageError: it has no such table.
    """
    with reading(path):
        embedding = outline.get_input_embeddings()
    if not hasattr(embedding, "num_embeddings"):
        raise UsageError(
            f"{path}: a {type(outline).__name__} does not begin with an nn.Embedding of tokens",
            remedy="give a model that reads text",
        )


def _check_kind(path: Path, config: Any) -> None:
    """Refuse models other than encoders and language models, and models that another tool has quantized.

    What this package has compressed is accepted, and ``quantization_config`` is removed from ``config``.

    Raises:
        UsageError: the model is refused.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{path}: is an encoder-decoder model", remedy="give an encoder or a language model")
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
    if method != METADATA_KEY:
        raise UsageError(
            f"{path}: its weights are quantized by {method}", remedy="give the model with float weights"
        )
    del config.quantization_config


def _without_head(path: Path, config: Any, kind: Any, names: Iterable[str]) -> Any:
    """The base class of ``kind`` where a sentence-transformers model has nothing but its weights.

    Such a model was often made of one for masked tokens, which its configuration still names.
    """
    prefix = f"{kind.base_model_prefix}."
    pooled = any(module.kind == "Pooling" for module in read_modules(path))
    if not pooled or any(name.startswith(prefix) for name in names):
        return kind
    return library().MODEL_MAPPING.get(type(config), kind)


def _architecture(config: Any, path: Path) -> Any:
    """The transformers class that a configuration names, or else the base class of its model type.

    Raises:
        UsageError: transformers has no such class.
    """
    transformers = library()
    names = config.architectures
    if names:
        name = names[0] if isinstance(names, list) else names
        kind = getattr(transformers, str(name), None)
    else:
        name = f"of a {config.model_type}"
        kind = transformers.MODEL_MAPPING.get(type(config), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UsageError(
            f"{path}: transformers {transformers.__version__} has no architecture {name}",
            remedy="code that comes with a model is not run; install a newer transformers if it has it",
        )
    return kind
