"""Single tensors out of the weight files that transformers has found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from embcompress.checkpoint.directory.checkpoint import Directory
from embcompress.checkpoint.directory.shards import ShardLayout
from embcompress.checkpoint.files import open_file
from embcompress.checkpoint.safetensors.file import Safetensors


def opened(files: Sequence[str]) -> Directory:
    """Weight files of one folder, all or some, as one checkpoint; checked, nothing of it read yet."""
    folder = Path(files[0]).parent
    with ExitStack() as undo:
        parts = {Path(name).name: undo.enter_context(open_file(Path(name))) for name in files}
        checkpoint = Directory(folder, ShardLayout(tuple(parts), None, ()), parts)
        checkpoint.check_integrity()
        undo.pop_all()
    return checkpoint


def read_tensors(checkpoint: Directory, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of these names, on the CPU."""
    found: dict[str, Tensor] = {}
    for path in checkpoint.weight_files:
        with open_file(path) as file:
            wanted = [name for name in names if name in file.tensors]
        if not wanted:
            continue
        if isinstance(file, Safetensors):
            with safe_open(path, "pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in wanted}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found |= {name: state[name] for name in wanted}
    return found
