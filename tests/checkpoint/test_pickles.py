"""The pickle reader and writer, with torch's own restricted unpickler as the oracle."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import _weights_only_unpickler

from embcompress.checkpoint.pickles import reader as pickles
from embcompress.checkpoint.pickles.allowed import ALLOWED
from embcompress.checkpoint.pickles.nodes import (
    DEPTH_LIMIT,
    DROPPED,
    Call,
    Global,
    OrderedMap,
    StorageRef,
)
from embcompress.checkpoint.pickles.reader import load
from embcompress.checkpoint.pickles.writer import dump
from embcompress.checkpoint.pytorch.plain import checked
from embcompress.errors import InputError


def torch_reads(data: bytes):
    return _weights_only_unpickler.load(io.BytesIO(data), encoding="utf-8")


def roundtrip(data: bytes) -> bytes:
    read = load(data, "model.pt")
    return dump(checked(read.root, "model.pt").root, protocol=read.protocol)


def names_in(data: bytes) -> set[str]:
    """Every name in a pickle, as Python's own disassembler finds them."""
    found, texts = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def torch_reads_weights(data: bytes) -> None:
    """What holds no other plain data than torch allows is read by torch, if it is of protocol 2."""
    try:
        names = names_in(data)
    except UnicodeDecodeError:  # the disassembler reads names in ASCII alone, and torch allows no others
        return
    if data[1] == 2 and names <= set(_weights_only_unpickler._get_allowed_globals()):
        torch_reads(data)


def refused(data: bytes) -> InputError:
    with pytest.raises(InputError) as caught:
        checked(load(data, "model.pt").root, "model.pt")
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("model.pt: ")
    assert "\n" not in str(caught.value)
    return caught.value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(min_size=1, max_size=8)  # Python writes b"" as a call of bytes, which torch refuses
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from(
        [torch.float32, torch.Size([2, 3]), torch.device("cpu"), Counter("aab"), bytearray(b"x")]
    )
)
KEYS = st.text(max_size=6) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
        | st.sets(st.integers() | st.text(max_size=3), max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(NESTED)
def test_what_python_pickles_is_read_back_by_torch_the_same_after_our_round_trip(value):
    data = pickle.dumps(value, protocol=2)
    assert torch_reads(data) == value
    written = roundtrip(data)
    assert torch_reads(written) == value
    assert roundtrip(written) == written


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_pickles_give_an_input_error_or_something_torch_reads_too(data):
    """A mutated pickle raises nothing else, and torch reads what we accept and write."""
    good = pickle.dumps(
        {"a": [1, (2, "x" * 300)], "b": OrderedDict(c=1.5), "d": {3, 4}, "e": b"yz"}, protocol=2
    )
    position = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, 3))
    bad = good[:position] + patch + good[position + cut :]
    try:
        written = roundtrip(bad)
    except InputError:
        return
    torch_reads_weights(written)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(pickles._ACTIONS)), max_size=30), st.binary(max_size=20))
def test_random_opcodes_give_an_input_error_or_something_torch_reads_too(codes, tail):
    try:
        written = roundtrip(b"\x80\x02" + b"".join(codes) + tail + b".")
    except InputError:
        return
    torch_reads_weights(written)


def test_every_global_we_accept_is_one_torch_accepts():
    assert set(_weights_only_unpickler._get_allowed_globals()) >= ALLOWED


def test_every_opcode_we_write_is_one_torch_accepts():
    """Whatever the protocol is, what torch.load reads by default is written so that it can."""
    known = {value for value in vars(_weights_only_unpickler).values() if isinstance(value, bytes)}
    value = {"a": [1, (2, "x" * 300), {1: True}], "b": OrderedDict(c=1.5), "d": {3, 4}, "e": 1 << 99}
    for protocol in (2, 3, 4, 5):
        written = roundtrip(pickle.dumps(value, protocol=protocol))
        assert {opcode.code.encode("latin1") for opcode, _, _ in pickletools.genops(written)} <= known
        assert pickle.loads(written) == value


