"""Whole modules, TorchScript archives and programs; torch's own state dicts are the oracle."""

from __future__ import annotations

import re
import zipfile

import pytest
import torch
from helpers.checkpoints import assert_refused
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Reading
from embcompress.checkpoint.pytorch import modules
from embcompress.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

WEIGHTS_ONLY = Reading(weights_only=True)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("cache", torch.arange(2.0), persistent=False)
        self.attribute = torch.ones(2)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) + self.attribute.sum()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))
        self.embedding = nn.Embedding(300, 8)
        self.body = Body()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.lstm = nn.LSTM(8, 8)
        self.head = nn.Linear(8, 300, bias=False)
        self.head.weight = self.embedding.weight
        self.names = ["a", "b"]
        self.nothing = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.embedding(x).mean(1)) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def scripted(path):
    torch.jit.script(net()).save(str(path))


def traced(path):
    torch.jit.trace(net(), torch.zeros(2, 5, dtype=torch.long)).save(str(path))


def whole(path, **options):
    torch.save(net(), path, **options)


SAVED = {
    "zip": whole,
    "legacy": lambda path: whole(path, _use_new_zipfile_serialization=False),
    "protocol 5": lambda path: whole(path, pickle_protocol=5),
    "scripted": scripted,
    "traced": traced,
}


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_the_state_dict_is_the_one_that_the_module_gives(tmp_path, save):
    """Names, order, values and ties are those of ``state_dict()``."""
    save(tmp_path / "model.pt")
    expected = net().state_dict()
    with open_checkpoint(tmp_path / "model.pt", reading=WEIGHTS_ONLY) as checkpoint:
        if save in (scripted, traced):  # which do not say what is persistent
            expected = torch.jit.load(tmp_path / "model.pt").state_dict()
        assert list(checkpoint.tensors) == list(expected)
        assert checkpoint.aliases == {"head.weight": "embedding.weight"}
        checkpoint.check_integrity()
        left = 8 if save in (scripted, traced) else 16
        assert (
            any(note.startswith(f"{left} bytes were left out") for note in checkpoint.notes) or save is traced
        )
        found = checkpoint.torch_state()
        assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_the_copy_is_a_state_dict_that_torch_and_every_command_reads(tmp_path, save):
    save(tmp_path / "model.pt")
    result = embcompress.factorize(tmp_path / "model.pt", rank=7, weights_only=True)
    assert any("nn.Module" in note or "TorchScript" in note for note in result.notes)
    found = torch.load(result.output)
    assert found["head.0.weight"].data_ptr() == found["embedding.0.weight"].data_ptr()
    assert embcompress.verify(result.output, against=tmp_path / "model.pt").is_right
    assert embcompress.report(result.output, against=tmp_path / "model.pt").compressed[0].measured_error < 0.6
    embcompress.expand(result.output, output=tmp_path / "dense.pt")
    dense = torch.load(tmp_path / "dense.pt")
    if save not in (scripted, traced):
        model, same, tokens = embcompress.load(net(), result.output), net(), torch.arange(10).reshape(2, 5)
        same.load_state_dict(dense)
        assert torch.allclose(model(tokens), same(tokens), atol=1e-5)


