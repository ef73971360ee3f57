"""The torch format, with torch itself as the oracle for what is read and for what is written."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.refusals import refused
from torch import nn

from embcompress.checkpoint.base import Edit, NewParameters
from embcompress.checkpoint.description import Description, TableRecord
from embcompress.checkpoint.pytorch.file import TorchFile
from embcompress.checkpoint.rows import rows_of
from embcompress.checkpoint.tensors import NewTensor
from embcompress.dtypes import DTYPES
from embcompress.errors import InputError, UsageError

VOCABULARY, WIDTH, RANK = 20, 6, 2
NOTHING = Edit(frozenset(), ())


def saved(path, value, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def loaded(path):
    return torch.load(path, weights_only=True)


def factor(name, shape, replaces, dtype="F32", seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    halves = [values[: len(values) // 2], values[len(values) // 2 :]]
    return NewTensor(name, DTYPES[dtype], shape, replaces, lambda: iter(halves))


def split(table="0.weight", stem="0", dtype="F32", aliases=()):
    """The edit that factorizes a V×d table."""
    left = factor(f"{stem}.0.weight", (VOCABULARY, RANK), table, dtype)
    right = factor(f"{stem}.1.weight", (WIDTH, RANK), table, dtype, seed=1)
    parameters = NewParameters(1, (left.shape, right.shape))
    return Edit(frozenset({table}), (left, right), dict(aliases), parameters={table: parameters})


def values_of(new):
    return np.concatenate(list(new.blocks()))


def described(error=0.25):
    record = TableRecord(
        "0.weight", (VOCABULARY, WIDTH), "F32", "svd", RANK, "F32", 32, 0.5, error, ("0.weight", "1.weight")
    )
    return Description("0.1", {"model.pt": "ab" * 32}, (record,))


def rewritten(source, target, edit=NOTHING, description=None):
    with TorchFile.open(source) as file:
        warnings = file.write(target, edit, description)
    with TorchFile.open(target) as file:
        file.check_integrity()
    return warnings


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3))


def factorized_model():
    embedding = nn.Sequential(nn.Embedding(VOCABULARY, RANK), nn.Linear(RANK, WIDTH, bias=False))
    return nn.Sequential(embedding, nn.Linear(WIDTH, 3))


def trained(optimizer_class, **options):
    net = model()
    optimizer = optimizer_class(net.parameters(), lr=0.1, **options)
    net(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    return net, optimizer


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "row_22_legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_rows_are_those_torch_loads(tmp_path, dtype, legacy):
    table = torch.randn(VOCABULARY, WIDTH).to(dtype)
    path = saved(tmp_path / "model.pt", {"emb.weight": table, "other": torch.arange(3)}, legacy)
    with TorchFile.open(path) as file:
        assert list(file.tensors) == ["emb.weight", "other"]
        info = file.tensors["emb.weight"]
        assert (info.dtype.torch, info.shape) == (str(dtype).removeprefix("torch."), (VOCABULARY, WIDTH))
        assert info.nbytes == table.nbytes
        rows = file.rows("emb.weight", 3, 9)
        assert rows.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert rows.tolist() == table[3:9].tolist()
        assert file.size == path.stat().st_size
        file.check_integrity()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_row_39_tables_that_are_not_contiguous_are_read(tmp_path, legacy):
    base = torch.arange(600.0).reshape(20, 30)
    views = {"transposed": base.T, "columns": base[:, 4:9], "strided": base[1::3, ::2], "rows": base[5:8]}
    with TorchFile.open(saved(tmp_path / "model.pt", views, legacy)) as file:
        for name, view in views.items():
            rows = file.rows(name, 1, 3)
            assert rows.tolist() == view[1:3].tolist()
            rows[:] = 0  # the caller's own
            assert file.rows(name, 1, 3).tolist() == view[1:3].tolist()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_row_39_other_tensors_are_listed_refused_as_tables_and_carried(tmp_path):
    """Sparse, quantized, meta, complex, packed and overlapping tensors survive a rewrite unchanged."""
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(4, 5, device="meta"),
        "complex": torch.randn(2, 2, dtype=torch.complex64),
        "negative": torch.randn(2, 2, dtype=torch.complex64).conj().imag,
        "expanded": torch.zeros(1).expand(50, 50),
        "unsigned": torch.arange(4).to(torch.uint16).reshape(2, 2),
        "float8": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "fine": torch.ones(2, 2),
        "step": 7,
    }
    path = saved(tmp_path / "model.pt", odd)
    with TorchFile.open(path) as file:
        layouts = {name: info.layout for name, info in file.tensors.items()}
        assert layouts == {
            "sparse": "sparse", "csr": "sparse", "meta": "meta", "complex": "dense", "negative": "object",
            "expanded": "object", "unsigned": "dense", "float8": "dense", "parameter": "dense",
            "fine": "dense",
        }  # fmt: skip
        assert file.tensors["meta"].shape == (4, 5)
        assert file.tensors["sparse"].shape == (3, 3)
        for name in set(layouts) - {"parameter", "fine"}:
            with refused(InputError, name):
                rows_of(file, name)
        for name in set(layouts) - {"parameter", "fine", "unsigned"}:
            with refused(InputError, name):
                file.rows(name, 0, 1)
        assert file.rows("unsigned", 1, 2).tolist() == [[2, 3]]
        assert file.rows("parameter", 0, 2).tolist() == [[1, 1], [1, 1]]
    rewritten(path, tmp_path / "out.pt")
    again = loaded(tmp_path / "out.pt")
    assert list(again) == list(odd)
    assert again["meta"].is_meta
    assert again["step"] == 7
    for name in ("sparse", "csr"):
        assert torch.equal(again[name].to_dense(), odd[name].to_dense())
    for name in ("complex", "negative", "expanded", "unsigned", "parameter"):
        assert torch.equal(again[name], odd[name]), name
    assert torch.equal(again["float8"].float(), odd["float8"].float())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_row_39_quantized_tensors_are_carried(tmp_path):
    value = torch.quantize_per_tensor(torch.arange(6.0).reshape(2, 3), 0.5, 1, torch.qint8)
    path = saved(tmp_path / "model.pt", {"q": value, "w": torch.ones(2)})
    with TorchFile.open(path) as file:
        assert (file.tensors["q"].layout, file.tensors["q"].shape) == ("quantized", (2, 3))
    rewritten(path, tmp_path / "out.pt")
    assert torch.equal(loaded(tmp_path / "out.pt")["q"].dequantize(), value.dequantize())


def test_names_that_share_memory_are_aliases(tmp_path):
    table = torch.randn(4, 3)
    state = {
        "a": table,
        "b": table,
        "same values": table.clone(),
        "part": table[:2],
        "e": table[:0],
        "f": table[:0],
    }
    with TorchFile.open(saved(tmp_path / "model.pt", state)) as file:
        assert file.aliases == {"b": "a"}


@pytest.mark.parametrize(
    ("wrap", "container"),
    [
        (lambda s: s, ()),
        (lambda s: {"state_dict": s, "epoch": 3}, ("state_dict",)),
        (lambda s: {"ema": {k: v.clone() for k, v in s.items()}, "model": s}, ("model",)),
        (
            lambda s: {"checkpoint": {"net": s}, "rng": torch.zeros(100, dtype=torch.uint8)},
            ("checkpoint", "net"),
        ),
        (lambda s: {"stats": {"mean": torch.zeros(2)}, "encoder": s}, ("encoder",)),
        (lambda s: {**s, "model": {"x": torch.zeros(1)}}, ()),
    ],
)
def test_the_state_dict_is_found_wherever_it_stands(tmp_path, wrap, container):
    state = model().state_dict()
    with TorchFile.open(saved(tmp_path / "model.pt", wrap(state))) as file:
        assert file.container == container
        assert set(state) <= set(file.tensors)
        where = [note for note in file.notes if note.startswith("the state dict stands")]
        assert bool(where) == bool(container)
        assert all(".".join(container) in note for note in where)
        twins = [note for note in file.notes if "same names" in note]
        assert bool(twins) == (container == ("model",)), "a moving average beside the model is told"


def test_opening_and_writing_needs_no_torch(tmp_path):
    path = saved(tmp_path / "model.pt", model().state_dict())
    code = (
        "import sys; from pathlib import Path; from embcompress.checkpoint.pytorch.file import TorchFile;"
        "f = TorchFile.open(Path(sys.argv[1])); f.rows('0.weight', 0, 2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "row_22_legacy"])
def test_an_empty_edit_carries_everything(tmp_path, legacy):
    net = model()
    value = {"model": net.state_dict(), "epoch": 3, "lr": 0.1, "names": ["a", ("b", None)], "flag": True}
    rewritten(saved(tmp_path / "model.pt", value, legacy), tmp_path / "out.pt")
    again = loaded(tmp_path / "out.pt")
    assert {k: v for k, v in again.items() if k != "model"} == {
        k: v for k, v in value.items() if k != "model"
    }
    assert type(again["model"]) is OrderedDict
    assert again["model"]._metadata == net.state_dict()._metadata
    net.load_state_dict(again["model"])
    assert all(torch.equal(again["model"][k], v) for k, v in value["model"].items())
    assert torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)["epoch"] == 3


def test_factors_take_the_tables_place_and_load_strictly(tmp_path):
    path = saved(tmp_path / "model.pt", model().state_dict())
    edit = split()
    rewritten(path, tmp_path / "out.pt", edit, described())
    again = loaded(tmp_path / "out.pt")
    assert list(again) == ["0.0.weight", "0.1.weight", "1.weight", "1.bias"]
    factorized_model().load_state_dict(again, strict=True)
    assert np.array_equal(again["0.0.weight"].numpy(), values_of(edit.add[0]))
    assert torch.equal(again["1.weight"], loaded(path)["1.weight"])
    assert (tmp_path / "out.pt").stat().st_size < path.stat().st_size


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "U8"])
def test_new_tensors_have_the_dtype_asked_for(tmp_path, dtype):
    path = saved(tmp_path / "model.pt", {"0.weight": nn.Parameter(torch.ones(VOCABULARY, WIDTH))})
    new = NewTensor(
        "0.codes", DTYPES[dtype], (2, 2), "0.weight", lambda: iter([np.full((2, 2), 3.0, np.float32)])
    )
    rewritten(path, tmp_path / "out.pt", Edit(frozenset({"0.weight"}), (new,)))
    again = loaded(tmp_path / "out.pt")["0.codes"]
    assert str(again.dtype) == f"torch.{DTYPES[dtype].torch}"
    assert type(again) is nn.Parameter
    assert again.requires_grad == DTYPES[dtype].is_table
    assert again.tolist() == [[3, 3], [3, 3]]


def test_an_empty_guard_tensor_can_be_written(tmp_path):
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2, 2)})
    guard = NewTensor("w", DTYPES["F32"], (0,), "w", lambda: iter([]))
    rewritten(path, tmp_path / "out.pt", Edit(frozenset({"w"}), (guard,)))
    assert loaded(tmp_path / "out.pt")["w"].shape == (0,)


def test_aliases_of_new_tensors_share_their_storage(tmp_path):
    table = torch.randn(VOCABULARY, WIDTH)
    path = saved(tmp_path / "model.pt", {"0.weight": table, "head.weight": table})
    edit = split(aliases={"head.1.weight": "0.0.weight", "head.0.weight": "0.1.weight"})
    edit = Edit(edit.remove | {"head.weight"}, edit.add, edit.aliases)
    rewritten(path, tmp_path / "out.pt", edit)
    again = loaded(tmp_path / "out.pt")
    assert again["head.1.weight"].data_ptr() == again["0.0.weight"].data_ptr()
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 2


def test_another_state_dict_that_shares_the_storages_follows(tmp_path):
    state = model().state_dict()
    path = saved(tmp_path / "model.pt", {"model": dict(state), "ema": dict(state)})
    rewritten(path, tmp_path / "out.pt", split())
    again = loaded(tmp_path / "out.pt")
    assert [*again["ema"]] == [*again["model"]] == ["0.0.weight", "0.1.weight", "1.weight", "1.bias"]
    assert again["ema"]["0.0.weight"].data_ptr() == again["model"]["0.0.weight"].data_ptr()
    assert again["ema"]["1.bias"].data_ptr() == again["model"]["1.bias"].data_ptr()


def test_the_location_of_the_replaced_tensor_is_kept(tmp_path):
    path = saved(tmp_path / "model.pt", model().state_dict())
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "cuda.pt", "w") as moved:
        for name in archive.namelist():
            data = archive.read(name)
            on_gpu = data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
            moved.writestr(name, on_gpu if name.endswith("data.pkl") else data)
    rewritten(tmp_path / "cuda.pt", tmp_path / "out.pt", split())
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        data = archive.read("archive/data.pkl")
    assert b"cuda:0" in data
    assert b"cpu" not in data


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_row_24_small_views_of_large_storages_come_out_small(tmp_path, legacy):
    big = torch.randn(1000, 1000)
    middle, odd = big[500:510], big[700, 3:8]
    path = saved(tmp_path / "model.pt", {"middle": middle, "odd": odd[:0], "w": torch.ones(3)}, legacy)
    assert path.stat().st_size > 4_000_000
    rewritten(path, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").stat().st_size < 50_000
    again = loaded(tmp_path / "out.pt")
    assert torch.equal(again["middle"], middle)
    assert again["odd"].shape == (0,)


def test_row_24_views_keep_their_place_in_a_trimmed_storage(tmp_path):
    """Two views of one storage, one of them at an odd offset, still share memory after the cut."""
    big = torch.randn(100_000)
    state = {"a": big[70_001:70_011], "b": big[70_005:70_099].reshape(2, 47)}
    rewritten(saved(tmp_path / "model.pt", state), tmp_path / "out.pt")
    again = loaded(tmp_path / "out.pt")
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["b"], state["b"])
    again["a"][4] = 5
    assert again["b"][0, 0] == 5
    assert (tmp_path / "out.pt").stat().st_size < 5_000


def test_row_24_a_storage_of_which_nothing_is_used_comes_out_empty(tmp_path):
    """A tensor without elements keeps its shape and type, and none of the bytes it was cut from."""
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2), "none": torch.randn(100_000)[:0].reshape(0, 3)})
    rewritten(path, tmp_path / "out.pt")
    again = loaded(tmp_path / "out.pt")
    assert (again["none"].shape, again["none"].dtype) == ((0, 3), torch.float32)
    assert (tmp_path / "out.pt").stat().st_size < 5_000


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_a_storage_that_is_saved_as_such_is_not_trimmed(tmp_path):
    big = torch.arange(1000.0)
    path = saved(tmp_path / "model.pt", {"w": torch.ones(2), "raw": big.untyped_storage()})
    rewritten(path, tmp_path / "out.pt")
    assert loaded(tmp_path / "out.pt")["raw"].tolist() == big.untyped_storage().tolist()


def test_a_factor_may_not_take_the_name_of_a_tensor_that_stays(tmp_path):
    state = {"0.weight": torch.ones(VOCABULARY, WIDTH), "0.1.weight": torch.ones(1)}
    with (
        TorchFile.open(saved(tmp_path / "model.pt", state)) as file,
        refused(UsageError, "0.1.weight"),
    ):
        file.check_edit(split())


def test_writing_is_deterministic_and_reports_its_progress(tmp_path):
    path = saved(tmp_path / "model.pt", model().state_dict())
    calls: list[tuple[str, int, int]] = []
    with TorchFile.open(path) as file:
        file.write(tmp_path / "1.pt", split(), described(), lambda *call: calls.append(call))
        file.write(tmp_path / "2.pt", split(), described())
    assert (tmp_path / "1.pt").read_bytes() == (tmp_path / "2.pt").read_bytes()
    stage, done, total = calls[-1]
    assert stage == "write"
    assert done == total == 4 * (VOCABULARY * RANK + WIDTH * RANK + 3 * WIDTH + 3)


# -- description ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_the_description_is_read_back_amended_and_removed(tmp_path, kind):
    path = saved(tmp_path / "model.pt", {"model": kind(model().state_dict()), "epoch": 3})
    out = tmp_path / "out.pt"
    rewritten(path, out, split(), described(0.25))
    with TorchFile.open(out) as file:
        assert file.description == described(0.25)
    TorchFile.amend(out, described(0.123456789012345))
    with TorchFile.open(out) as file:
        file.check_integrity()
        assert file.description == described(0.123456789012345)
        file.write(tmp_path / "plain.pt", NOTHING, None)
    again = loaded(out)
    assert again["epoch"] == 3
    assert json.loads(again["model"]._metadata["embcompress"])["layout"] == 1
    factorized_model().load_state_dict(again["model"], strict=True)
    with TorchFile.open(tmp_path / "plain.pt") as file:
        assert file.description is None
    assert "embcompress" not in loaded(tmp_path / "plain.pt")["model"]._metadata


# -- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (torch.optim.AdamW, {"amsgrad": True})],
)
@pytest.mark.parametrize("place", ["dict", "lightning list"])
def test_the_optimizer_fits_the_factorized_model(tmp_path, optimizer_class, options, place):
    """The moments of the other parameters arrive at the parameters they belong to."""
    net, optimizer = trained(optimizer_class, **options)
    inside = optimizer.state_dict() if place == "dict" else [optimizer.state_dict()]
    path = saved(tmp_path / "model.pt", {"state_dict": net.state_dict(), "optimizer_states": inside})
    warnings = rewritten(path, tmp_path / "out.pt", split())
    assert warnings == (
        "the optimizer's moments of the changed table were dropped; its other moments are kept",
    )
    again = loaded(tmp_path / "out.pt")
    small = factorized_model()
    small.load_state_dict(again["state_dict"])
    fresh = optimizer_class(small.parameters(), lr=0.5, **options)
    fresh.load_state_dict(again["optimizer_states"] if place == "dict" else again["optimizer_states"][0])
    assert fresh.param_groups[0]["lr"] == 0.1
    for old, new in ((net[1].weight, small[1].weight), (net[1].bias, small[1].bias)):
        for key, value in optimizer.state[old].items():
            assert torch.equal(fresh.state[new][key], value)
    assert not fresh.state[small[0][0].weight]
    small(torch.tensor([1, 2])).sum().backward()
    fresh.step()


def test_an_optimizer_without_moments_gets_the_number_of_parameters_right(tmp_path):
    """Plain SGD keeps no moments, so the table's position is unknown, and nothing is lost."""
    net, optimizer = trained(torch.optim.SGD)
    path = saved(tmp_path / "model.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    warnings = rewritten(path, tmp_path / "out.pt", split())
    assert not warnings
    fresh = torch.optim.SGD(factorized_model().parameters(), lr=0.5)
    fresh.load_state_dict(loaded(tmp_path / "out.pt")["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.1


def test_two_entries_of_the_tables_shape_are_too_many(tmp_path):
    """An untied head of the same shape could be meant; no moment may go to the wrong parameter."""
    net = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.tensor([1])).sum().backward()
    optimizer.step()
    path = saved(tmp_path / "model.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    rewritten(path, tmp_path / "out.pt", split())
    again = loaded(tmp_path / "out.pt")["optimizer"]
    assert again["state"] == {}
    assert len(again["param_groups"][0]["params"]) == 3


def test_an_optimizer_with_several_uncertain_groups_is_dropped(tmp_path):
    net = model()
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    path = saved(
        tmp_path / "model.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    )
    warnings = rewritten(path, tmp_path / "out.pt", split())
    assert "was dropped" in warnings[0]
    assert set(loaded(tmp_path / "out.pt")) == {"model", "epoch"}


def test_named_parameters_leave_their_stale_names_behind(tmp_path):
    net = model()
    optimizer = torch.optim.Adam(net.named_parameters())
    net(torch.tensor([1])).sum().backward()
    optimizer.step()
    path = saved(tmp_path / "model.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    rewritten(path, tmp_path / "out.pt", split())
    fresh = torch.optim.Adam(factorized_model().named_parameters())
    fresh.load_state_dict(loaded(tmp_path / "out.pt")["optimizer"])
    assert fresh.param_groups[0]["param_names"][0] == "0.0.weight"


def test_an_edit_that_removes_nothing_leaves_the_optimizer_alone(tmp_path):
    net, optimizer = trained(torch.optim.Adam)
    path = saved(tmp_path / "model.pt", {"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    assert rewritten(path, tmp_path / "out.pt") == ()
    fresh = torch.optim.Adam(net.parameters())
    fresh.load_state_dict(loaded(tmp_path / "out.pt")["optimizer"])
    assert torch.equal(fresh.state[net[0].weight]["exp_avg"], optimizer.state[net[0].weight]["exp_avg"])
