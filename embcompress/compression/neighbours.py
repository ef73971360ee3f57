"""What the files next to weights say of them: part of a PEFT adapter, or quantized by another library.

A weight file in a directory gets the same answers as the directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embcompress.checkpoint.base import Checkpoint
from embcompress.checkpoint.description import METADATA_KEY
from embcompress.checkpoint.directory.files import CONFIG, QUANTIZATION
from embcompress.checkpoint.directory.shards import find_layout, read_json
from embcompress.errors import EmbcompressError, UsageError

_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CLASSES = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
}
"""The classes of peft that open an adapter, by its ``task_type``."""

_QUANTIZERS = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files in which older versions of some libraries said that they had quantized a model."""
_OPTIONS = {"compressed-tensors": ("quantization_config=CompressedTensorsConfig(dequantize=True)",)}
"""What else from_pretrained must be told. compressed-tensors otherwise changes every module when the model
first runs, and fails at those with two names."""
_NAME = re.compile(r"[\w.-]{1,64}")


def check_not_adapter(source: Checkpoint) -> None:
    """Refuse the weights of a PEFT adapter: peft looks for each tensor under the name that it wrote.

    Raises:
        UsageError: with the line that merges the adapter into its base model.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    if not (folder / _ADAPTER).is_file() or (
        folder != source.path and source.path.name not in _ADAPTER_WEIGHTS
    ):
        return
    task = _read(folder / _ADAPTER).get("task_type")
    kind = _CLASSES.get(task, "AutoPeftModel") if isinstance(task, str) else "AutoPeftModel"
    raise UsageError(
        f"{source.path}: is a PEFT adapter, and peft cannot load one with a compressed table",
        remedy="merge it into its base model first: "
        f"peft.{kind}.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('merged')",
    )


def quantizer_of(source: Checkpoint) -> str | None:
    """What quantized the layers of a model, as its directory calls it; None if nothing did.

    Raises:
        UsageError: the directory does not name it in a readable way.
    """
    path = source.path
    if path.is_dir():
        folder, config = path, source.config
    elif _is_in_use(path):
        folder, config = path.parent, _read(path.parent / CONFIG)
    else:
        return None
    record = config.get(QUANTIZATION)
    if record is None:
        return next((name for file, name in _QUANTIZERS.items() if (folder / file).is_file()), None)
    name = _name(record)
    if name is None:
        raise UsageError(
            f"{folder / CONFIG}: the model is quantized already, and {QUANTIZATION} does not say how",
            remedy="compress the model it was made from",
        )
    return None if name == METADATA_KEY else name


def quantized_notes(quantizer: str | None) -> tuple[str, ...]:
    """What the user should know of a model whose layers are quantized; nothing of others."""
    if quantizer is None:
        return ()
    more = ", ".join(["ignore_mismatched_sizes=True", *_OPTIONS.get(quantizer, ())])
    return (
        f"its layers are quantized ({quantizer}) and stay as they are: to load a compressed copy, call "
        f"from_pretrained(…, {more}), then embcompress.load, which replaces the tables alone; "
        "'embcompress expand' makes a copy that needs neither",
    )


def _name(record: object) -> str | None:
    """The ``quant_method`` of a record in config.json."""
    if not isinstance(record, Mapping):
        return None
    method = record.get("quant_method")
    if method is None and (record.get("load_in_4bit") or record.get("load_in_8bit")):
        return "bitsandbytes"  # as its first versions wrote it
    return method if isinstance(method, str) and _NAME.fullmatch(method) else None


def _is_in_use(path: Path) -> bool:
    """Whether a file is one of the weight files of the model in its directory."""
    try:
        return (path.parent / CONFIG).is_file() and path.name in find_layout(path.parent).files
    except EmbcompressError:  # the file can be read whatever is wrong with those next to it
        return False


def _read(path: Path) -> Mapping[str, Any]:
    """A JSON object next to weights; empty where it cannot be read."""
    try:
        return read_json(path)
    except EmbcompressError:
        return {}
