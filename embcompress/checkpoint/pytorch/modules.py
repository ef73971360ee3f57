"""The state dict of a pickled ``nn.Module`` or of a TorchScript archive, read as data.

A pickled module keeps its tensors in the dicts ``_parameters``, ``_buffers`` and ``_modules``, from which
``Module.state_dict`` collects them. A scripted or traced module keeps all attributes in one dict; its code
says which of them are parameters and buffers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from embcompress.checkpoint.names import check_name
from embcompress.checkpoint.pickles.nodes import Call, Global, Made, OrderedMap
from embcompress.checkpoint.pickles.reader import SAVE_AGAIN
from embcompress.checkpoint.pytorch.tensors import is_tensor, parse_view, unwrap
from embcompress.errors import InputError
from embcompress.storage.rawio import read_at
from embcompress.storage.zipstore import AGAIN, Extent

_DICTS = ("_parameters", "_buffers", "_modules")
_CODE_LIMIT = 64 << 20
"""Most bytes of code that are looked through, unpacked."""
_LINE_LIMIT = 1 << 20
"""Longest line of it that is read, in bytes."""
_PIECE = 1 << 16
_SCRIPTED = "__torch__"
"""Where TorchScript has its classes."""


@dataclass(frozen=True)
class Slots:
    """What a module holds itself.

    Attributes:
        tensors: its parameters and persistent buffers by name; None for one that is not set.
        modules: the modules inside it by name; None for one that is not set.
    """

    tensors: Mapping[Any, Any]
    modules: Mapping[Any, Any]


class Budget:
    """How many bytes of names the tensors in modules may still take, with some for each module and tensor.

    Modules that hold others twice, which hold others twice, could have tensors without end.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes

    def spend(self, nbytes: int, where: str) -> None:
        """Take some of it.

        Raises:
            InputError: nothing is left.
        """
        self._left -= nbytes
        if self._left < 0:
            raise InputError(f"{where}: its modules contain each other too often", SAVE_AGAIN)


def state_of(node: object, where: str, budget: Budget) -> OrderedMap:
    """The state dict of a pickled ``nn.Module``; an empty one of any other object.

    Args:
        node: any object.
        where: name of the file, for error messages.
        budget: for the names of its tensors.
    """
    return _Collection(_slots, where, budget).of(node)


def state_of_script(
    root: object, fd: int, code: Mapping[str, Extent], where: str, budget: Budget
) -> OrderedMap:
    """The state dict of a TorchScript archive.

    Args:
        root: the object in its data.pkl.
        fd: the file.
        code: the records of its code, by module, e.g. ``__torch__.torch.nn.modules.sparse``.
        where: name of the file, for error messages.
        budget: for the names of its tensors.

    Raises:
        InputError: its code does not say what its tensors are.
    """
    if not _is_scripted(root):
        raise InputError(f"{where}: its data.pkl holds no module", remedy=AGAIN)
    return _Collection(_Code(fd, code, where).slots, where, budget).of(root)


class _Collection:
    """Collects tensors as ``Module.state_dict`` does: a module's own before those of the modules inside it.

    Args:
        slots: what a module holds; None for what is no module.
        where: name of the file, for error messages.
        budget: for the names.
    """

    def __init__(self, slots: Callable[[Any], Slots | None], where: str, budget: Budget) -> None:
        self._slots, self._where, self._budget = slots, where, budget
        self._found = OrderedMap()

    def of(self, module: Any) -> OrderedMap:
        """The state dict of a module.

        Raises:
            InputError: a name is not a name, or modules contain themselves or each other too often.
        """
        try:
            self._add(module, "")
        except RecursionError:
            raise InputError(f"{self._where}: its modules are nested too deep", SAVE_AGAIN) from None
        return self._found

    def _add(self, module: Any, prefix: str) -> None:
        if (slots := self._slots(module)) is None:
            return
        for name, node in slots.tensors.items():
            if is_tensor(node):
                self._found[self._name(prefix, name)] = _detached(node, self._where)
        for name, inner in slots.modules.items():
            if inner is not None:
                self._add(inner, f"{self._name(prefix, name)}.")

    def _name(self, prefix: str, name: object) -> str:
        whole = f"{prefix}{name}" if isinstance(name, str) else name
        check_name(whole, self._where)
        assert isinstance(whole, str)
        self._budget.spend(64 + len(whole), self._where)
        return whole


