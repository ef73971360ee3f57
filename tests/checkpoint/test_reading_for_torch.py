"""Tensors for torch: read rather than mapped, and equal to what the safetensors library gives."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.safetensors.file import Safetensors
from embcompress.errors import InputError, UsageError

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
)
SHAPES = ((5, 6), (), (0,), (3, 0, 2), (4,))


def same(one, other):
    """Equal to the bit, with the same type and shape."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    flat = (value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(*flat)


def test_tensors_are_those_of_the_safetensors_library(tmp_path):
    """Of every type and shape, and shared ones under both names."""
    raw = torch.randint(0, 2, (512,), dtype=torch.uint8)
    state = {}
    for dtype in TYPES:
        for shape in SHAPES:
            if dtype is torch.float4_e2m1fn_x2 and not shape:
                continue
            count = torch.empty(shape, dtype=dtype).nbytes
            state[f"{dtype} {shape}"] = raw[:count].clone().view(dtype).reshape(shape)
    path = tmp_path / "model.safetensors"
    save_file(state, path, {"again": "torch.float32 (5, 6)"})
    with open_checkpoint(path) as checkpoint, safe_open(path, "pt") as file:
        found = checkpoint.torch_state()
        assert found.keys() == state.keys()
        for name, value in found.items():
            assert same(value, file.get_tensor(name)), name
        (alias,) = checkpoint.torch_state(["again"]).values()
    assert same(alias, state["torch.float32 (5, 6)"])
    found["torch.uint8 (5, 6)"].fill_(1)  # memory of its own
    assert same(load_file(path)["torch.uint8 (5, 6)"], state["torch.uint8 (5, 6)"])


def test_a_type_that_torch_lacks_is_refused(tmp_path):
    """Six bits are in the format and not in torch."""
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    with open_checkpoint(path) as checkpoint, pytest.raises(UsageError, match="a is F6_E2M3"):
        checkpoint.torch_state()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("left", [0.02, 0.5, 0.98])
def test_row_71_a_file_that_is_cut_short_after_it_was_opened(tmp_path, suffix, left):
    """An error of one line; a mapped file would kill the process."""
    path = tmp_path / f"model.{suffix}"
    state = {"a": torch.randn(1000, 64), "b": torch.randn(1000, 64)}
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, int(left * path.stat().st_size))
        with pytest.raises(InputError) as caught:
            checkpoint.torch_state()
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_a_suspended_file_is_opened_again_if_it_is_the_same(tmp_path):
    """Another file of the same name is not read in its place."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3)}, path)
    with Safetensors.open(path) as checkpoint:
        checkpoint.suspend()
        checkpoint.suspend()
        assert checkpoint.rows("a", 1, 2).tolist() == [[3, 4, 5]]
        checkpoint.suspend()
        save_file({"a": torch.zeros(2, 3)}, path)
        with pytest.raises(InputError, match="changed while it was read"):
            checkpoint.rows("a", 1, 2)
    with pytest.raises(OSError, match="Bad file descriptor"):
        checkpoint.rows("a", 1, 2)


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import torch
import embcompress
from pathlib import Path
from safetensors.torch import load_file

folder = Path(sys.argv[1])
embcompress.report(folder / "model")
small = embcompress.factorize(folder / "model", rank=2).output
assert not embcompress.verify(small, against=folder / "model").differences
dense = embcompress.expand(small, output=folder / "dense").output
names = sorted(p.name for p in dense.glob("*.safetensors"))
assert names == sorted(p.name for p in (folder / "model").glob("*.safetensors"))
for name in names[1:]:
    assert (dense / name).read_bytes() == (folder / "model" / name).read_bytes()
state = {k: v for name in names for k, v in load_file(folder / "model" / name).items()}
model = torch.nn.Module()
model.embedding = torch.nn.Embedding(*state["embedding.weight"].shape)
for name, value in state.items():
    if name != "embedding.weight":
        model.register_buffer(name, torch.zeros_like(value))
embcompress.load(model, small)
assert all(torch.equal(getattr(model, name), state[name]) for name in state if name != "embedding.weight")
"""


def check_many(folder, count):
    from helpers.checkpoints import directory

    shards = [{"embedding.weight": torch.randn(300, 8).numpy()}]
    shards += [{f"part{i}": torch.full((3,), float(i)).numpy()} for i in range(1, count)]
    directory(folder / "model", shards)
    run = subprocess.run(
        [sys.executable, "-c", MANY, folder], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr


def test_row_72_more_shards_than_a_process_may_open(tmp_path):
    """Of many shards only some are open at a time."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 256
    check_many(tmp_path, 300)


@pytest.mark.slow
def test_row_72_five_thousand_shards(tmp_path):
    """As they were when an index was made for each tensor."""
    check_many(tmp_path, 5000)
