"""Small checkpoints of every format with compressed copies, and single bits of them turned over."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.formats import Directory, Onnx, Safetensors, TorchZip, model
from helpers.registry import target

import embcompress
from embcompress.checkpoint import open_checkpoint
from embcompress.errors import InputError

FORMATS = {"safetensors": Safetensors, "pt": TorchZip, "directory": Directory, "onnx": Onnx}


def made(folder: Path, kind: str, method: str = "svd", **options: object) -> tuple[Path, Path]:
    """A checkpoint, and a copy compressed in this way."""
    writer, tensors = FORMATS[kind], model(rows=400)
    if kind == "onnx" and method != "svd":
        del tensors["lm_head.weight"]  # rows of codes have no product for its head
    original, small = (folder / f"{name}{writer.suffix}" for name in ("model", "small"))
    writer.save(original, tensors)
    embcompress.factorize(original, method=method, output=small, **{**target(method), **options})
    return original, small


def weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.safetensors"))


@contextmanager
def flipped(file: Path, place: int, bit: int) -> Iterator[None]:
    """The file with one bit turned over."""
    _turn(file, place, bit)
    try:
        yield
    finally:
        _turn(file, place, bit)


def _turn(file: Path, place: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        (old,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([old ^ 1 << bit]))


def places(path: Path) -> dict[str, tuple[Path, int, int]]:
    """Tensor -> file, first byte and number of bytes: where its bytes stand, and turning one changes it."""
    found = {}
    with open_checkpoint(path) as opened:
        held = {name: b"".join(opened.bytes_of(name)) for name in opened.tensors}
    for name, data in held.items():
        if data and not any(held[other] == data for other in found):  # aliases are the same bytes
            found[name] = next(where for where in _occurrences(path, data) if _is_of(path, name, data, where))
    return found


def _occurrences(path: Path, data: bytes) -> Iterator[tuple[Path, int, int]]:
    for file in weight_files(path):
        blob, at = file.read_bytes(), -1
        while (at := blob.find(data, at + 1)) >= 0:
            yield file, at, len(data)


def _is_of(path: Path, name: str, data: bytes, where: tuple[Path, int, int]) -> bool:
    with flipped(where[0], where[1], 0):
        try:
            with open_checkpoint(path) as opened:
                return b"".join(opened.bytes_of(name)) != data
        except InputError:
            return False


def some(count: int, rng: random.Random, more: int = 2) -> list[int]:
    """The first, the last, and a few others of so many bytes."""
    return sorted({0, count - 1, *itertools.islice(iter(lambda: rng.randrange(count), -1), more)})
