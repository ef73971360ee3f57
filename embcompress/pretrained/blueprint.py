"""What a directory says of its model, compared with its weights before memory is asked for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.description import METADATA_KEY, Description
from embcompress.errors import InputError, UsageError
from embcompress.nn.outline import SAME_MODEL, outlined_for
from embcompress.pretrained.library import OFFLINE, check_small_files, library, reading

_COUNT = re.compile(r"(?i)(layer|label|head|expert|block|group|attention_type)s?$")
"""Keys of config.json for what is made one by one: layers and their kinds, names of labels."""
_MOST = 100_000
"""The largest of such a count: more are no model."""
_NAMES = frozenset({"id2label", "label2id", "task_specific_params"})
"""Keys of what is named by people, where a key says nothing."""

_SPARE = 1 << 24
"""Numbers of four bytes that a model may have beyond twice its weights: masks, positions, a fresh head."""


@dataclass(frozen=True)
class Blueprint:
    """How the model of a directory is built.

    Attributes:
        path: the directory.
        kind: the class that config.json names, of transformers itself.
        config: its configuration, as that of a dense model.
        outline: the model without memory, on torch's meta device.
        description: what compression says of the weights, None where they are dense.
        size: bytes of the weight files.
    """

    path: Path
    kind: Any
    config: Any
    outline: Any
    description: Description | None
    size: int


def blueprint(path: Path) -> Blueprint:
    """Read what a directory says of its model.

    Raises:
        UsageError: it is no directory of a model of tokens, one of an encoder with a decoder or of a model
            that another library has quantized, or transformers has no such model or is missing.
        InputError: transformers cannot read it, or it describes another model than that of the weights.
    """
    if not (path / "config.json").exists():
        raise UsageError(
            f"{path}: is no Hugging Face directory, config.json is missing",
            remedy="give the directory of a model",
        )
    library()
    with open_checkpoint(path) as checkpoint:
        raw, description, size = checkpoint.config, checkpoint.description, checkpoint.size
        shapes = checkpoint.dense_shapes
    _check_counts(path, raw)
    check_small_files(path)
    with reading(path):
        config = library().AutoConfig.from_pretrained(path, **OFFLINE)
    _check_kind(path, config)
    kind = _architecture(config, path)
    config._attn_implementation = None  # as this machine has it: a name may be that of code to be fetched
    config.chunk_size_feed_forward = 0  # else texts of other lengths than its multiples fail
    with reading(path), outlined_for(len(shapes), f"{path}: config.json"):
        outline = kind(config)
    _check_size(path, outline, sum(map(math.prod, shapes.values())))
    _check_embedding(path, outline)
    return Blueprint(path, kind, config, outline, description, size)


def _check_size(path: Path, outline: Any, stored: int) -> None:
    """Refuse a model that is much larger than what is to fill it, ``stored`` numbers.

    Raises:
        InputError: with both sizes.
    """
    nbytes = sum(tensor.nbytes for tensor in itertools.chain(outline.parameters(), outline.buffers()))
    if nbytes > 4 * (2 * stored + _SPARE):
        raise InputError(
            f"{path}: config.json describes a model of {nbytes:,} bytes, its weights are {stored:,} numbers",
            remedy=SAME_MODEL,
        )


def _check_embedding(path: Path, outline: Any) -> None:
    """Refuse a model that does not begin with a table of tokens.

    Raises:
        UsageError: with its architecture.
    """
    with reading(path):
        embedding = outline.get_input_embeddings()
    if not hasattr(embedding, "num_embeddings"):
        raise UsageError(
            f"{path}: a {type(outline).__name__} begins with no nn.Embedding of tokens",
            remedy="only models of texts are taken",
        )


def _check_counts(path: Path, raw: object) -> None:
    """Refuse counts that no model has, before transformers makes as many names.

    Raises:
        InputError: with the key and its value.
    """
    for key, value in _integers(raw):
        if value > _MOST and _COUNT.search(key):
            raise InputError(
                f"{path}: config.json gives {key} as {value:,}, limit {_MOST:,}",
                remedy="download the directory again",
            )


def _integers(value: object, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer of a configuration with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _NAMES:
                yield from _integers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _integers(inner, key)
    elif isinstance(value, int):
        yield key, value


def _check_kind(path: Path, config: Any) -> None:
    """Refuse what is no dense encoder or language model, but for what this package has made of it.

    Raises:
        UsageError: with the reason.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"{path}: is an encoder with a decoder", remedy="only encoders and language models are taken"
        )
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
    if method != METADATA_KEY:
        raise UsageError(
            f"{path}: its weights are quantized by {method}", remedy="give the model with weights in floats"
        )
    del config.quantization_config


def _architecture(config: Any, path: Path) -> Any:
    """The class that a configuration names.

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
            f"{path}: architecture {name} is none of transformers {transformers.__version__}",
            remedy="code that comes with a model is not run; install a newer transformers if it has it",
        )
    return kind
