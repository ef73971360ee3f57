"""Checkpoints with plain data of Python and NumPy beside the weights, in every protocol."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import io
import pathlib
import pickle
import types
import uuid

import numpy as np
import pytest
import torch

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.checkpoint.pickles.nodes import Global, Made
from embcompress.checkpoint.pickles.reader import load
from embcompress.checkpoint.pickles.writer import dump
from embcompress.checkpoint.pytorch.plain import checked, weights_only

PLAIN = (
    argparse.Namespace(lr=1e-3, layers=[1, 2], best=np.float64(0.5)),
    types.SimpleNamespace(a=1),
    np.float64(0.93),
    np.float32("nan"),
    np.int64(-3),
    np.bool_(True),
    np.datetime64(3, "s"),
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(["a", None, 3], object),
    np.array([], np.int8),
    np.dtype([("a", "<f4"), ("b", "S3")]),
    np.float16,
    collections.defaultdict(int, a=1),
    collections.defaultdict(list, {1: [2]}),
    collections.deque([1, 2], maxlen=3),
    collections.Counter("aab"),
    pathlib.PurePosixPath("data/x"),
    slice(1, None),
    range(1, 9, 2),
    frozenset([1, (2, "x")]),
    {frozenset([1]): {1, 2}},
    1 + 2j,
    datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),  # noqa: UP017
    datetime.timedelta(hours=1),
    decimal.Decimal("1.10"),
    uuid.UUID(int=5),
    b"",
    bytes(range(256)) * 2,
    bytearray(b"xy"),
    1 << 3000,
    -1,
    {(1, ("a", 2)): 3, np.int64(4): 5},
    "ünïcode" * 100,
)


def same(a: object, b: object) -> bool:
    """Whether two objects are equal and of the same type, arrays and NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.flags.f_contiguous == b.flags.f_contiguous and repr(a) == repr(b)
    if isinstance(a, argparse.Namespace):
        return vars(a) == vars(b)
    if isinstance(a, collections.defaultdict):
        return a == b and a.default_factory is b.default_factory
    return bool(a == b)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("take", [checked, weights_only])
def test_plain_data_come_back_equal_and_of_the_same_type(protocol, take):
    data = pickle.dumps(PLAIN, protocol=protocol)
    read = load(data, "model.pt")
    assert read.protocol == protocol
    plain = take(read.root, "model.pt")
    assert plain.notes == ()
    again = pickle.loads(dump(plain.root, protocol=protocol))
    assert len(again) == len(PLAIN)
    for before, after in zip(PLAIN, again, strict=True):
        assert same(before, after), (before, after)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_protocols_3_to_5_are_compressed_and_made_dense_again(tmp_path, protocol, legacy):
    """What torch.load finds in the copy is what it finds in the file, but for the table."""
    torch.manual_seed(0)
    extra = {"epoch": 3, "vocab": {f"w{i}": i for i in range(300)}, "args": argparse.Namespace(lr=1e-3)}
    state = collections.OrderedDict({"embedding.weight": torch.randn(300, 8), "fc.weight": torch.randn(4, 8)})
    path = tmp_path / "model.pt"
    torch.save(
        {"state_dict": state, **extra},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    result = embcompress.factorize(path, rank=7)
    embcompress.expand(result.output, output=tmp_path / "dense.pt")
    for copy in (result.output, tmp_path / "dense.pt"):
        found = torch.load(copy, weights_only=False)
        assert {key: found[key] for key in extra} == extra
        assert torch.equal(found["state_dict"]["fc.weight"], state["fc.weight"])
    model = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(300, 8), "fc": torch.nn.Linear(8, 4, bias=False)}
    )
    embcompress.load(model, result.output)  # although torch.load refuses it by default
    assert torch.equal(model["fc"].weight, state["fc.weight"])
    dense = found["state_dict"]["embedding.weight"]
    assert torch.allclose(model["embedding"](torch.arange(300)), dense, atol=1e-5)
    assert (dense - state["embedding.weight"]).norm() < 0.5 * dense.norm()
    assert embcompress.verify(result.output, against=path).is_right


def test_a_file_of_protocol_4_opens_with_torch_by_default_where_it_holds_weights_only(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"embedding.weight": torch.randn(300, 8)}, path, pickle_protocol=4)
    result = embcompress.factorize(path, rank=2)
    with pytest.warns(UserWarning, match="protocol 4"):
        found = torch.load(result.output, weights_only=True)
    assert found["embedding.0.weight"].shape == (300, 2)


class Words(collections.OrderedDict):
    """A class that only its author has."""


def test_a_subclass_of_ordered_dict_is_carried_and_can_be_the_state_dict(tmp_path):
    state = Words({"embedding.weight": torch.randn(300, 8), "fc.weight": torch.randn(4, 8)})
    state.note = "kept"
    torch.save(state, tmp_path / "model.pt")
    result = embcompress.factorize(tmp_path / "model.pt", rank=2)
    found = torch.load(result.output, weights_only=False)
    assert type(found) is Words
    assert found.note == "kept"
    assert list(found) == ["embedding.0.weight", "embedding.1.weight", "fc.weight"]
    assert embcompress.verify(result.output, against=tmp_path / "model.pt").is_right


def test_a_defaultdict_as_the_state_dict_becomes_one_that_can_hold_the_record(tmp_path):
    state = collections.defaultdict(list, {"embedding.weight": torch.randn(300, 8)})
    torch.save(state, tmp_path / "model.pt")
    result = embcompress.factorize(tmp_path / "model.pt", rank=2)
    assert list(torch.load(result.output)) == ["embedding.0.weight", "embedding.1.weight"]
    assert embcompress.verify(result.output, against=tmp_path / "model.pt").is_right


