"""The device and the precision in which a model runs."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from embcompress.choices import DEFAULT_DEVICE, DEVICES
from embcompress.errors import UsageError, check_choice

_WITHOUT = {"DEFAULT", "NO AVX", "AVX2"}
"""Instruction sets without arithmetic in bfloat16, as torch names them."""


@dataclass(frozen=True)
class Runtime:
    """A device and a precision.

    Attributes:
        device: device of the model and its batches.
        mixed: whether forward passes in training run in bfloat16 where that is safe
            (``torch.autocast``). bfloat16 has the range of float32, so losses need no scaling.
    """

    device: torch.device
    mixed: bool = False

    def precision(self) -> AbstractContextManager[object]:
        """The context manager for a forward pass in training."""
        context = contextlib.ExitStack()
        if self.mixed:
            context.enter_context(torch.autocast(self.device.type, dtype=torch.bfloat16))
            if self.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _WITHOUT:
                # oneDNN's LSTM raises an error there; torch's own computes the same.
                context.enter_context(torch.backends.mkldnn.flags(enabled=False, allow_tf32=None))
        return context


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 faster than those of float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.13
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def runtime(device: str = DEFAULT_DEVICE, *, mixed: bool | None = None) -> Runtime:
    """The runtime that the user names.

    Args:
        device: one of ``DEVICES``; ``"auto"`` takes the first of cuda, mps and cpu that is present.
        mixed: mixed precision; None takes it on a CUDA GPU that computes in bfloat16.

    Raises:
        UsageError: there is no such device.
    """
    check_choice("device", device, DEVICES)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    chosen = next(name for name, there in present.items() if there) if device == "auto" else device
    if not present[chosen]:
        raise UsageError(f"device {chosen}: torch finds none", remedy="use --device auto")
    if mixed is None:
        mixed = chosen == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Runtime(torch.device(chosen), mixed)
