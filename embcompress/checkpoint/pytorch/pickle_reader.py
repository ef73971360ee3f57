"""Read a torch pickle as inert data: an interpreter for the opcodes that torch accepts, calling nothing.

``torch.load(weights_only=True)`` accepts a small part of pickle protocol 2. This reader accepts no
more than that and builds the nodes of :mod:`embcompress.checkpoint.pytorch.pickle_nodes` instead of objects.
Every count and length is checked against the available bytes before anything is allocated for it.
For the opcodes see https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import mmap
import pickle as p
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from embcompress.checkpoint.pytorch.pickle_globals import ALLOWED, HASHABLE, REBUILD, SIGNATURES
from embcompress.checkpoint.pytorch.pickle_nodes import Call, Global, OrderedMap, StorageRef, check_nesting
from embcompress.errors import InputError

PICKLE_LIMIT = 128 << 20
"""Longest pickle accepted, in bytes; a million-word vocabulary saved with the weights takes about 20 MB."""
OPCODE_LIMIT = 10_000_000
"""Most opcodes accepted. Each makes at most one object, so this bounds the memory."""

SAVE_AGAIN = "save the state dict alone: torch.save(model.state_dict(), path)"
_KEY_PARTS = 16
"""Most scalars in a tuple that is used as a dict key."""


@dataclass(frozen=True)
class Loaded:
    """One pickle: its object, and the position just after it."""

    root: Any
    end: int


def load(data: bytes | mmap.mmap, where: str, start: int = 0, legacy: bool = False) -> Loaded:
    """Read the pickle that begins at ``start``.

    Args:
        data: bytes of the pickle, possibly followed by others.
        where: name of the file, for error messages.
        start: first byte of the pickle.
        legacy: whether storages have the sixth field of the format before torch 1.6.

    Raises:
        InputError: the pickle is malformed, too large, or names anything but weights.
    """
    reader = _Reader(data, where, start, legacy)
    root = reader.run()
    check_nesting(root, where)
    return Loaded(root, reader.position)


class _Reader:
    """A stack machine that reads one pickle."""

    def __init__(self, data: bytes | mmap.mmap, where: str, start: int, legacy: bool) -> None:
        self.data = data
        self.where = where
        self.start = self.position = start
        self.end = min(len(data), start + PICKLE_LIMIT)
        self.legacy = legacy
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self) -> Any:
        opcodes = 0
        while (code := self.take(1)) != p.STOP:
            action = _ACTIONS.get(code)
            if action is None:
                self.fail(f"opcode {code!r}, which torch.load(weights_only=True) does not accept")
            if opcodes == OPCODE_LIMIT:
                self.fail(f"more than {OPCODE_LIMIT:,} opcodes")
            opcodes += 1
            action(self)
        return self.pop()

    def fail(self, what: str, remedy: str = SAVE_AGAIN) -> NoReturn:
        raise InputError(f"{self.where}: its pickle has {what} (byte {self.position - self.start:,})", remedy)

    # -- bytes, stack and budget -------------------------------------------------------------

    def take(self, count: int) -> bytes:
        if count > self.end - self.position:
            left = self.end - self.position
            limit = f"; a pickle is limited to {PICKLE_LIMIT:,} bytes" if self.end < len(self.data) else ""
            self.fail(f"a field of {count:,} bytes where {left:,} are left{limit}", "download it again")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            self.fail("a name without end", "download it again")
        return self.text(self.take(stop + 1 - self.position)[:-1])

    def text(self, raw: bytes, errors: str = "strict") -> str:
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError:
            self.fail("text that is not UTF-8")

    def pop(self) -> Any:
        if not self.stack:
            self.fail("an empty stack where an object is needed")
        return self.stack.pop()

    def top(self) -> Any:
        self.stack.append(self.pop())
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            self.fail("no mark where one is needed")
        items, self.stack = self.stack, self.marked.pop()
        return items

    def spend(self, count: int) -> None:
        """Count copied elements, so that one shared list or text cannot be copied a million times."""
        self.copied += count
        if self.copied > self.position - self.start:
            self.fail("objects that multiply when read")

    def key(self, value: Any) -> Any:
        """A checked dict key or set element. Hashing must be cheap, so a tuple may hold few scalars only."""
        plain = str | int | float | bytes | Global | None
        parts = value if isinstance(value, tuple) else (value,)
        hashable = isinstance(value, Call) and str(value.function) in HASHABLE
        if not hashable and not (len(parts) <= _KEY_PARTS and all(isinstance(part, plain) for part in parts)):
            self.fail(f"a {type(value).__name__} as a dict key")
        return value

    # -- actions -----------------------------------------------------------------------------

    def protocol(self) -> None:
        if (version := self.take(1)[0]) != 2:
            self.fail(f"protocol {version}, torch.save writes 2")

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def integer(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def remember(self, layout: str) -> None:
        self.memo[self.number(layout)] = self.top()

    def recall(self, layout: str) -> None:
        index = self.number(layout)
        if index not in self.memo:
            self.fail(f"a reference to object {index:,}, which was never stored")
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def marked_tuple(self) -> None:
        items = self.pop_mark()  # restores the stack below the mark, so it must come first
        self.stack.append(tuple(items))

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.fail(f"items for a {type(target).__name__} instead of a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            self.fail(f"{len(items):,} keys and values for a {type(target).__name__}")
        for i in range(0, len(items), 2):
            target[self.key(items[i])] = items[i + 1]

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def name(self) -> None:
        module, name = self.line(), self.line()
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if path not in ALLOWED:
            raise InputError(
                f"{self.where}: holds {path[:200]}, which is code rather than weights", SAVE_AGAIN
            )
        self.stack.append(_GLOBALS[path])

    def new_object(self) -> None:
        args, cls = self.pop(), self.pop()
        if args != () or not isinstance(cls, Global) or str(cls) != "collections.OrderedDict":
            self.fail("an object of torch before 0.4", "load and save it with a newer torch")
        self.stack.append(OrderedMap())

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        path = str(function) if isinstance(function, Global) else ""
        if type(args) is not tuple or not (path in REBUILD or path in SIGNATURES):
            self.fail(f"a call of {path or type(function).__name__}")
        if path in SIGNATURES and not SIGNATURES[path](args):
            self.fail(f"unusual arguments for {path}")
        if path == "collections.OrderedDict":
            made: Any = self.ordered(args)
        elif path == "_codecs.encode":
            self.spend(len(args[0]))
            made = args[0].encode("latin1")
        else:
            if path == "builtins.set":
                self.spend(len(args[0]))
                args = (
                    [self.key(element) for element in args[0]],
                )  # a copy: the list may change later, a set's elements must not
            made = Call(function, args)
        self.stack.append(made)

    def ordered(self, args: tuple[Any, ...]) -> OrderedMap:
        """An OrderedDict; Python 2 pickled its entries as the only argument."""
        made = OrderedMap()
        for pair in args[0] if args else ():
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                self.fail("unusual arguments for collections.OrderedDict")
            self.spend(1)
            made[self.key(pair[0])] = pair[1]
        return made

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if type(target) is not OrderedMap or type(state) is not dict or target.state is not None:
            self.fail(f"attributes for a {type(target).__name__}")
        target.state = state

    def storage(self) -> None:
        pid = self.pop()
        fields = 6 if self.legacy else 5
        if type(pid) is not tuple or len(pid) != fields or pid[0] != "storage":
            self.fail("a persistent object that is not a storage")
        kind, key, location, numel = pid[1:5]
        if not isinstance(kind, Global) or not kind.name.endswith("Storage") or kind.name == "TypedStorage":
            self.fail("a storage of unknown kind")
        if not isinstance(key, str) or not isinstance(location, str):
            self.fail("a storage without key or location")
        if type(numel) is not int or not 0 <= numel < 1 << 63:
            self.fail(f"a storage of {numel} elements; sizes lie in 0 to 2^63")
        if self.legacy and pid[5] is not None:
            self.fail("a storage that is a view of another one", "load and save it with torch 1.6 or newer")
        self.stack.append(StorageRef(kind, key, location, numel))


_GLOBALS = {path: Global(*path.rsplit(".", 1)) for path in ALLOWED}
"""One node per name: a file can name it ten million times."""

_ACTIONS: dict[bytes, Callable[[_Reader], None]] = {
    p.PROTO: _Reader.protocol,
    p.GLOBAL: _Reader.name,
    p.NEWOBJ: _Reader.new_object,
    p.REDUCE: _Reader.call,
    p.BUILD: _Reader.build,
    p.BINPERSID: _Reader.storage,
    p.MARK: _Reader.mark,
    p.APPEND: lambda r: r.extend([r.pop()]),
    p.APPENDS: lambda r: r.extend(r.pop_mark()),
    p.SETITEM: _Reader.set_item,
    p.SETITEMS: lambda r: r.set_items(r.pop_mark()),
    p.TUPLE: _Reader.marked_tuple,
    p.TUPLE1: lambda r: r.tuple_of(1),
    p.TUPLE2: lambda r: r.tuple_of(2),
    p.TUPLE3: lambda r: r.tuple_of(3),
    p.EMPTY_TUPLE: lambda r: r.stack.append(()),
    p.EMPTY_LIST: lambda r: r.stack.append([]),
    p.EMPTY_DICT: lambda r: r.stack.append({}),
    p.EMPTY_SET: lambda r: r.stack.append(Call(_GLOBALS["builtins.set"], ([],))),
    p.NONE: lambda r: r.stack.append(None),
    p.NEWTRUE: lambda r: r.stack.append(True),
    p.NEWFALSE: lambda r: r.stack.append(False),
    p.BININT: lambda r: r.stack.append(r.number("<i")),
    p.BININT1: lambda r: r.stack.append(r.number("<B")),
    p.BININT2: lambda r: r.stack.append(r.number("<H")),
    p.LONG1: _Reader.integer,
    p.BINFLOAT: lambda r: r.stack.append(r.number(">d")),
    p.BINUNICODE: lambda r: r.stack.append(r.text(r.take(r.number("<I")), "surrogatepass")),
    p.SHORT_BINSTRING: lambda r: r.stack.append(r.text(r.take(r.number("<B")))),
    p.BINGET: lambda r: r.recall("<B"),
    p.LONG_BINGET: lambda r: r.recall("<I"),
    p.BINPUT: lambda r: r.remember("<B"),
    p.LONG_BINPUT: lambda r: r.remember("<I"),
}
