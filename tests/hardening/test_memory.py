"""Memory stays bounded however large the table is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUN = """
import sys
from embcompress.cli import cli
try: cli(sys.argv[1:])
except SystemExit as stop: assert stop.code == 0, stop.code
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
"""Runs a command and prints its peak in kB; getrusage would count the parent's memory before exec."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_table_of_600_mb_takes_250_mb_of_memory(tmp_path, kind):
    """factorize, report and verify read and write by blocks: their peak is far below the table's size."""
    rows, columns = 200_000, 768
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        import torch

        torch.save({"embedding.weight": torch.randn(rows, columns)}, path)
    else:
        shape = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}
        header = json.dumps({"embedding.weight": shape}).encode()
        rng = np.random.default_rng(0)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(200):
                file.write(rng.standard_normal((rows // 200, columns), dtype=np.float32))
    verify = ["verify", path.with_name(f"model-svd-ratio-0.5.{kind}"), "--against", path, "-q"]
    for arguments in (["report", path], ["factorize", path, "--ratio", "0.5", "-q"], verify):
        done = subprocess.run(
            [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        peak = int(done.stdout.split()[-1]) * 1024
        assert peak < 250e6, f"{arguments[0]} took {peak / 1e6:.0f} MB"
