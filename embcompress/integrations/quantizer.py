"""transformers' ``from_pretrained`` and ``save_pretrained`` for compressed directories.

In config.json of such a directory ``quant_method`` is ``embcompress``; :func:`register` registers the classes
that transformers uses for it. Loading takes four steps: transformers builds the model on the meta device,
``swap`` puts the tables in and hides them, transformers loads all other weights, and the swap is finished.
For saving, ``saving`` gives transformers the stored parts, the guard and the record.
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

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 9):  # cannot sort names of parts
    raise ImportError(f"transformers {transformers.__version__} is too old, 5.9 is needed")


class EmbcompressConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of config.json, which holds the record of the compressed tables."""

    def __init__(self, **record: Any) -> None:
        self.quant_method = METADATA_KEY  # type: ignore[assignment] # transformers' own are members of an enum
        self.record = {key: value for key, value in record.items() if key != "quant_method"}

    @classmethod
    def of(cls, description: Description) -> EmbcompressConfig:
        """Make the configuration that holds ``description``."""
        return cls(**description.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as they are in config.json."""
        return {"quant_method": self.quant_method, **self.record}

    def get(self, key: str, default: object = None) -> object:
        """Return one entry of :meth:`to_dict`; transformers calls this once a model is loaded."""
        return self.to_dict().get(key, default)


class EmbcompressQuantizer(HfQuantizer):
    """The hooks that ``from_pretrained`` and ``save_pretrained`` call for a model with compressed tables."""

    quantization_config: EmbcompressConfig

    def __init__(self, quantization_config: EmbcompressConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._description = parse_description(quantization_config.record, "quantization_config")
        self._swap: Swap | None = None

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuse to compress a dense model during loading.

        Raises:
            UsageError: the directory is not compressed already.
        """
        if not self.pre_quantized:
            raise UsageError(
                "from_pretrained does not compress tables, it only loads compressed ones",
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
                "a model with compressed tables needs weight files, and there are none",
                remedy="give the directory that 'embcompress factorize' wrote",
            )
        self._swap = begin_swap(model, self._description, checkpoint_files, device_map)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        """Show the tables again, and move them to the device of the model."""
        assert self._swap is not None
        self._swap.finish(model)
        # Everything computes in floats, so half(), float() and Trainer may work on it.
        model.is_quantized = False  # type: ignore[assignment]
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what save_pretrained writes; put the record into the configuration, which it writes next."""
        assert self._swap is not None
        with torch.no_grad():
            state, saved = stored_state(model, self._swap.tables)
        description = described(self._description, saved)
        model.config.quantization_config = EmbcompressConfig.of(description)
        return state, {METADATA_KEY: description.to_json()}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Return True: save_pretrained works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: gradients flow through the tables."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: Trainer may train every weight, without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: torch.compile works."""
        return True


def register() -> None:
    """Register the two classes with transformers, unless they are registered already."""
    if METADATA_KEY not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METADATA_KEY)(EmbcompressConfig)
    if METADATA_KEY not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METADATA_KEY)(EmbcompressQuantizer)


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the two classes for the length of a ``with`` block; earlier registrations stay."""
    unknown = [m for m in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING) if METADATA_KEY not in m]
    register()
    try:
        yield
    finally:
        for mapping in unknown:
            del mapping[METADATA_KEY]
