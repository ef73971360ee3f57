"""Conversions of element types against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embcompress.dtypes import BY_TORCH_NAME, DTYPES, TABLE_DTYPES

EDGES = [0.0, -0.0, 1.0, 65504.0, 65520.0, 3.39e38, 3.4e38, 1e-40, 6e-8, np.inf, -np.inf, np.nan, 1 + 2**-8]


@pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
def test_encode_rounds_as_torch_does(dtype):
    """Rounding to nearest even, overflow and NaN give the bytes that torch gives."""
    rng = np.random.default_rng(0)
    values = np.concatenate([np.array(EDGES), rng.standard_normal(5000), rng.integers(0, 2**32, 5000)])
    singles = np.concatenate([values, (1 + np.arange(512) / 256)]).astype(np.float32)
    expected = torch.from_numpy(singles).to(getattr(torch, dtype.torch))
    width = {16: torch.int16, 32: torch.int32, 64: torch.int64}[dtype.bits]
    stored = dtype.encode(singles)
    finite = ~np.isnan(singles)
    np.testing.assert_array_equal(
        stored.view(f"<i{dtype.bits // 8}")[finite], expected.view(width).numpy()[finite]
    )
    assert np.isnan(dtype.decode(stored)[~finite]).all()


@pytest.mark.parametrize("dtype", [d for d in TABLE_DTYPES if d.bits == 16], ids=lambda d: d.name)
def test_every_16_bit_pattern_survives_the_round_trip(dtype):
    """Decoding is exact and encoding its inverse, for all 65,536 patterns that are numbers."""
    patterns = np.arange(1 << 16, dtype="<u2").view(dtype.storage)
    decoded = dtype.decode(patterns)
    numbers = ~np.isnan(decoded)
    np.testing.assert_array_equal(dtype.encode(decoded).view("<u2")[numbers], patterns.view("<u2")[numbers])
    expected = torch.from_numpy(patterns.view("<i2").copy()).view(getattr(torch, dtype.torch)).float().numpy()
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("dtype", TABLE_DTYPES, ids=lambda d: d.name)
def test_limits_are_those_of_torch(dtype):
    """The largest value and the unit roundoff are torch's own."""
    info = torch.finfo(getattr(torch, dtype.torch))
    assert dtype.largest == info.max
    assert dtype.unit_roundoff == info.eps / 2


def test_names_are_those_of_torch_and_sizes_too():
    """Every type that torch has is as wide here as there."""
    for name, dtype in BY_TORCH_NAME.items():
        packed = 2 if name.endswith("_x2") else 1  # two 4-bit numbers share an element there
        assert getattr(torch, name).itemsize * 8 == dtype.bits * packed
    assert len(BY_TORCH_NAME) + 2 == len(DTYPES), "only the two 6-bit floats have no name in torch"