def test_an_object_is_read_as_class_arguments_entries_and_state():
    data = pickle.dumps(argparse.Namespace(a=[1]), protocol=4)
    made = load(data, "x").root
    assert isinstance(made, Made)
    assert (made.class_name, made.args, made.state, dict(made)) == ("argparse.Namespace", (), {"a": [1]}, {})
    made = load(pickle.dumps(collections.deque([1, 2], 5)), "x").root
    assert (made.function, made.args, made.appended) == (
        Global("collections", "deque"), ((), 5), [1, 2],
    )  # fmt: skip


def test_objects_that_are_shared_or_contain_themselves_survive():
    one = argparse.Namespace()
    one.me, one.other = one, [one]
    again = pickle.loads(dump(load(pickle.dumps((one, one)), "x").root))
    assert again[0] is again[1] is again[0].me is again[0].other[0]


class Plan:
    def __init__(self):
        self.lines = [1]


def test_everything_else_is_dropped_by_name_if_weights_only_are_asked_for():
    """Entries vanish, elements become None, and what is shared stays shared."""
    inner = {"loss": Plan(), "best": np.float64(1)}
    value = {
        "a": [1, Plan(), inner], "b": inner, "words": Words(x=1),
        "args": argparse.Namespace(keep=1, plan=Plan()),
        "pair": (Plan(), 2), "factory": collections.defaultdict(Plan, a=1), "class": Plan,
    }  # fmt: skip
    plain = weights_only(load(pickle.dumps(value), "x").root, "x")
    again = pickle.loads(dump(plain.root))
    assert again["a"][:2] == [1, None]
    assert again["a"][2] is again["b"]
    assert again["b"] == {"best": np.float64(1)}
    assert again["args"] == argparse.Namespace(keep=1)
    assert type(again["words"]) is dict
    assert again["words"] == {"x": 1}
    assert again["pair"] == (None, 2)
    assert again.keys() == {"a", "b", "args", "words", "pair"}
    dropped, plainer = plain.notes
    for path in ("a.1", "a.2.loss", "args.plan", "pair.0", "factory", "class"):
        assert f"'{path}' ({__name__}.Plan)" in dropped
    assert plainer == f"taken as plain dicts: 'words' ({__name__}.Words)"
    for data in (pickle.dumps(Plan()), pickle.dumps([Plan()])):
        assert pickle.loads(dump(weights_only(load(data, "x").root, "x").root)) in (None, [None])


class Key(Words):
    __hash__ = object.__hash__


def test_what_becomes_a_dict_is_no_key_and_no_element():
    value = {"a": {Key(x=1): 1, (2, Key(x=1)): 2, 3: 4}, "b": {5, Key(x=1)}, "c": frozenset([Key(x=1)])}
    plain = weights_only(load(pickle.dumps(value), "x").root, "x")
    again = pickle.loads(dump(plain.root))
    assert again == {"a": {3: 4}, "b": {5, None}, "c": frozenset([None])}


def test_what_verify_compares_stays_small(tmp_path):
    """A long name or text can be referred to a million times; that it differs is still seen."""
    value = {"w": torch.ones(3, 2), "k" * 100_000: [1] * 1000, "text": ["t" * 100_000] * 1000}
    torch.save(value, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        first = checkpoint.remainder()
    assert len(first) > 2000
    assert sum(len(path) + len(str(told)) for path, told in first.items()) < 1_000_000
    torch.save({**value, "text": ["t" * 99_999 + "u"] * 1000}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        second = checkpoint.remainder()
    assert first.keys() == second.keys()
    assert sum(first[path] != second[path] for path in first) == 1000


def test_an_optimizer_saved_whole_is_dropped_by_name(tmp_path):
    """Its state has tensors as keys."""
    model = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer}, tmp_path / "whole.pt")
    with pytest.raises(embcompress.InputError, match=r"Adam under 'optimizer'.*--weights-only"):
        embcompress.factorize(tmp_path / "whole.pt", rank=2)
    result = embcompress.factorize(
        tmp_path / "whole.pt", rank=2, keys=["0.weight"], weights_only=True, output=tmp_path / "small.pt"
    )
    assert any("'optimizer' (torch.optim.adam.Adam)" in note for note in result.notes)
    small = torch.load(tmp_path / "small.pt", weights_only=True)
    assert small.keys() == {"model"}
    embcompress.verify(tmp_path / "small.pt", against=tmp_path / "whole.pt")


def test_tensors_as_keys_are_carried(tmp_path):
    """They keep their bytes, and share them with the state dict where they did."""
    one, two = torch.randn(2, 3), torch.randn(40, 8)
    torch.save({"model": {"embedding.weight": two, "one": one}, "steps": {one: 3}}, tmp_path / "model.pt")
    embcompress.factorize(tmp_path / "model.pt", rank=2, output=tmp_path / "small.pt")
    small = torch.load(tmp_path / "small.pt", weights_only=True)
    ((key, value),) = small["steps"].items()
    assert value == 3
    assert torch.equal(key, one)
    assert key.data_ptr() == small["model"]["one"].data_ptr()
    embcompress.verify(tmp_path / "small.pt", against=tmp_path / "model.pt")


def test_nothing_is_lost_of_what_torch_itself_pickles():
    """An optimizer, a scheduler's state and a generator's state are plain data."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    value = {
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state(),
    }
    buffer = io.BytesIO()
    torch.save(value, buffer)
    read = load(torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue())).get_record("data.pkl"), "x")
    assert checked(read.root, "x").root is read.root
