"""Files with several state dicts, and tables that stand in none: bare tensors, tuples, caches of vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.checkpoints import assert_refused, run
from torch import nn

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.base import Reading
from embcompress.checkpoint.pytorch.state import BARE_KEY
from embcompress.errors import UsageError


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"embedding": nn.Embedding(300, 8), "fc": nn.Linear(8, 4)})


def table(seed: int = 0, rows: int = 300) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def made(path, **options):
    """A smaller copy of ``path``, verified against it, and its expanded copy."""
    result = embcompress.factorize(path, rank=7, **options)
    checked = embcompress.verify(result.output, against=path)
    assert checked.is_right, checked.differences
    dense = embcompress.expand(result.output, output=path.with_name("dense.pt"), force=True).output
    return torch.load(result.output, weights_only=False), torch.load(dense, weights_only=False), result


TUPLES = {
    "list": lambda s, o: [s, o],
    "tuple": lambda s, o: (s, 3, o),
    "nested": lambda s, o: (3, {"net": s, "optimizer": o}),
}


@pytest.mark.parametrize("wrap", TUPLES.values(), ids=TUPLES)
def test_a_state_dict_in_a_list_or_tuple_is_found(tmp_path, wrap):
    """It comes back in its place, with everything beside it."""
    one = model()
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.5)
    saved = wrap(one.state_dict(), optimizer.state_dict())
    torch.save(saved, tmp_path / "model.pt")
    small, dense, result = made(tmp_path / "model.pt")
    assert type(small) is type(dense) is type(saved)
    assert len(small) == len(dense) == len(saved)
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        keys = checkpoint.container
    assert any("the state dict stands under" in note for note in result.notes)
    for key in keys:
        saved, small, dense = saved[key], small[key], dense[key]
    assert list(small) == ["embedding.0.weight", "embedding.1.weight", "fc.weight", "fc.bias"]
    assert torch.equal(dense["fc.weight"], saved["fc.weight"])
    assert (dense["embedding.weight"] - saved["embedding.weight"]).norm() < 0.6 * saved[
        "embedding.weight"
    ].norm()
    two = embcompress.load(model(1), result.output)
    assert torch.equal(two["fc"].weight, saved["fc.weight"])


PLACES = {
    "alone": (lambda t: t, ()),
    "Parameter": (nn.Parameter, ()),
    "torchtext": (lambda t: ([f"w{i}" for i in range(300)], {f"w{i}": i for i in range(300)}, t, 8), (2,)),
    "list": (lambda t: ["name", {"dim": 8}, [t, torch.zeros(3)]], (2, 0)),
}


@pytest.mark.parametrize(("wrap", "keys"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_bare_tensor_is_a_table_and_comes_back_bare(tmp_path, wrap, keys, legacy):
    """In between, a state dict of its parts stands in its place, which plain PyTorch and ``load`` read."""
    saved = wrap(table())
    torch.save(saved, tmp_path / "vectors.pt", _use_new_zipfile_serialization=not legacy)
    small, dense, result = made(tmp_path / "vectors.pt")
    assert any("here called embedding.weight" in note for note in result.notes)
    if isinstance(saved, tuple | list):
        assert [*small[: keys[0]]] == [*saved[: keys[0]]] == [*dense[: keys[0]]]
        assert small[3:] == saved[3:] == dense[3:]
    for key in keys:
        small, dense = small[key], dense[key]
    assert isinstance(dense, torch.Tensor)
    assert isinstance(dense, nn.Parameter) == isinstance(saved, nn.Parameter)
    assert dense.shape == (300, 8)
    factors = nn.Sequential(nn.Embedding(300, 7), nn.Linear(7, 8, bias=False))
    nn.ModuleDict({"embedding": factors}).load_state_dict(small)
    assert torch.allclose(factors(torch.arange(300)), dense, atol=1e-5)
    one = nn.ModuleDict({"embedding": nn.Embedding(300, 8)})
    embcompress.load(one, result.output)
    assert torch.allclose(one["embedding"](torch.arange(300)), dense, atol=1e-5)


def test_the_tensor_of_a_bare_table_is_read_for_torch(tmp_path):
    torch.save((["a"], table()), tmp_path / "vectors.pt")
    with open_checkpoint(tmp_path / "vectors.pt") as checkpoint:
        assert torch.equal(checkpoint.torch_state()["embedding.weight"], table())
        assert checkpoint.remainder().keys() == {"", "[0]", "[0][0]"}


def test_every_method_reads_a_bare_table(tmp_path):
    torch.save(table(rows=2000), tmp_path / "vectors.pt")
    for method in ("pq", "int8", "screen", "lplr"):
        result = embcompress.factorize(tmp_path / "vectors.pt", ratio=0.5, method=method)
        assert embcompress.verify(result.output, against=tmp_path / "vectors.pt").is_right
        dense = embcompress.expand(result.output).output
        assert torch.load(dense).shape == (2000, 8)


def several(path):
    """Teacher and student, and a moving average of the student."""
    value = {
        "student": model(0).state_dict(),
        "ema": model(1).state_dict(),
        "nets": {"teacher": model(2).state_dict()},
    }
    torch.save(value, path)
    return value


@pytest.mark.parametrize(("name", "keys"), [("ema", ["ema"]), ("nets.teacher", ["nets", "teacher"])])
def test_state_chooses_among_state_dicts(tmp_path, name, keys):
    """The copy's record says which it was: verify and load find it by themselves, report --against too."""
    saved = several(tmp_path / "model.pt")
    small, dense, result = made(tmp_path / "model.pt", state=name)
    for other in ("student",):
        assert torch.equal(small[other]["embedding.weight"], saved[other]["embedding.weight"])
    for key in keys:
        saved, small, dense = saved[key], small[key], dense[key]
    assert "embedding.0.weight" in small
    loaded = embcompress.load(model(5), result.output)
    assert torch.equal(loaded["fc"].weight, saved["fc.weight"])
    report = embcompress.report(result.output, against=tmp_path / "model.pt")
    assert report.compressed[0].measured_error == pytest.approx(report.compressed[0].recorded_error, rel=1e-3)
    assert f"--state {name}" in _command(result.output)


