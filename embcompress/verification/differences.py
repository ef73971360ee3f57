"""Where two checkpoints differ that should be the same except for their tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from embcompress.checkpoint.base import Checkpoint, Edit
from embcompress.checkpoint.description import Description
from embcompress.checkpoint.tensors import TensorInfo
from embcompress.dtypes import DType
from embcompress.progress import Progress, Steps
from embcompress.reports.verification import Difference
from embcompress.version import __version__

OURS = "embcompress/"
"""How the names of entries begin that this package makes from the record; they depend on its version."""


@dataclass(frozen=True)
class Compared:
    """What was compared, and where it differs.

    Attributes:
        count: how many tensors or entries were compared.
        differences: one each.
        notes: what the user should know, one sentence each.
        changed: how many tensors have other values, where that is no difference.
        skipped: how many tensors were compared by type and shape alone.
    """

    count: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    changed: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class _Expected:
    """A tensor that the output should hold.

    Attributes:
        kind: its type and shape, in words.
        alias: another name of the same memory, None if it has its own.
        bytes: how many bytes should be the same as in the original; None for a new tensor.
    """

    kind: str
    alias: str | None = None
    bytes: int | None = None


def tensor_differences(
    original: Checkpoint, written: Checkpoint, edit: Edit, progress: Progress, *, trained: bool
) -> Compared:
    """Compare what ``written`` holds with ``original`` after ``edit``.

    Args:
        original: the checkpoint that was edited.
        written: the result.
        edit: what was replaced by what; the contents of new tensors are not compared.
        progress: called as ``progress(stage, done, total)``.
        trained: whether other values are counted, and are no difference; types and shapes must be the same.
    """
    expected = _expected(original, written, edit)
    found: list[Difference] = []
    same: dict[str, int] = {}
    for name, wanted in expected.items():
        info = written.tensors.get(name)
        if info is None:
            found.append(Difference(name, "is missing", wanted.kind))
        elif kind_of(info) != wanted.kind:
            found.append(Difference(name, kind_of(info), wanted.kind))
        elif written.aliases.get(name) != wanted.alias:
            found.append(Difference(name, _memory(written.aliases.get(name)), _memory(wanted.alias)))
        elif wanted.bytes is not None:
            same[name] = wanted.bytes
    extra = (name for name in written.tensors if name not in expected)
    found += [Difference(name, kind_of(written.tensors[name]), "absent") for name in extra]
    advance = Steps(progress, "compare", sum(same.values()))
    changed = 0
    for name, count in same.items():
        different = _byte_difference(name, original.bytes_of(name), written.bytes_of(name))
        found += () if trained else different
        changed += len(different)
        advance(count)
    added = {new.name for new in edit.add}
    carried = (name for name, wanted in expected.items() if wanted.alias is None and name not in added)
    skipped = sum(name not in same for name in carried)
    return Compared(len(same) - changed, tuple(found), changed=changed if trained else 0, skipped=skipped)


def _expected(original: Checkpoint, written: Checkpoint, edit: Edit) -> Mapping[str, _Expected]:
    expected: dict[str, _Expected] = {}
    for name, info in original.tensors.items():
        if name not in edit.remove:
            alias = original.aliases.get(name)
            compared = info.nbytes if alias is None and info.layout == "dense" else None
            expected[name] = _Expected(kind_of(info), alias, compared)
    kinds = {new.name: _kind(new.dtype, new.shape, "dense") for new in edit.add}
    expected |= {name: _Expected(kind) for name, kind in kinds.items()}
    for alias, name in edit.aliases.items():
        # Formats without shared memory record other names only if the original did.
        if alias in written.tensors or written.shares_memory or original.aliases:
            expected[alias] = _Expected(kinds[name], name)
    return expected


def kind_of(info: TensorInfo) -> str:
    """Type and shape of a tensor, in words."""
    return _kind(info.dtype, info.shape, info.layout)


def _kind(dtype: DType | None, shape: tuple[int, ...], layout: str) -> str:
    name = "unnamed type" if dtype is None else dtype.torch or dtype.name
    return f"{'' if layout == 'dense' else f'{layout} '}{name} {list(shape)}"


def _memory(alias: str | None) -> str:
    return "memory of its own" if alias is None else f"the memory of {alias}"


def _byte_difference(name: str, wanted: Iterator[bytes], there: Iterator[bytes]) -> list[Difference]:
    """The first byte that differs, whatever pieces the two come in; nothing if all are the same."""
    here, there_now, offset = b"", b"", 0
    while True:
        here, there_now = here or next(wanted, b""), there_now or next(there, b"")
        count = min(len(here), len(there_now))
        if not count:
            return [] if here == there_now else [Difference(name, f"ends at byte {offset:,}")]
        one, other = np.frombuffer(here, np.uint8, count), np.frombuffer(there_now, np.uint8, count)
        if not np.array_equal(one, other):
            place = int(np.flatnonzero(one != other)[0])
            found = f"byte {offset + place:,} is 0x{other[place]:02x}"
            return [Difference(name, found, f"0x{one[place]:02x} as in the original")]
        here, there_now, offset = here[count:], there_now[count:], offset + count


def other_differences(
    original: Checkpoint, written: Checkpoint, edit: Edit, described: Description
) -> Compared:
    """Compare files, metadata, graphs, and everything else that is no tensor.

    Args:
        original: the checkpoint that was edited.
        written: the result.
        edit: what was replaced by what.
        described: the record of the result.

    Raises:
        UsageError: the original cannot be edited in this way.
        InputError: something cannot be read.
    """
    wanted, there = original.remainder(edit, described), written.remainder()
    notes: tuple[str, ...] = ()
    if described.version != __version__:
        ours = {name for name in (*wanted, *there) if name.startswith(OURS)}
        wanted, there = _without(wanted, ours), _without(there, ours)
        if ours:
            notes = (
                f"written by version {described.version}: what embcompress itself added is not compared",
            )
    names = dict.fromkeys([*wanted, *there])
    found = [each for name in names for each in _value_difference(name, wanted, there)]
    return Compared(len(names), tuple(found), notes)


def _without(values: Mapping[str, object], names: Iterable[str]) -> Mapping[str, object]:
    return {name: value for name, value in values.items() if name not in names}


def _value_difference(
    name: str, wanted: Mapping[str, object], there: Mapping[str, object]
) -> list[Difference]:
    if name not in there:
        return [Difference(name, "is missing", _text(wanted[name]))]
    if name not in wanted:
        return [Difference(name, _text(there[name]), "absent")]
    # NaN, which Python's JSON may hold, equals itself only as text.
    if wanted[name] is ... or wanted[name] == there[name] or repr(wanted[name]) == repr(there[name]):
        return []
    found, expected = _text(there[name]), _text(wanted[name])
    if found == expected:  # the difference is in what is cut off
        return [Difference(name, "has changed")]
    return [Difference(name, found, expected)]


def _text(value: object, limit: int = 80) -> str:
    """A value in one short line."""
    if value is ...:
        return "present"
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"
