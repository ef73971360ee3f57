"""The contract of every format in the registry: what goes in, what comes out, and back again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.formats import TYPES, WRITERS, Safetensors, TorchZip, model
from helpers.quick import quick
from helpers.refusals import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model

import embcompress
from embcompress.checkpoint import FORMATS, open_checkpoint
from embcompress.errors import UsageError


@pytest.fixture(params=[w for writers in WRITERS.values() for w in writers], ids=lambda w: w.__name__)
def writer(request):
    return request.param


def saved(writer, tmp_path, tensors):
    path = tmp_path / f"model{writer.suffix}"
    writer.save(path, tensors)
    return path


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_every_format_is_tested_here():
    """Every format in the registry must have a writer and a reader here."""
    assert {f.format for f in FORMATS} == set(WRITERS)


@pytest.mark.parametrize("dtype", TYPES)
def test_factorize_writes_the_best_factors_and_carries_the_rest(writer, tmp_path, dtype):
    """The product of the written factors is the truncated SVD; all other tensors are untouched."""
    tensors = model(TYPES[dtype])
    path = saved(writer, tmp_path, tensors)
    result = embcompress.factorize(path, rank=6, output=tmp_path / f"small{writer.suffix}")
    stored = writer.load(result.output)
    left, right = stored["embedding.0.weight"], stored["embedding.1.weight"]
    assert (left.shape, right.shape) == ((120, 6), (24, 6))
    assert left.dtype == right.dtype == TYPES[dtype]

    dense = tensors["embedding.weight"].double().numpy()
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    optimum = np.linalg.norm(s[6:]) / np.linalg.norm(s)
    product = left.double().numpy() @ right.double().numpy().T
    error = np.linalg.norm(product - dense) / np.linalg.norm(dense)
    rounding = torch.finfo(TYPES[dtype]).eps
    assert error == pytest.approx(optimum, rel=1e-5 if dtype == "float32" else 1e-3)
    np.testing.assert_allclose(product, (u[:, :6] * s[:6]) @ vt[:6], atol=10 * rounding)
    assert result.tables[0].relative_error == pytest.approx(error, rel=1e-5)
    assert not left[0].any(), "the padding row stays zero"
    for name in ("fc.weight", "fc.bias", "steps", "mask"):
        assert same(stored[name], tensors[name])
    assert result.tables[0].ties == ("lm_head.weight",)
    assert "lm_head.weight" not in stored


def test_expand_brings_back_names_types_and_ties(writer, tmp_path):
    """Every name of the original is back; the table is the product, the rest is identical."""
    tensors = model()
    small = embcompress.factorize(saved(writer, tmp_path, tensors), rank=6).output
    dense = writer.load(embcompress.expand(small).output)
    assert set(dense) == set(tensors)
    stored = writer.load(small)
    product = stored["embedding.0.weight"] @ stored["embedding.1.weight"].T
    for name in ("embedding.weight", "lm_head.weight"):
        torch.testing.assert_close(dense[name], product, atol=1e-6, rtol=0)
    for name in ("fc.weight", "fc.bias", "steps", "mask"):
        assert same(dense[name], tensors[name])


def test_output_describes_itself(writer, tmp_path):
    """Version, hash of the source and every figure of the table are in the file and can be checked."""
    path = saved(writer, tmp_path, model())
    result = embcompress.factorize(path, ratio=0.5)
    with open_checkpoint(result.output) as small, open_checkpoint(path) as source:
        described = small.description
        assert described.version == embcompress.__version__
        assert described.source == {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in source.weight_files
        }
        (record,) = described.tables
    assert (record.name, record.shape, record.dtype, record.method) == (
        "embedding.weight",
        (120, 24),
        "F32",
        "svd",
    )
    assert record.relative_error == result.tables[0].relative_error
    assert record.rank == result.tables[0].rank
    assert record.ratio == pytest.approx(1 - record.rank * (120 + 24) / (120 * 24))
    assert record.ties == ("lm_head.weight",)


def test_the_same_input_gives_the_same_bytes(writer, tmp_path):
    """Two runs write identical outputs."""
    path = saved(writer, tmp_path, model())
    outputs = [
        embcompress.factorize(path, rank=4, output=tmp_path / f"out{i}{writer.suffix}").output for i in (1, 2)
    ]
    digests = [
        {f.name: f.read_bytes() for f in ([output] if output.is_file() else output.iterdir())}
        for output in outputs
    ]
    assert list(digests[0].values()) == list(digests[1].values())


def test_the_input_is_not_touched(writer, tmp_path):
    """The source keeps its bytes, whatever is done."""
    path = saved(writer, tmp_path, model())
    files = [path] if path.is_file() else sorted(path.iterdir())
    before = [f.read_bytes() for f in files]
    embcompress.report(path)
    embcompress.factorize(path, rank=4, dry_run=True)
    embcompress.expand(embcompress.factorize(path, rank=4).output)
    assert [f.read_bytes() for f in files] == before


@pytest.mark.parametrize("command", ["factorize", "expand"])
def test_an_input_that_changes_meanwhile_gives_no_output(tmp_path, command):
    """When the source is written to while it is read, nothing is published."""
    path = saved(Safetensors, tmp_path, model())
    if command == "expand":
        path = embcompress.factorize(path, rank=6, output=tmp_path / "small.safetensors").output
    before = sorted(tmp_path.iterdir())

    def meddle(stage, done, total):
        if stage == "verify" and done == total:
            os.utime(path, ns=(1, 1))

    options = {"rank": 6} if command == "factorize" else {}
    with refused(embcompress.InputError, "changed"):
        getattr(embcompress, command)(path, output=tmp_path / "out.safetensors", progress=meddle, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_report_tells_what_factorize_then_does(writer, tmp_path):
    """Ranks and errors that report predicts are those of the written output, and --against measures them."""
    path = saved(writer, tmp_path, model())
    (table,) = embcompress.report(path).tables
    assert (table.name, table.shape, table.ties) == ("embedding.weight", (120, 24), ("lm_head.weight",))
    assert table.heads == 1
    assert table.flops == 2 * 120 * 24
    for option in table.options:
        output = tmp_path / f"r{option.ratio}{writer.suffix}"
        result = embcompress.factorize(path, ratio=option.ratio, output=output)
        assert result.tables[0].rank == option.rank
        assert result.tables[0].bytes_after == option.table_bytes
        assert result.tables[0].relative_error == pytest.approx(option.relative_error, rel=1e-4)
        assert option.flops == 2 * option.rank * 24 + 2 * option.rank * (24 + 120)
        (again,) = embcompress.report(output, against=path).compressed
        assert again.measured_error == pytest.approx(again.recorded_error, rel=1e-6)


def test_max_size_bounds_the_written_file(writer, tmp_path):
    """The written weights are at most as large as asked for, and not much smaller."""
    path = saved(writer, tmp_path, model(rows=4000, columns=64))
    limit = 400_000
    result = embcompress.factorize(path, max_size=limit)
    with open_checkpoint(result.output) as small:
        assert small.size == result.size_after
        assert limit * 0.97 < small.size <= limit


def test_the_size_is_predicted(writer, tmp_path):
    """A dry run tells the size of the written weights, to a few hundred bytes a tensor."""
    path = saved(writer, tmp_path, model(rows=4000, columns=64))
    predicted_errors = embcompress.factorize(path, rank=9, dry_run=True).size_after
    written = embcompress.factorize(path, rank=9).size_after
    assert written <= predicted_errors <= written + 256 * 12


def test_max_size_counts_what_an_optimizer_loses(tmp_path):
    """Moments of the replaced table are dropped, so they do not count."""
    layers = torch.nn.Sequential(torch.nn.Embedding(3000, 32), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(layers.parameters())
    layers(torch.arange(10)).sum().backward()
    optimizer.step()
    state = {"model": layers.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "run.pt")
    limit = 201_000  # the moments alone take 768,000 bytes
    result = embcompress.factorize(tmp_path / "run.pt", max_size=limit, keys="0.weight")
    assert limit * 0.95 < result.output.stat().st_size <= limit


@pytest.mark.parametrize("dtype", quick(["float32", "float16", "bfloat16"], "float16"))
def test_max_error_holds_for_what_is_written(tmp_path, dtype):
    """Rounding included, the measured error is at most the one asked for, or the target is refused."""
    rng = np.random.default_rng(0)
    table = torch.from_numpy((rng.standard_normal((3000, 48)) * np.logspace(0, -6, 48)).astype(np.float32))
    Safetensors.save(tmp_path / "m.safetensors", {"embedding.weight": table})
    met = 0
    options = {"dtype": dtype, "output": tmp_path / "o", "force": True}
    for error in np.geomspace(2e-4, 0.3, 25):
        try:
            result = embcompress.factorize(tmp_path / "m.safetensors", max_error=float(error), **options)
        except embcompress.TargetError:
            continue
        met += 1
        assert result.tables[0].relative_error <= error
    assert met >= 15, "most targets can be met"


def test_a_dry_run_writes_nothing(writer, tmp_path):
    """The plan is complete, and the folder is unchanged."""
    path = saved(writer, tmp_path, model())
    before = sorted(tmp_path.iterdir())
    result = embcompress.factorize(path, rank=4, dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    assert not result.written
    assert result.tables[0].relative_error is None
    assert result.tables[0].predicted_error > 0


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from(list(TYPES)), st.data())
@pytest.mark.parametrize("kind", [Safetensors, TorchZip])
def test_factorize_then_expand_is_the_low_rank_product(tmp_path_factory, kind, rows, columns, dtype, data):
    """It is, for tables of any shape and type that can be made smaller."""
    limit = (rows * columns - 1) // (rows + columns)
    rank = data.draw(st.integers(1, max(1, min(limit, rows, columns))))
    tensors = model(TYPES[dtype], rows, columns, seed=data.draw(st.integers(0, 99)))
    folder = tmp_path_factory.mktemp("any")
    path = saved(kind, folder, tensors)
    if not limit:
        with pytest.raises(embcompress.TargetError):
            embcompress.factorize(path, rank=rank)
        assert list(folder.iterdir()) == [path]
        return
    small = embcompress.factorize(path, rank=rank).output
    stored = kind.load(small)
    product = stored["embedding.0.weight"].double() @ stored["embedding.1.weight"].double().T
    dense = kind.load(embcompress.expand(small).output)["embedding.weight"]
    torch.testing.assert_close(
        dense.double(), product, atol=4 * torch.finfo(TYPES[dtype]).eps, rtol=torch.finfo(TYPES[dtype]).eps
    )
    assert Path(small).stat().st_size > 0


def test_tensors_are_handed_to_torch(writer, tmp_path):
    """The whole state dict or some tensors, as the format's own library reads them; a graph has none."""
    tensors = model()
    path = saved(writer, tmp_path, tensors)
    with open_checkpoint(path) as checkpoint:
        if writer.suffix == ".onnx":
            with pytest.raises(UsageError, match="ONNX model, graph and all; run it with onnxruntime"):
                checkpoint.torch_state()
            return
        state = checkpoint.torch_state()
        assert state.keys() == tensors.keys()
        assert all(same(state[name], tensors[name]) for name in tensors)
        some = checkpoint.torch_state(["steps", "embedding.weight"])
        assert some.keys() == {"steps", "embedding.weight"}
        assert all(same(some[name], tensors[name]) for name in some)
        assert checkpoint.torch_state([]) == {}
        matrix = super(type(checkpoint), checkpoint).torch_state(["embedding.weight", "fc.weight"])
        assert all(same(matrix[name], tensors[name]) for name in matrix), "what a new format has for nothing"


def test_names_that_share_memory_share_it_in_torch(tmp_path):
    """A head that is tied stays tied, however deep the state dict stands in a training checkpoint."""
    tensors = model()
    torch.save({"epoch": 1, "state": {"model": tensors}}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        state = checkpoint.torch_state()
    assert state.keys() == tensors.keys()
    assert state["lm_head.weight"].data_ptr() == state["embedding.weight"].data_ptr()


def test_names_that_metadata_note_are_read_too(tmp_path):
    """``save_model`` stores a shared tensor once; it can be requested under its other name."""
    tied = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(3, 4, bias=False), "b": torch.nn.Linear(3, 4, bias=False)}
    )
    tied["b"].weight = tied["a"].weight
    save_model(tied, str(tmp_path / "model.safetensors"))
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert len(checkpoint.torch_state()) == 1
        both = checkpoint.torch_state(["a.weight", "b.weight"])
    assert all(torch.equal(value, tied["a"].weight) for value in both.values())