def test_a_graph_module_is_a_module(tmp_path):
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 2)))
    torch.save(graph, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt", reading=WEIGHTS_ONLY) as checkpoint:
        assert list(checkpoint.tensors) == list(graph.state_dict())


def test_modules_beside_other_things_become_state_dicts(tmp_path):
    """As in the checkpoints of YOLO; modules without tensors are dropped."""
    value = {"epoch": 3, "model": net(), "ema": net(), "loss": nn.CrossEntropyLoss(), "optimizer": None}
    torch.save(value, tmp_path / "model.pt")
    said = "holds a whole nn.Module under 'model'"
    assert_refused(tmp_path, "report", tmp_path / "model.pt", code=3, says=said)
    result = embcompress.factorize(tmp_path / "model.pt", rank=7, weights_only=True)
    found = torch.load(result.output)
    assert found.keys() == {"epoch", "model", "ema", "optimizer"}
    assert "embedding.0.weight" in found["model"]
    assert torch.equal(found["ema"]["embedding.weight"], net().embedding.weight)
    assert any("'loss' (torch.nn.modules.loss.CrossEntropyLoss)" in note for note in result.notes)
    assert embcompress.verify(result.output, against=tmp_path / "model.pt").is_right


@pytest.mark.parametrize("save", [whole, scripted, traced])
def test_row_74_a_whole_module_or_script_is_called_by_its_name(tmp_path, save):
    save(tmp_path / "model.pt")
    said = (
        "is a TorchScript archive" if save is not whole else f"is a whole nn.Module, of class {__name__}.Net"
    )
    assert_refused(tmp_path, "report", tmp_path / "model.pt", code=3, says=said)
    assert_refused(
        tmp_path, "expand", tmp_path / "model.pt", code=3, says="--weights-only to take its state dict"
    )


def test_row_75_a_program_of_torch_export(tmp_path):
    """The message says what it is, whatever its suffix; what it tells to do works."""
    program = torch.export.export(net().body, (torch.zeros(2, 8),))
    for name in ("program.pt2", "program.pt"):
        torch.export.save(program, tmp_path / "program.pt2")
        (tmp_path / "program.pt2").rename(tmp_path / name)
        for options in ([], ["--weights-only"]):
            said = "is a program of torch.export"
            assert_refused(tmp_path, "report", tmp_path / name, *options, code=3, says=said)
    (tmp_path / name).rename(tmp_path / "program.pt2")
    torch.save(torch.export.load(tmp_path / "program.pt2").state_dict, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert "linear.weight" in checkpoint.tensors


def rezipped(path, change):
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            code = name.endswith(".py")
            if (data := change(name, data)) is not None:
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if code else zipfile.ZIP_STORED)


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, reading=WEIGHTS_ONLY)
    return str(caught.value)


def test_row_76_scripts_whose_code_is_missing_or_does_not_end(tmp_path, monkeypatch):
    """Their code is unpacked in pieces, and only searched for names."""
    path = tmp_path / "model.pt"
    monkeypatch.setattr(modules, "_CODE_LIMIT", 1 << 20)
    scripted(path)
    rezipped(path, lambda n, d: None if n.endswith("sparse.py") else d)
    assert "its code lacks __torch__.torch.nn.modules.sparse" in refusal(path)
    scripted(path)
    rezipped(path, lambda n, d: d + b"#" * (1 << 20) if n.endswith("sparse.py") else d)
    assert "its code has more than" in refusal(path)
    scripted(path)
    rezipped(path, lambda n, d: d.replace(b'"weight"', b'"forward"') if n.endswith("sparse.py") else d)
    with open_checkpoint(path, reading=WEIGHTS_ONLY) as checkpoint:
        assert "embedding.weight" not in checkpoint.tensors


def test_row_120_a_frozen_script(tmp_path):
    """Its weights are constants, and its state dict is empty."""
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 2)).eval()
    torch.jit.freeze(torch.jit.script(model)).save(tmp_path / "model.pt")
    assert "without parameters: if it is frozen" in refusal(tmp_path / "model.pt")


def test_row_120_a_file_that_torch_save_has_left_unfinished(tmp_path):
    """It is not taken for an archive of word vectors."""
    with pytest.raises(RuntimeError, match="not pickle"):
        torch.save(Unsaveable(), tmp_path / "model.pt")
    assert zipfile.is_zipfile(tmp_path / "model.pt")
    assert "is a zip without data.pkl" in refusal(tmp_path / "model.pt")


class Unsaveable:
    def __reduce__(self):
        raise RuntimeError("not pickled")


def module(**inside):
    made = nn.Module()
    made._modules.update(inside)
    return made


def test_row_77_modules_that_contain_each_other_without_end(tmp_path):
    """Names would multiply, or never end; how many there may be depends on the size of the file."""
    path, twice = tmp_path / "model.pt", nn.Linear(1, 1)
    for _ in range(40):
        twice = module(a=twice, b=twice)
    inside = module()
    inside._modules["self"] = inside
    shared = nn.Linear(1, 1)
    for _ in range(12):
        shared = module(a=shared, b=shared)
    many = [module(a=shared) for _ in range(20)]
    for value, said in ((twice, "too often"), (inside, "limit 1,024|too deep"), (many, "too often")):
        torch.save(value, path)
        assert re.search(said, refusal(path))


def test_no_name_of_a_module_is_looked_up(tmp_path):
    """What a script or module is called may be the name of anything."""
    path = tmp_path / "model.pt"
    scripted(path)
    rezipped(
        path,
        lambda n, d: re.sub(rb"^(..)c.*\n.*\n", rb"\1cposix\nsystem\n", d) if n.endswith("data.pkl") else d,
    )
    assert "holds no module" in refusal(path)
