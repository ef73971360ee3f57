"""``from_pretrained`` and ``save_pretrained`` of transformers for compressed directories.

A directory says in config.json that its ``quant_method`` is ``embcompress``; :func:`register` tells
transformers which classes to ask. Loading takes four steps: transformers builds the model without memory,
``swap`` puts the tables in and hides them, transformers loads all other weights, and the swap is finished.
For saving, ``saving`` gives transformers the parts as they were stored, the guard, and the record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from embcompress.checkpoint.description import METADATA_KEY, Description, parse_description
from embcompress.errors import UsageError
from embcompress.integrations.saving import described, stored_state
from embcompress.integrations.swap import Swap, begin_swap

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 9):  # which cannot sort the names of parts
    raise ImportError(f"transformers {transformers.__version__} is too old, 5.9 is needed")


class EmbcompressConfig(QuantizationConfigMixin):
    """The record of compressed tables, as it stands in config.json."""

    def __init__(self, **record: Any) -> None:
        self.quant_method = METADATA_KEY  # type: ignore[assignment] # theirs are of an enum
        self.record = {key: value for key, value in record.items() if key != "quant_method"}

    @classmethod
    def of(cls, description: Description) -> EmbcompressConfig:
        """The one that says what ``description`` says."""
        return cls(**description.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"quant_method": self.quant_method, **self.record}

    def get(self, key: str, default: object = None) -> object:
        """An entry of what config.json holds; so transformers asks the configuration of a loaded model."""
        return self.to_dict().get(key, default)


class EmbcompressQuantizer(HfQuantizer):
    """What ``from_pretrained`` and ``save_pretrained`` ask about a model with compressed tables."""

    quantization_config: EmbcompressConfig

    def __init__(self, quantization_config: EmbcompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._description = parse_description(quantization_config.record, "quantization_config")
        self._swap: Swap | None = None

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuse to compress a dense model while it is loaded.

        Raises:
            UsageError: this is asked for.
        """
        if not self.pre_quantized:
            raise UsageError(
                "from_pretrained compresses no table, it loads those that are compressed",
                remedy="run 'embcompress factorize' on the directory first",
            )

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str] | None = None,
        device_map: object = None,
        **_: Any,
    ) -> None:
        """Put the tables into a model whose tensors are on the meta device."""
        if not checkpoint_files:
            raise UsageError(
                "a model with compressed tables loads from weight files, there are none",
                remedy="name the directory that 'embcompress factorize' wrote",
            )
        self._swap = begin_swap(model, self._description.swapped, checkpoint_files, device_map)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        """Let the tables be seen again, on the device of the model."""
        assert self._swap is not None
        self._swap.finish(model)
        # All of it computes in floats: half(), float() and Trainer need not be refused.
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What save_pretrained writes; the record goes into the configuration, which is written next."""
        assert self._swap is not None
        with torch.no_grad():
            state, saved = stored_state(model, self._swap.tables)
        description = described(self._description, saved)
        model.config.quantization_config = EmbcompressConfig.of(description)
        return state, {METADATA_KEY: description.to_json()}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether save_pretrained works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether gradients flow."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether Trainer may train all of it, without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether torch.compile works."""
        return True


def register() -> None:
    """Tell transformers of these two classes, unless it knows."""
    if METADATA_KEY not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METADATA_KEY)(EmbcompressConfig)
    if METADATA_KEY not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METADATA_KEY)(EmbcompressQuantizer)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Tell transformers of them for as long as this lasts, or for longer where it knows already."""
    unknown = [m for m in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING) if METADATA_KEY not in m]
    register()
    try:
        yield
    finally:
        for mapping in unknown:
            del mapping[METADATA_KEY]
