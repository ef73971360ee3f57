"""Compressed files whose parts were exchanged, with a record that fits: sizes, checksums and its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from embcompress.checkpoint.description import parse_description, part_name

TABLE = "embedding.weight"
CARRIED = "fc.weight"


class Net(nn.Module):
    """What such a file loads into."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, columns, dtype=dtype)
        self.fc = nn.Linear(columns, 2, bias=False)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    return safetensors.torch.load_file(path)


def parts_of(path: Path) -> dict[str, Tensor]:
    """The stored parts of the table, by suffix."""
    return {n.removeprefix("embedding."): part for n, part in tensors_of(path).items() if n != CARRIED}


def resealed(
    path: Path,
    output: Path,
    parts: Mapping[str, Tensor],
    *,
    carried: Mapping[str, Tensor] | None = None,
    **fields: Any,
) -> Path:
    """``path`` with other parts, and with a record that says of them what ``factorize`` would.

    Args:
        path: a compressed file.
        output: where to write.
        parts: by suffix; those not named stay.
        carried: other tensors by name; those not named stay.
        fields: of the table's record, set to other values.
    """
    with safe_open(path, framework="pt") as held:
        described = parse_description(json.loads(held.metadata()["embcompress"]), str(path))
    tensors = tensors_of(path) | dict(carried or {})
    tensors |= {f"embedding.{suffix}": part.contiguous() for suffix, part in parts.items()}
    (record,) = described.tables
    stored = [tensors[part_name(TABLE, suffix)] for suffix in record.parts]
    taken = sum(part.numel() * part.element_size() for part in stored)
    dense = record.shape[0] * record.shape[1] * (2 if record.dtype in ("F16", "BF16") else 4)
    record = replace(record, digests=tuple(map(_digest, stored)), ratio=1 - taken / dense, **fields)
    text = replace(described, tables=(record,)).to_json()
    safetensors.torch.save_file(tensors, output, {"embcompress": text})
    return output


def _digest(part: Tensor) -> str:
    return hashlib.sha256(part.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
