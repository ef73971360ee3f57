"""Small checkpoints for tests, the command line run on them, and what "refused" means."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from click.testing import CliRunner, Result
from helpers.refusals import assert_says
from safetensors.numpy import save_file

import embcompress
from embcompress.cli import cli


def table(rows: int = 64, columns: int = 16, *, seed: int = 0) -> np.ndarray:
    """Random float32 rows with a falling spectrum."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * 0.8 ** np.arange(columns)).astype(np.float32)


def raw(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None
) -> Path:
    """A safetensors file of exactly these bytes, however wrong they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: Sequence[int], start: int, stop: int) -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begin, and its header."""
    blob = path.read_bytes()
    begin = 8 + int.from_bytes(blob[:8], "little")
    return begin, json.loads(blob[8:begin])


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> (dtype, shape, bytes) of every tensor, as the safetensors library reads them."""
    return {
        name: (found["dtype"], tuple(found["shape"]), bytes(found["data"]))
        for name, found in safetensors.deserialize(path.read_bytes())
    }


def directory(path: Path, shards: Sequence[Mapping[str, np.ndarray]], **config: Any) -> Path:
    """A directory as Hugging Face models have it: one file, or shards with an index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"], **config}, indent=2))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, tensors in zip(names, shards, strict=True):
        save_file(dict(tensors), path / name, metadata={"format": "pt"})
    if len(shards) > 1:
        every = [array for tensors in shards for array in tensors.values()]
        metadata = {
            "total_parameters": sum(array.size for array in every),
            "total_size": sum(array.nbytes for array in every),
        }
        weight_map = {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}
        write_index(path, weight_map, metadata)
    return path


def write_index(path: Path, weight_map: Mapping[str, str], metadata: Mapping[str, Any] | None = None) -> None:
    """The index of the safetensors shards in ``path``."""
    index = {"metadata": dict(metadata or {}), "weight_map": dict(weight_map)}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def contents(path: Path) -> dict[str, str]:
    """Everything under ``path``, hidden or not: relative name -> SHA-256, link target or ``directory``."""
    found = {}
    for item in sorted(path.rglob("*")):
        if item.is_symlink():
            value = f"link to {os.readlink(item)}"
        else:
            value = "directory" if item.is_dir() else hashlib.sha256(item.read_bytes()).hexdigest()
        found[str(item.relative_to(path))] = value
    return found


def run(*args: object) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def succeed(*args: object) -> Result:
    """The command line, which must exit with 0."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def vectors_file(path: Path, write: Callable[..., object], tokens: Sequence[str], matrix: np.ndarray) -> Path:
    """Word vectors as ``write`` writes them, gzip where the name says so."""
    write(path, tokens, matrix)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    return path


def start(*args: object, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    package = str(Path(embcompress.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "embcompress", *map(str, args)],
        env={**os.environ, "PYTHONPATH": package},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def assert_one_line(stderr: str, says: str) -> None:
    """An error is one printable line that has the facts of ``says``: values, limits, names."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].isprintable()
    assert_says(lines[0], says)


def assert_refused(folder: Path, *args: object, code: int, says: str) -> None:
    """The command exits with ``code`` and one line with the facts of ``says``, and ``folder`` is as it was.

    ``folder`` is where input and output stand, so that nothing is lost and nothing is left behind.
    """
    before = contents(folder)
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert_one_line(result.stderr, says)
    assert contents(folder) == before


def assert_corrupt(path: Path, says: str) -> None:
    """Every command refuses the input ``path`` with exit code 3."""
    for command in (("factorize", path, "--rank", 1), ("report", path), ("expand", path)):
        assert_refused(path.parent, *command, code=3, says=says)


def loaded_by(code, *args):
    """Names of the modules that a fresh interpreter has loaded after ``code``."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())
