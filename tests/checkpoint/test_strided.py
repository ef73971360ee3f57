"""Tensors whose elements are not next to each other in the file."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.pytorch import strided
from embcompress.checkpoint.pytorch.strided import read_strided
from embcompress.errors import InputError


@given(
    sizes=st.lists(st.integers(0, 5), max_size=4),
    itemsize=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_read_as_torch_sees_it(tmp_path_factory, sizes, itemsize, data):
    """Any dimensions and steps, in any order, also overlapping ones."""
    steps = [data.draw(st.integers(0, 40)) for _ in sizes]
    first = data.draw(st.integers(0, 9))
    path = tmp_path_factory.getbasetemp() / "elements"
    stored = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)
    stored.tofile(path)
    whole = torch.from_numpy(stored[: 4000 // itemsize * itemsize].reshape(-1, itemsize).view(f"i{itemsize}"))
    expected = torch.as_strided(whole.flatten(), sizes, steps, first).numpy().tobytes()
    fd = os.open(path, os.O_RDONLY)
    try:
        in_bytes = tuple(step * itemsize for step in steps)
        for cheap in (strided._CHEAP, 0):  # in one read, and in as many as a larger file would need
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(strided, "_CHEAP", cheap)
                read = read_strided(fd, first * itemsize, tuple(sizes), in_bytes, itemsize, "elements")
            assert read.shape == (whole.new_empty(sizes).numel(), itemsize)
            assert read.tobytes() == expected
    finally:
        os.close(fd)


@pytest.mark.parametrize("dense", [torch.randn(64, 3000).T, torch.randn(3000, 640)[:, ::10]])
def test_row_71_a_file_that_is_cut_short_while_it_is_read(tmp_path, dense):
    """An error; a memory map would kill the process."""
    torch.save({"embedding.weight": dense}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        np.testing.assert_array_equal(checkpoint.rows("embedding.weight", 7, 2900), dense[7:2900].numpy())
        os.truncate(tmp_path / "model.pt", 200_000)
        with pytest.raises(InputError, match="bytes early"):
            checkpoint.rows("embedding.weight", 2500, 3000)
        with pytest.raises(InputError, match="bytes early"):
            list(checkpoint.bytes_of("embedding.weight"))
