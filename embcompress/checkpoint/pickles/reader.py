"""Read a pickle of protocol 2 to 5 as inert data: an interpreter for its opcodes that calls nothing.

It builds the nodes of :mod:`embcompress.checkpoint.pickles.nodes` instead of objects, whatever their
class; each format says which of them may stay. Opcodes that protocols below 2 or registries of extensions
need are refused. Every count and length is checked against the available bytes before anything is
allocated for it.
For the opcodes see https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import mmap
import pickle as p
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from embcompress.checkpoint.pickles.allowed import (
    ALLOWED,
    HASHABLE,
    OLD_MODULES,
    OLD_NAMES,
    REBUILD,
    SIGNATURES,
)
from embcompress.checkpoint.pickles.nodes import (
    Call,
    Global,
    Made,
    OrderedMap,
    StorageRef,
    check_nesting,
)
from embcompress.errors import InputError

PICKLE_LIMIT = 128 << 20
"""Longest pickle accepted, in bytes; a million-word vocabulary saved with the weights takes about 20 MB."""
OPCODE_LIMIT = 10_000_000
"""Most opcodes accepted. Each makes at most one object, so this bounds the memory."""

AGAIN = "download it again"
SAVE_AGAIN = "save the state dict alone: torch.save(model.state_dict(), path)"
_KEY_PARTS = 32
"""Most objects in a tuple that is used as a dict key, with those in tuples inside it."""
_KEYS = HASHABLE | REBUILD
"""Functions whose results may be dict keys: plain values, and tensors, as in the state of an optimizer."""
_INTEGER_LIMIT = 1024
"""Most bytes of an integer: Python prints no number of more than 4,300 digits."""
PROTOCOLS = range(2, 6)
"""Versions of the pickle format that are read."""


@dataclass(frozen=True)
class Loaded:
    """One pickle.

    Attributes:
        root: its object, as inert nodes.
        end: the position just after it.
        protocol: the version of the format, 2 to 5.
    """

    root: Any
    end: int
    protocol: int


def load(data: bytes | mmap.mmap, where: str, start: int = 0, legacy: bool = False) -> Loaded:
    """Read the pickle that begins at ``start``.

    Args:
        data: bytes of the pickle, possibly followed by others.
        where: name of the file, for error messages.
        start: first byte of the pickle.
        legacy: whether storages have the sixth field of the format before torch 1.6.

    Raises:
        InputError: the pickle is malformed or too large.
    """
    reader = _Reader(data, where, start, legacy)
    root = reader.run()
    check_nesting(root, where)
    return Loaded(root, reader.position, reader.version)


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
        self.names: dict[tuple[str, str], Global] = {}
        self.version = 2
        self.copied = 0

    def run(self) -> Any:
        opcodes = 0
        while (code := self.take(1)) != p.STOP:
            action = _ACTIONS.get(code)
            if action is None:
                self.fail(f"opcode {code!r}, which pickles of protocol 2 to 5 do not need")
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
            self.fail(f"a field of {count:,} bytes where {left:,} are left{limit}", AGAIN)
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            self.fail("a name without end", AGAIN)
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
        """A checked dict key or set element. Hashing must be cheap, so a tuple may hold few objects only."""
        plain = str | int | float | bytes | Global | None
        parts, left = [value], _KEY_PARTS
        while parts:
            part = parts.pop()
            left -= 1
            if isinstance(part, tuple) and len(part) <= left:
                parts.extend(part)
            elif not left or not (
                isinstance(part, plain)
                or type(part) is Made  # told apart by identity, whatever they would be equal to
                or (isinstance(part, Call) and str(part.function) in _KEYS)
            ):
                self.fail(f"a {type(value).__name__} as a dict key")
        return value

    # -- actions -----------------------------------------------------------------------------

    def protocol(self) -> None:
        self.version = self.take(1)[0]
        if self.version not in PROTOCOLS:
            self.fail(
                f"protocol {self.version}, and {PROTOCOLS[0]} to {PROTOCOLS[-1]} can be read",
                "load it and save it again: torch.save(torch.load(path), path)",
            )

    def frame(self) -> None:
        """The length of what follows, which its reader need not know."""
        if (count := self.number("<Q")) > self.end - self.position:
            self.fail(f"a frame of {count:,} bytes where {self.end - self.position:,} are left", AGAIN)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def integer(self, layout: str) -> None:
        count = self.number(layout)
        if not 0 <= count <= _INTEGER_LIMIT:
            self.fail(f"an integer of {count:,} bytes, and {_INTEGER_LIMIT:,} are read")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def text_of(self, layout: str) -> None:
        self.stack.append(self.text(self.take(self.number(layout)), "surrogatepass"))

    def bytes_of(self, layout: str) -> None:
        self.stack.append(self.take(self.number(layout)))

    def bytearray_of(self) -> None:
        self.stack.append(Call(_GLOBALS["builtins.bytearray"], (self.take(self.number("<Q")),)))

    def remember(self, layout: str) -> None:
        self.memo[self.number(layout)] = self.top()

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

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
        if type(target) is Made:
            target.appended = [] if target.appended is None else target.appended
            target = target.appended
        if type(target) is not list:
            self.fail(f"items for a {type(target).__name__} instead of a list")
        target.extend(items)

    def add_items(self) -> None:
        elements, target = self.pop_mark(), self.top()
        if not isinstance(target, Call) or str(target.function) != "builtins.set":
            self.fail(f"elements for a {type(target).__name__} instead of a set")
        target.args[0].extend(map(self.key, elements))

    def frozenset_of(self) -> None:
        elements = self.pop_mark()
        self.stack.append(Call(_GLOBALS["builtins.frozenset"], ([*map(self.key, elements)],)))

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
        self.stack.append(self.named(self.line(), self.line()))

    def stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("a name that is not text")
        self.stack.append(self.named(module, name))

    def named(self, module: str, name: str) -> Global:
        """The node for a name, the same one each time: a file can name it ten million times."""
        if module in OLD_MODULES:
            module, name = OLD_MODULES[module], OLD_NAMES.get((module, name), name)
        path = f"{module}.{name}"
        if path in _GLOBALS:
            return _GLOBALS[path]
        if (module, name) not in self.names:
            # Written into the lines of another pickle, any other text could become an opcode.
            if not all(part.isidentifier() for part in path.split(".")):
                self.fail(f"{path[:200]!r} in the place of a name")
            self.names[module, name] = Global(module, name)
        return self.names[module, name]

    def new_object(self, *, keywords: bool = False) -> None:
        named = self.pop() if keywords else None
        args, cls = self.pop(), self.pop()
        if (
            type(args) is not tuple
            or not isinstance(cls, Global | Made)
            or type(named) not in (dict, type(None))
        ):
            self.fail(f"an object of class {type(cls).__name__}")
        path = str(cls) if isinstance(cls, Global) else ""
        if path == "collections.OrderedDict" and args == () and not named:
            self.stack.append(OrderedMap())
        elif path in ALLOWED:
            self.fail("an object of torch before 0.4", "load and save it with a newer torch")
        else:
            self.stack.append(Made(cls, args, named, new=True))

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        path = str(function) if isinstance(function, Global) else ""
        known = path in REBUILD or path in SIGNATURES
        if (
            type(args) is not tuple
            or not (known or isinstance(function, Global | Made))
            or (path in ALLOWED and not known)
        ):
            self.fail(f"a call of {path or type(function).__name__}")
        if path in SIGNATURES and not SIGNATURES[path](args):
            self.fail(f"unusual arguments for {path}")
        if path == "collections.OrderedDict":
            made: Any = self.ordered(args)
        elif path == "_codecs.encode":
            self.spend(len(args[0]))
            made = args[0].encode("latin1")
        elif path == "builtins.bytes" and args == ():
            made = b""  # as Python pickles it
        elif path in ("builtins.set", "builtins.frozenset"):
            # A copy: the list may change later, a set's elements must not.
            elements = args[0] if args else []
            self.spend(len(elements))
            made = Call(function, ([self.key(element) for element in elements],))
        elif known:
            made = Call(function, args)
        else:
            made = Made(function, args)
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
        known = isinstance(target, Made) and (type(state) is dict or type(target) is Made)
        if not known or target.state is not None:
            self.fail(f"attributes for a {type(target).__name__}")
        target.state = state

    def storage(self) -> None:
        pid = self.pop()
        if self.legacy and type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            self.stack.append(pid[1])  # a class of modules, stored with its source code
            return
        fields = 6 if self.legacy else 5
        if type(pid) is not tuple or len(pid) != fields or pid[0] != "storage":
            self.fail("a persistent object that is not a storage")
        kind, key, location, numel = pid[1:5]
        known = isinstance(kind, Global) and str(kind) in ALLOWED and kind.name != "TypedStorage"
        if not known or not kind.name.endswith("Storage"):
            self.fail("a storage of unknown kind")
        if not isinstance(key, str) or not isinstance(location, str):
            self.fail("a storage without key or location")
        if type(numel) is not int or not 0 <= numel < 1 << 63:
            self.fail(f"a storage of {numel} elements; sizes lie in 0 to 2^63")
        if self.legacy and pid[5] is not None:
            self.fail("a storage that is a view of another one", "load and save it with torch 1.6 or newer")
        self.stack.append(StorageRef(kind, key, location, numel))


_GLOBALS = {path: Global(*path.rsplit(".", 1)) for path in (*ALLOWED, "builtins.frozenset")}

_ACTIONS: dict[bytes, Callable[[_Reader], None]] = {
    p.PROTO: _Reader.protocol,
    p.FRAME: _Reader.frame,
    p.GLOBAL: _Reader.name,
    p.STACK_GLOBAL: _Reader.stacked_name,
    p.NEWOBJ: _Reader.new_object,
    p.NEWOBJ_EX: lambda r: r.new_object(keywords=True),
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
    p.ADDITEMS: _Reader.add_items,
    p.FROZENSET: _Reader.frozenset_of,
    p.NONE: lambda r: r.stack.append(None),
    p.NEWTRUE: lambda r: r.stack.append(True),
    p.NEWFALSE: lambda r: r.stack.append(False),
    p.BININT: lambda r: r.stack.append(r.number("<i")),
    p.BININT1: lambda r: r.stack.append(r.number("<B")),
    p.BININT2: lambda r: r.stack.append(r.number("<H")),
    p.LONG1: lambda r: r.integer("<B"),
    p.LONG4: lambda r: r.integer("<i"),
    p.BINFLOAT: lambda r: r.stack.append(r.number(">d")),
    p.SHORT_BINUNICODE: lambda r: r.text_of("<B"),
    p.BINUNICODE: lambda r: r.text_of("<I"),
    p.BINUNICODE8: lambda r: r.text_of("<Q"),
    p.SHORT_BINSTRING: lambda r: r.stack.append(r.text(r.take(r.number("<B")))),
    p.SHORT_BINBYTES: lambda r: r.bytes_of("<B"),
    p.BINBYTES: lambda r: r.bytes_of("<I"),
    p.BINBYTES8: lambda r: r.bytes_of("<Q"),
    p.BYTEARRAY8: _Reader.bytearray_of,
    p.BINGET: lambda r: r.recall("<B"),
    p.LONG_BINGET: lambda r: r.recall("<I"),
    p.BINPUT: lambda r: r.remember("<B"),
    p.LONG_BINPUT: lambda r: r.remember("<I"),
    p.MEMOIZE: _Reader.memoize,
}
