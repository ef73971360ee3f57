"""Compressed files whose parts were exchanged, with a record that fits: sizes, checksums and its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from embcompress.checkpoint.description import Description, parse_description

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


def weights_in(path: Path) -> Path:
    """The weight file of a file or a directory."""
    return path / "model.safetensors" if path.is_dir() else path


def described_by(path: Path) -> Description:
    """The record in a file or a directory."""
    with safe_open(weights_in(path), framework="pt") as held:
        return parse_description(json.loads(held.metadata()["embcompress"]), str(path))


def parts_of(path: Path) -> dict[str, Tensor]:
    """The stored parts of the only compressed table, by suffix."""
    (record,), tensors = described_by(path).tables, tensors_of(weights_in(path))
    return {suffix: tensors[name] for suffix, name in zip(record.parts, record.part_names, strict=True)}


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
        path: a compressed file or directory.
        output: where to write; a directory is only brought up to date there.
        parts: by suffix; those not named stay.
        carried: other tensors by name; those not named stay.
        fields: of the table's record, set to other values.
    """
    if path.is_dir() and not output.exists():
        shutil.copytree(path, output)
    with safe_open(weights_in(path), framework="pt") as held:
        metadata = held.metadata()
    described = described_by(path)
    (record,) = described.tables
    names = dict(zip(record.parts, record.part_names, strict=True))
    tensors = tensors_of(weights_in(path)) | dict(carried or {})
    tensors |= {names[suffix]: part.contiguous() for suffix, part in parts.items()}
    stored = [tensors[name] for name in names.values()]
    taken = sum(part.numel() * part.element_size() for part in stored)
    dense = record.shape[0] * record.shape[1] * (2 if record.dtype in ("F16", "BF16") else 4)
    record = replace(record, digests=tuple(map(_digest, stored)), ratio=1 - taken / dense, **fields)
    described = replace(described, tables=(record,))
    metadata |= {"embcompress": described.to_json()}
    safetensors.torch.save_file(tensors, weights_in(output), metadata)
    if path.is_dir():
        config = json.loads((path / "config.json").read_text())
        if "quantization_config" in config:
            config["quantization_config"] |= described.to_dict()
            (output / "config.json").write_text(json.dumps(config))
    return output


def _digest(part: Tensor) -> str:
    return hashlib.sha256(part.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