def _command(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.description.command


def test_a_state_dict_under_a_position_can_be_chosen(tmp_path):
    torch.save([model(0).state_dict(), model(1).state_dict()], tmp_path / "model.pt")
    small, _, _ = made(tmp_path / "model.pt", state="1")
    assert "embedding.weight" in small[0]
    assert "embedding.0.weight" in small[1]


def test_a_matrix_can_be_chosen_among_several(tmp_path):
    torch.save([table(0), table(1)], tmp_path / "vectors.pt")
    said = "holds 2 matrices and no names; choose one with --state: 0, 1"
    assert_refused(tmp_path, "report", tmp_path / "vectors.pt", code=2, says=said)
    small, dense, _ = made(tmp_path / "vectors.pt", state="1")
    assert torch.equal(small[0], table(0))
    assert torch.equal(dense[0], table(0))
    assert dense[1].shape == (300, 8)


def test_twins_are_named_with_the_way_to_take_them(tmp_path):
    several(tmp_path / "model.pt")
    notes = embcompress.report(tmp_path / "model.pt").notes
    assert any(
        "'ema' holds other tensors of the same names" in n and "--state ema takes it instead" in n
        for n in notes
    )


def test_a_compressed_copy_has_no_choice_and_its_dense_one_says_how_to_choose(tmp_path):
    """Only the record says which state dict is meant, and the dense copy has none."""
    several(tmp_path / "model.pt")
    small = embcompress.factorize(tmp_path / "model.pt", rank=2, state="ema").output
    notes = embcompress.report(small).notes
    assert any("same names" in note for note in notes)
    assert not any("--state" in note for note in notes)
    dense = embcompress.expand(small)
    assert any("--state may take another state dict of the output than 'ema'" in n for n in dense.notes)
    with open_checkpoint(dense.output) as checkpoint:
        assert checkpoint.container != ("ema",)
    small = embcompress.factorize(tmp_path / "model.pt", rank=2, force=True).output
    assert not any("--state" in note for note in embcompress.expand(small, force=True).notes)


def test_row_78_no_state_dict_of_that_name(tmp_path):
    """The refusal names the choices; where there is none, it says so."""
    several(tmp_path / "model.pt")
    said = "--state average: holds no such state dict; choose one of student, ema, nets.teacher"
    for command in (("report",), ("factorize", "--rank", 2)):
        assert_refused(
            tmp_path, command[0], tmp_path / "model.pt", *command[1:], "--state", "average", code=2, says=said
        )
    torch.save(model().state_dict(), tmp_path / "model.pt")
    said = "leave out --state"
    assert_refused(tmp_path, "report", tmp_path / "model.pt", "--state", "ema", code=2, says=said)


def test_row_78_formats_with_one_state_dict(tmp_path):
    np.save(tmp_path / "vectors.npy", table().numpy())
    (tmp_path / "vectors.vocab.txt").write_text("\n".join(f"w{i}" for i in range(300)))
    (tmp_path / "model").mkdir()
    torch.save(model().state_dict(), tmp_path / "model" / "pytorch_model.bin")
    for name in ("vectors.npy", "model"):
        said = "only a PyTorch file can hold several state dicts; leave it out"
        assert_refused(tmp_path, "report", tmp_path / name, "--state", "ema", code=2, says=said)
        assert run("report", tmp_path / name, "--weights-only").exit_code == 0


def test_row_79_a_second_state_dict_of_a_compressed_file(tmp_path):
    """One state dict of a file is compressed: its record must be found without being told where."""
    several(tmp_path / "model.pt")
    small = embcompress.factorize(tmp_path / "model.pt", rank=2, state="ema").output
    said = "'ema' in it is compressed already"
    assert_refused(tmp_path, "factorize", small, "--rank", 2, "--state", "student", code=2, says=said)
    with open_checkpoint(small, reading=Reading(state="ema")) as checkpoint:
        assert checkpoint.description.tables


TABLELESS = {
    "a vector": (torch.zeros(5), "holds one tensor of float32, shape [5]"),
    "integers": (torch.zeros(5, 3, dtype=torch.int64), "holds one tensor of int64, shape [5, 3]"),
    "a cube": (torch.zeros(5, 3, 2), "shape [5, 3, 2]"),
    "sparse": (torch.eye(3).to_sparse(), "holds one tensor, and a table is a dense matrix"),
    "lists": ([1, [2, torch.zeros(3)]], "holds no dict of tensors"),
    "deep": ([[[[table()]]]], "holds no dict of tensors"),
}


@pytest.mark.parametrize(("value", "said"), TABLELESS.values(), ids=TABLELESS)
def test_row_80_tensors_that_are_no_table(tmp_path, value, said):
    torch.save(value, tmp_path / "model.pt")
    assert_refused(tmp_path, "report", tmp_path / "model.pt", code=3, says=said)


def test_what_marks_a_bare_table_is_no_difference_to_anything_else(tmp_path):
    """A state dict of one table is not taken for a bare one."""
    torch.save(nn.Embedding(300, 8).state_dict(), tmp_path / "model.pt")
    small, dense, _ = made(tmp_path / "model.pt", keys="weight")
    assert BARE_KEY not in small._metadata
    assert dense.keys() == {"weight"}


def test_state_is_checked_before_anything_is_written(tmp_path):
    several(tmp_path / "model.pt")
    with pytest.raises(UsageError):
        embcompress.factorize(tmp_path / "model.pt", rank=2, state="")
    assert [*tmp_path.iterdir()] == [tmp_path / "model.pt"]