def test_an_object_referenced_twice_is_still_one_object():
    shared = ["x"]
    pair = (1, 2)
    again = torch_reads(
        roundtrip(pickle.dumps({"a": shared, "b": shared, "c": pair, "d": [pair]}, protocol=2))
    )
    assert again["a"] is again["b"]
    assert again["c"] is again["d"][0]


def test_a_list_that_contains_itself_survives():
    loop: list[object] = [1]
    loop.append(loop)
    again = torch_reads(roundtrip(pickle.dumps(loop, protocol=2)))
    assert again[0] == 1
    assert again[1] is again


def test_an_ordered_dict_keeps_its_attributes():
    value = OrderedDict(a=1)
    value._metadata = OrderedDict({"": {"version": 2}})
    data = pickle.dumps(value, protocol=2)
    read = load(data, "model.pt").root
    assert isinstance(read, OrderedMap)
    assert read == {"a": 1}
    assert read.state == {"_metadata": {"": {"version": 2}}}
    assert torch_reads(roundtrip(data))._metadata == value._metadata


def test_more_than_256_memo_entries_need_the_long_form():
    value = [[str(i)] for i in range(600)]
    data = dump(value + value)
    again = torch_reads(data)
    assert again == value + value
    assert again[0] is again[600]


def test_a_tensor_becomes_a_call_and_a_storage_that_nothing_resolves():
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, buffer)
    reader = torch._C.PyTorchFileReader(io.BytesIO(buffer.getvalue()))
    call = load(reader.get_record("data.pkl"), "model.pt").root["w"]
    assert isinstance(call, Call)
    assert call.function == Global("torch._utils", "_rebuild_tensor_v2")
    storage = call.args[0]
    assert isinstance(storage, StorageRef)
    assert (str(storage.kind), storage.key, storage.location, storage.numel) == (
        "torch.FloatStorage", "0", "cpu", 6,
    )  # fmt: skip


def test_replacements_stand_in_and_dropped_nodes_vanish_without_touching_the_original():
    inner, gone = [1], [2]
    root = {"keep": inner, "drop": gone, "list": [gone, 3], "tuple": (gone, 4)}
    again = torch_reads(dump(root, {id(inner): {"new": inner}, id(gone): DROPPED}))
    assert again["list"] == [3]
    assert again["tuple"] == (4,)
    assert "drop" not in again
    assert root["drop"] == [2]


class Exploit:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def test_row_15_pickle_that_runs_code(tmp_path):
    """A pickle that calls os.system is refused by the name of the function, and nothing runs."""
    import os

    proof = tmp_path / "ran"
    error = refused(pickle.dumps(Exploit(os.system, f"touch {proof}"), protocol=2))
    assert f"holds {os.system.__module__}.system, which is code rather than weights" in str(error)
    assert "torch.save(model.state_dict(), path)" in error.remedy
    assert not proof.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "print", "__import__"])
def test_row_15_builtins_are_refused_under_the_old_name_too(name):
    assert f"builtins.{name}" in str(refused(b"\x80\x02c__builtin__\n" + name.encode() + b"\n."))


def test_row_17_foreign_objects_are_named():
    error = refused(pickle.dumps({"loss": [torch.nn.CrossEntropyLoss()]}, protocol=2))
    assert "holds torch.nn.modules.loss.CrossEntropyLoss under 'loss.0'" in str(error)
    assert "--weights-only" in error.remedy