def _detached(node: Any, where: str) -> object:
    """The tensor as ``state_dict`` gives it: without gradient, and no Parameter."""
    inner = unwrap(node)
    if not isinstance(inner, Call) or parse_view(inner, where) is None or inner.args[4:5] != (True,):
        return inner
    return Call(inner.function, (*inner.args[:4], False, *inner.args[5:]))


# -- pickled modules -----------------------------------------------------------------------------


def _attributes(node: object) -> Mapping[Any, Any] | None:
    """The attributes of an ``nn.Module``; a ``GraphModule`` is pickled as a call with them."""
    if not isinstance(node, Made):
        return None
    for attributes in (node.state, *node.args[:1]):
        if isinstance(attributes, dict) and all(isinstance(attributes.get(n), dict) for n in _DICTS):
            return attributes
    return None


def _slots(node: object) -> Slots | None:
    if (attributes := _attributes(node)) is None:
        return None
    passing = {*_elements(attributes.get("_non_persistent_buffers_set"))}
    buffers = attributes["_buffers"].items()
    kept = {name: value for name, value in buffers if name not in passing}
    return Slots({**attributes["_parameters"], **kept}, attributes["_modules"])


def _elements(node: object) -> list[Any]:
    """The elements of a pickled set; none of anything else."""
    is_set = isinstance(node, Call) and str(node.function) == "builtins.set"
    return node.args[0] if isinstance(node, Call) and is_set else []


# -- TorchScript ---------------------------------------------------------------------------------

_CLASS: Final = re.compile(r"class (\w+)\(Module\):")
_LIST: Final = re.compile(r"  __(parameters|buffers)__ = \[(.*)\]")
_ENTRY: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _is_scripted(node: object) -> bool:
    named = node.function if isinstance(node, Made) else None
    return isinstance(named, Global) and named.module.split(".")[0] == _SCRIPTED


class _Code:
    """The code of a TorchScript archive, in which the names of parameters and buffers are looked up.

    Args:
        fd: the file.
        records: its records of code, by module.
        where: name of the file, for error messages.
    """

    def __init__(self, fd: int, records: Mapping[str, Extent], where: str) -> None:
        self._fd, self._records, self._where = fd, records, where
        self._left = _CODE_LIMIT
        self._read: dict[str, dict[str, list[str]]] = {}

    def slots(self, node: object) -> Slots | None:
        """What a scripted module holds; None for an object of another class."""
        if not _is_scripted(node):
            return None
        assert isinstance(node, Made)
        assert isinstance(node.function, Global)
        module, name = node.function.module, node.function.name
        if module not in self._read:
            self._read[module] = self._names_in(module)
        attributes = node.state
        if name not in self._read[module] or not isinstance(attributes, dict):
            return None
        tensors = {key: attributes.get(key) for key in self._read[module][name]}
        return Slots(tensors, {key: part for key, part in attributes.items() if _is_scripted(part)})

    def _names_in(self, module: str) -> dict[str, list[str]]:
        """The parameters and buffers of each class of modules in one record."""
        if module not in self._records:
            raise InputError(f"{self._where}: its code lacks {module}", remedy=AGAIN)
        found: dict[str, list[str]] = {}
        names: list[str] = []
        for line in self._lines(self._records[module]):
            if match := _CLASS.fullmatch(line):
                names = found.setdefault(match[1], [])
            elif match := _LIST.fullmatch(line):
                names += _ENTRY.findall(match[2])
        return found

    def _lines(self, record: Extent) -> Iterator[str]:
        """The lines of a record, but for those that are too long for a list of names."""
        rest = b""
        for piece in self._unpacked(record):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[: _LINE_LIMIT + 1]
            for line in lines:
                if len(line) <= _LINE_LIMIT:
                    yield line.decode("utf-8", "replace")

    def _unpacked(self, record: Extent) -> Iterator[bytes]:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        stored = record.size if record.packed is None else record.packed
        for start in range(0, stored, _PIECE):
            data = read_at(self._fd, min(_PIECE, stored - start), record.offset + start)
            while data:
                piece = data
                if record.packed is not None:
                    try:
                        piece = unpack.decompress(data, _PIECE)
                    except zlib.error as error:
                        raise InputError(
                            f"{self._where}: its code cannot be unpacked ({error})", remedy=AGAIN
                        ) from None
                data = b"" if record.packed is None else unpack.unconsumed_tail
                self._left -= len(piece)
                if self._left < 0:
                    raise InputError(
                        f"{self._where}: its code has more than {_CODE_LIMIT:,} bytes", SAVE_AGAIN
                    )
                yield piece
        yield b"\n"
