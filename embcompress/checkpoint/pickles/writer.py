"""Write inert nodes as a pickle; shared nodes stay shared."""

from __future__ import annotations

import pickle as p
import struct
from collections.abc import Iterable

from embcompress.checkpoint.pickles.nodes import (
    DROPPED,
    NO_REPLACEMENTS,
    Call,
    Global,
    Made,
    Replacements,
    StorageRef,
)
from embcompress.errors import InputError

_ENCODE = Global("_codecs", "encode")
_TUPLES = {1: p.TUPLE1, 2: p.TUPLE2, 3: p.TUPLE3}


def dump(root: object, replace: Replacements = NO_REPLACEMENTS, protocol: int = 2) -> bytes:
    """The pickle of ``root`` after replacement.

    Its opcodes are those of protocol 2 where they can be, so that ``torch.load(weights_only=True)`` accepts
    what it holds whatever the protocol is.

    Args:
        root: any node of :mod:`embcompress.checkpoint.pickles.nodes`.
        replace: replacements for nodes, by ``id``.
        protocol: of the pickle that ``root`` comes from, 2 to 5: it tells how names are looked up.

    Raises:
        InputError: after replacement, the nesting is deeper than the stack allows.
    """
    writer = _Writer(replace, protocol)
    try:
        writer.save(root)
    except RecursionError:
        raise InputError("the objects beside the weights are nested too deep to be written") from None
    return p.PROTO + bytes([protocol]) + bytes(writer.out) + p.STOP


class _Writer:
    """Appends opcodes to ``out``; the memo finds texts and globals by value, other nodes by identity."""

    def __init__(self, replace: Replacements, protocol: int) -> None:
        self.replace = replace
        self.protocol = protocol
        self.out = bytearray()
        self.memo: dict[int | str | Global, int] = {}

    def save(self, node: object) -> None:
        node = self.replace.get(id(node), node)
        if node is None:
            self.out += p.NONE
        elif isinstance(node, bool):
            self.out += p.NEWTRUE if node else p.NEWFALSE
        elif isinstance(node, int):
            self.out += _integer(node)
        elif isinstance(node, float):
            self.out += p.BINFLOAT + struct.pack(">d", node)
        elif node == ():
            self.out += p.EMPTY_TUPLE
        elif isinstance(node, StorageRef):
            self.save_storage(node)
        else:
            index = self.memo.get(_memo_key(node))
            if index is None:
                self.save_new(node)
            else:
                self.out += _indexed(p.BINGET, p.LONG_BINGET, index)

    def save_new(self, node: object) -> None:
        """Write a node for the first time, and remember it if it can be referred to again."""
        if isinstance(node, dict):
            self.save_dict(node)
            return
        if isinstance(node, list):
            self.out += p.EMPTY_LIST
            self.remember(node)  # before its items: a list may contain itself
            self.save_items(self.kept(node), p.APPENDS)
            return
        if isinstance(node, str):
            raw = node.encode("utf-8", "surrogatepass")
            self.out += p.BINUNICODE + struct.pack("<I", len(raw)) + raw
        elif isinstance(node, Global):
            self.out += p.GLOBAL + f"{node.module}\n{node.name}\n".encode()
        elif isinstance(node, bytes) and self.protocol > 2:
            self.out += p.BINBYTES + struct.pack("<I", len(node)) + node
        elif isinstance(node, bytes):
            # Protocol 2 has no bytes; like Python's pickle, write them as encoded text.
            self.save(_ENCODE)
            self.save(node.decode("latin1"))
            self.save("latin1")
            self.out += p.TUPLE2 + p.REDUCE
        elif isinstance(node, Call):
            self.save(node.function)
            self.save(node.args)
            self.out += p.REDUCE
        else:
            assert isinstance(node, tuple), type(node)
            self.save_tuple(node)
        self.remember(node)

    def save_tuple(self, node: tuple[object, ...]) -> None:
        kept = self.kept(node)
        if len(kept) > 3 or not kept:
            self.out += p.MARK
        for value in kept:
            self.save(value)
        self.out += _TUPLES.get(len(kept), p.TUPLE)

    def save_dict(self, node: dict[object, object]) -> None:
        if isinstance(node, Made):
            self.save_call(node)
        else:
            self.out += p.EMPTY_DICT
        self.remember(node)
        if isinstance(node, Made):
            self.save_items(self.kept(node.appended or ()), p.APPENDS)
        entries = [entry for entry in node.items() if self.replace.get(id(entry[1])) is not DROPPED]
        self.save_items([part for entry in entries for part in entry], p.SETITEMS)
        if isinstance(node, Made) and node.state is not None:
            self.save(node.state)
            self.out += p.BUILD

    def save_call(self, node: Made) -> None:
        self.save(node.function)
        self.save(node.args)
        if node.keywords is not None:
            self.save(node.keywords)
            self.out += p.NEWOBJ_EX
        else:
            self.out += p.NEWOBJ if node.new else p.REDUCE

    def kept(self, values: Iterable[object]) -> list[object]:
        return [value for value in values if self.replace.get(id(value)) is not DROPPED]

    def save_items(self, items: list[object], opcode: bytes) -> None:
        if items:
            self.out += p.MARK
            for item in items:
                self.save(item)
            self.out += opcode

    def save_storage(self, ref: StorageRef) -> None:
        """Write the persistent id anew each time: torch identifies storages by their keys."""
        self.out += p.MARK
        for field in ("storage", ref.kind, ref.key, ref.location, ref.numel):
            self.save(field)
        self.out += p.TUPLE + p.BINPERSID

    def remember(self, node: object) -> None:
        index = len(self.memo)
        self.memo[_memo_key(node)] = index
        self.out += _indexed(p.BINPUT, p.LONG_BINPUT, index)


def _memo_key(node: object) -> int | str | Global:
    return node if isinstance(node, str | Global) else id(node)


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    return short + bytes([index]) if index < 256 else long + struct.pack("<I", index)


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return p.BININT1 + bytes([value])
    if 0 <= value < 1 << 16:
        return p.BININT2 + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return p.BININT + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) < 256:
        return p.LONG1 + bytes([len(raw)]) + raw
    return p.LONG4 + struct.pack("<i", len(raw)) + raw