def test_a_hostile_global_name_is_escaped_and_cut():
    text = str(refused(b"\x80\x02c\x1b[31mred\n" + b"x" * 10_000 + b"\n."))
    assert "\x1b" not in text
    assert len(text) < 500


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "left"),
        (b"\x80\x06.", "protocol 6"),
        (b"\x80\x01.", "protocol 1"),
        (b"\x80\x04\x95" + b"\xff" * 8, "a frame of"),
        (b"\x80\x05\x97.", "opcode"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "a field of"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "a field of"),
        (b"\x80\x05\x96" + b"\xff" * 8 + b".", "a field of"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "an integer of"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "an integer of"),
        (b"\x80\x04](K\x01\x90.", "instead of a set"),
        (b"\x80\x04\x8f(]\x90.", "as a dict key"),
        (b"\x80\x04(]\x91.", "as a dict key"),
        (b"\x80\x04K\x01K\x02\x93.", "not text"),
        (b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", "in the place of a name"),
        (b"\x80\x04\x94.", "empty stack"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02h\x07.", "never stored"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "4,294,967,295 bytes"),
        (b"\x80\x02X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x02ccollections", "without end"),
        (b"\x80\x02K\x01K\x02a.", "instead of a list"),
        (b"\x80\x02}]K\x01s.", "as a dict key"),
        (b"\x80\x02K\x01)R.", "a call of int"),
        (b"\x80\x02ctorch\nfloat32\n)R.", "a call of torch.float32"),
        (b"\x80\x02ctorch\nSize\n)R.", "unusual arguments for torch.Size"),
        (b"\x80\x02K\x01}b.", "attributes for a int"),
        (b"\x80\x02K\x01Q.", "not a storage"),
        (b"\x80\x02ctorch\nTensor\n)\x81.", "before 0.4"),
    ],
)
def test_row_82_malformed_pickles_say_what_is_wrong(data, what):
    assert what in str(refused(data))


@pytest.mark.parametrize(("open_", "close"), [(b"]", b"a"), (b"", b"\x85")], ids=["lists", "tuples"])
def test_deep_nesting_is_refused_at_the_limit_and_read_below_it(open_, close):
    def nested(depth: int) -> bytes:
        if open_:
            return b"\x80\x02" + open_ * depth + close * (depth - 1) + b"."
        return b"\x80\x02]" + close * (depth - 1) + b"."

    assert torch_reads(roundtrip(nested(DEPTH_LIMIT))) is not None
    assert f"more than {DEPTH_LIMIT} deep" in str(refused(nested(DEPTH_LIMIT + 1)))
    refused(nested(100_000))


def test_a_tuple_that_contains_itself_is_refused():
    assert "contains itself" in str(refused(b"\x80\x02]q\x00h\x00\x85q\x01ah\x01."))


def test_shared_parts_cannot_be_multiplied():
    """A dozen bytes per copy of a long shared text or list would fill any memory."""
    text = b"\x80\x02c_codecs\nencode\nq\x00(X\x00\x10\x00\x00" + b"a" * 4096 + b"X\x06\0\0\0latin1tq\x01"
    assert "multiply" in str(refused(text + b"h\x00h\x01R" * 10 + b"."))
    many = b"\x80\x02](" + b"K\x01" * 4096 + b"e\x85q\x00cbuiltins\nset\nq\x01"
    assert "multiply" in str(refused(many + b"h\x01h\x00R" * 10 + b"."))


def test_hashing_a_key_stays_cheap():
    """Nested shared tuples hash in time exponential in their number."""
    assert "dict key" in str(refused(b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"Ns."))


def test_counts_are_limited(monkeypatch):
    monkeypatch.setattr(pickles, "OPCODE_LIMIT", 100)
    assert load(b"\x80\x02" + b"N" * 99 + b".", "model.pt").root is None
    assert "more than 100 opcodes" in str(refused(b"\x80\x02" + b"N" * 100 + b"."))
    monkeypatch.setattr(pickles, "PICKLE_LIMIT", 50)
    assert "limited to 50 bytes" in str(refused(b"\x80\x02" + b"N" * 60 + b"."))


def test_special_floats_keep_their_value():
    again = torch_reads(roundtrip(pickle.dumps([math.inf, -0.0, math.nan], protocol=2)))
    assert again[0] == math.inf
    assert math.copysign(1, again[1]) == -1
    assert math.isnan(again[2])
