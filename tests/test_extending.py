"""A new method is one folder and a new format one class, each with one registry entry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.checkpoints import succeed
from helpers.coding import stats_of, table_of, through
from helpers.method_contract import MethodContract
from helpers.onnx_models import model as onnx_model
from helpers.toy_format import Toy, ToyFile
from helpers.toy_method.method import Signs
from safetensors.torch import load_file, save_file
from torch import nn

import embcompress
from embcompress.checkpoint import files, open_checkpoint
from embcompress.dtypes import DTYPES
from embcompress.methods import METHODS
from embcompress.methods.base import Settings

PACKAGE = Path(embcompress.__file__).parent
V, D = 60, 24


@pytest.fixture
def method(monkeypatch):
    """The toy method, which has joined the registry."""
    monkeypatch.setitem(METHODS, Signs.name, Signs())
    return METHODS[Signs.name]


def signs_of(table):
    """What the method should make of a table, by its definition."""
    sizes = np.abs(table).mean(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    return np.where(table >= 0, sizes, -sizes)


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(V, D), nn.Linear(D, 3))


class TestANewMethod(MethodContract):
    """It keeps the contract of every method, and goes through all commands."""

    def test_it_decodes_to_its_definition(self, method):
        table = table_of(V, D)
        layout = method.fit(stats_of(table), 1 << 20, Settings(DTYPES["F32"]))
        np.testing.assert_array_equal(through(method, stats_of(table), layout), signs_of(table))

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_it_is_planned_written_verified_expanded_and_loaded(self, method, tmp_path, suffix):
        model, ids = small_model(), torch.arange(V)
        dense, small = tmp_path / f"m{suffix}", tmp_path / f"s{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), dense)
        succeed("factorize", dense, "--method", "signs", "--ratio", "0.9", "--key", "0.weight", "-o", small)
        assert json.loads(succeed("report", small, "--json").stdout)["compressed"][0]["method"] == "signs"
        succeed("verify", small, "--against", dense)
        loaded = embcompress.load(small_model(1), small)
        expected = signs_of(model[0].weight.detach().numpy())
        torch.testing.assert_close(loaded[0](ids), torch.from_numpy(expected), rtol=0, atol=1e-6)
        assert [name for name, _ in loaded[0].named_parameters()] == ["0.sizes"]  # as its PartSpec says
        succeed("expand", small, "-o", tmp_path / f"d{suffix}")
        read = load_file if suffix == ".safetensors" else torch.load
        np.testing.assert_array_equal(read(tmp_path / f"d{suffix}")["0.weight"].numpy(), expected)

    def test_it_stands_behind_a_screen(self, method, tmp_path):
        save_file(small_model().state_dict(), tmp_path / "m.safetensors")
        small = tmp_path / "s.safetensors"
        options = ("--method", "screen+signs", "--ratio", "0.95", "--key", "0.weight")
        succeed("factorize", tmp_path / "m.safetensors", *options, "-o", small)
        succeed("verify", small, "--against", tmp_path / "m.safetensors")
        table = load_file(embcompress.expand(small).output)["0.weight"]
        loaded = embcompress.load(small_model(1), small)
        torch.testing.assert_close(loaded[0](torch.arange(V)), table, rtol=0, atol=1e-6)

    def test_a_graph_computes_with_it(self, method, tmp_path):
        onnx.save(onnx_model(), tmp_path / "m.onnx")
        small = embcompress.factorize(tmp_path / "m.onnx", method="signs", ratio=0.8).output
        dense = embcompress.expand(small).output
        runs = [
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (small, dense)
        ]
        ids = {runs[0].get_inputs()[0].name: np.arange(8, dtype=np.int64)[None]}
        found, expected = (run.run(None, ids)[0] for run in runs)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_auto_and_comparisons_take_it_in(self, method, tmp_path):
        save_file(small_model().state_dict(), tmp_path / "m.safetensors")
        table = json.loads(
            succeed("report", tmp_path / "m.safetensors", "--key", "0.weight", "--json").stdout
        )
        assert "signs" in table["tables"][0]["comparisons"][0]["errors"]


@pytest.fixture
def toy_file(tmp_path):
    """A file of the toy format, which has joined the registry."""
    files.FILE_FORMATS.append(ToyFile)
    Toy.save(tmp_path / "m.toy", small_model().state_dict())
    yield tmp_path / "m.toy"
    files.FILE_FORMATS.remove(ToyFile)


class TestANewFormat:
    """It goes through all commands, and into models."""

    @pytest.mark.parametrize("method", METHODS)
    def test_it_is_compressed_verified_expanded_and_loaded(self, toy_file, tmp_path, method):
        small = tmp_path / "s.toy"
        ratio = 0.6 if METHODS[method].by_rows else 0.5
        succeed("factorize", toy_file, "--method", method, "--ratio", ratio, "--key", "0.weight", "-o", small)
        assert small.stat().st_size < toy_file.stat().st_size
        assert "as it was written" in succeed("verify", small, "--against", toy_file).stdout
        assert json.loads(succeed("report", small, "--json").stdout)["format"] == "toy"
        with (
            open_checkpoint(embcompress.expand(small).output) as dense,
            open_checkpoint(toy_file) as original,
        ):
            table = torch.from_numpy(dense.rows("0.weight", 0, V))
            assert b"".join(dense.bytes_of("1.weight")) == b"".join(original.bytes_of("1.weight"))
        loaded = embcompress.load(small_model(1), small)
        torch.testing.assert_close(loaded[0](torch.arange(V)), table, rtol=0, atol=1e-5)
        torch.testing.assert_close(loaded[1].weight, small_model()[1].weight, rtol=0, atol=0)

    def test_the_written_size_is_the_predicted_one(self, toy_file, tmp_path):
        options = {"rank": 4, "keys": "0.weight", "output": tmp_path / "s.toy"}
        predicted = embcompress.factorize(toy_file, dry_run=True, **options).size_after
        assert 0 <= predicted - embcompress.factorize(toy_file, **options).output.stat().st_size < 600

    def test_a_file_of_it_that_is_cut_short_is_refused(self, toy_file, tmp_path):
        toy_file.write_bytes(toy_file.read_bytes()[:-1])
        with pytest.raises(embcompress.InputError, match="its header says"):
            embcompress.report(toy_file)


QUOTED = re.compile(r"""--method (svd|pq|lplr|int\d|screen)\b|(["'])(svd|pq|lplr|int[348]|screen)\2""")
"""Names of methods in messages, and as strings."""
IMPORTED = re.compile(r"embcompress\.methods\.(svd|pq|lplr|integer|screen|dense)\b")

MAY_NAME = re.compile(r"methods/(__init__|\w+/\w+)\.py|choices\.py|dtypes\.py|checkpoint/pytorch/\w+\.py")
"""The registry, the methods' folders, what users choose from; and element types, of which int8 is one."""


def test_methods_are_named_in_their_folders_and_the_registry_alone():
    """Whoever else names a method would have to be changed when one joins."""
    named = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not MAY_NAME.fullmatch(name):
            lines = enumerate(path.read_text().splitlines(), 1)
            named += [
                f"{name}:{n}: {line}" for n, line in lines for e in (QUOTED, IMPORTED) if e.search(line)
            ]
    assert not named, "\n".join(named)


def test_a_method_names_none_but_itself():
    """Nor does one method know another; what wraps one goes by the protocol, and stores rows as they are."""
    wrong = []
    for path in sorted((PACKAGE / "methods").glob("*/*.py")):
        own = path.parent.name
        for other in re.findall(r"embcompress\.methods\.(svd|pq|lplr|integer|screen)\b", path.read_text()):
            if other != own:
                wrong.append(f"{own}/{path.name} imports {other}")
    assert not wrong
