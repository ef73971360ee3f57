"""Parts that are not what their method stores, in files that are sealed as if they were."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import raw, run, table
from helpers.hostile import MB, ROOM, commands, needs_proc
from helpers.registry import EVERY, target
from helpers.resealing import CARRIED, TABLE, Net, parts_of, resealed
from safetensors.torch import save_file

import embcompress
from embcompress.checkpoint.description import NO_DIGEST, Description, TableRecord
from embcompress.errors import EmbcompressError
from embcompress.methods import method_for
from embcompress.methods.parts import Elements

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool),
)
STORED = {Elements.BYTES: (torch.uint8,), Elements.ROW_NUMBERS: (torch.int32,)}
STORED |= {Elements.SCALES: (torch.float32,), Elements.FLOATS: TYPES[:4]}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A compressed file of each method, made when it is asked for."""
    folder = tmp_path_factory.mktemp("shelf")
    dense = table(400, 16)
    dense[[0, 7]] = 0
    save_file({TABLE: torch.from_numpy(dense), CARRIED: torch.ones(2, 16)}, folder / "model.safetensors")

    @functools.cache
    def made(method: str) -> Path:
        small = folder / f"{method}.safetensors"
        embcompress.factorize(folder / "model.safetensors", method=method, output=small, **target(method))
        return small

    return made


def odd(part):
    """Shapes that no method stores, and numbers that are none."""
    yield from (part.flatten(), part[None], part.flatten()[0], part[:0], part[:, :0])
    yield from (torch.cat([part, part[:, :1]], 1), part[:, :-1])
    if part.dtype.is_floating_point:
        for value in (math.nan, math.inf):
            wrong = part.clone()
            wrong[-1, -1] = value
            yield wrong


def ending(command):
    """Exit code and words of a command that was refused, without the name of the file; None if it was not."""
    try:
        result = command()
    except EmbcompressError as error:
        return error.exit_code, error.message.split("safetensors: ", 1)[-1]
    assert not getattr(result, "differences", ())
    return None


def endings(path, output):
    """How everything that reads parts ends."""
    return [
        ending(functools.partial(embcompress.report, path)),
        ending(functools.partial(embcompress.verify, path)),
        ending(functools.partial(embcompress.expand, path, output=output, force=True)),
        ending(functools.partial(embcompress.load, Net(400, 16), path)),
    ]


def wrong_parts(method, parts, *, few):
    """Suffix and tensor of each damage, and whether it must be refused."""
    for spec in method_for(method).parts:
        if spec.suffix in parts:
            part = parts[spec.suffix]
            types = [kind for kind in TYPES if kind != part.dtype]
            for kind in types[:: 5 if few else 1]:
                yield spec.suffix, part.to(kind), kind not in STORED[spec.elements]
            for other in [*odd(part)][:: 3 if few else 1]:
                # one number less of a list of rows is another list
                yield spec.suffix, other, True


@pytest.mark.parametrize("method", ["svd", "pq", "screen+int4"])
def test_row_66_parts_are_refused_alike_some(shelf, tmp_path, method):
    """A sample of the whole grid below."""
    check(shelf(method), tmp_path, method, few=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_row_66_parts_are_refused_alike(shelf, tmp_path, method):
    """Each part in each type and in odd shapes: the same code and words from all, and never a traceback."""
    check(shelf(method), tmp_path, method, few=False)


def check(small, folder, method, *, few):
    for suffix, part, refused in wrong_parts(method, parts_of(small), few=few):
        path = resealed(small, folder / "damaged.safetensors", {suffix: part})
        found = endings(path, folder / "dense.safetensors")
        assert len({*found}) == 1, (suffix, part.dtype, part.shape, found)
        assert (found[0] is not None) == refused, (suffix, part.dtype, part.shape, found)
        assert found[0] is None or found[0][0] == 3


def test_row_66_words_of_the_command_line(shelf, tmp_path):
    """The part, what it is and what it should be; the same line and exit code from each command."""
    zeros = parts_of(shelf("pq"))["0.zeros"]
    path = resealed(shelf("pq"), tmp_path / "damaged.safetensors", {"0.zeros": zeros.to(torch.float32)})
    for command in (("report",), ("verify",), ("expand", "-o", tmp_path / "dense.safetensors")):
        done = run(command[0], path, *command[1:])
        assert done.exit_code == 3
        assert f"{TABLE}: part 0.zeros is of F32, expected row numbers (I32)" in done.stderr


# ---- memory


def sparse(path: Path, method: str, shape, rank, parts) -> int:
    """A file whose parts are holes, but for those given as bytes; returns its size.

    Args:
        path: where to write.
        method: of its record.
        shape: (V, d).
        rank: by its record.
        parts: suffix -> (type, shape, bytes or None).
    """
    entries, data, at = {}, {}, 0
    widths = {"U8": 1, "F16": 2, "F32": 4, "I32": 4}
    for suffix, (dtype, size, content) in parts.items():
        count = math.prod(size) * widths[dtype]
        entries[f"embedding.{suffix}"] = {"dtype": dtype, "shape": size, "data_offsets": [at, at + count]}
        data[at], at = content, at + count
    dense = shape[0] * shape[1] * 4
    record = TableRecord(
        TABLE, shape, "F32", method, rank, "F16", 8, 1 - at / dense, 0.5, tuple(parts),
        seed=method_for(method).seed, digests=(NO_DIGEST,) * len(parts),
    )  # fmt: skip
    text = Description("0", {}, (record,)).to_json()
    raw(path, {"__metadata__": {"embcompress": text}, **entries})
    begin = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(begin + at)
        for place, content in data.items():
            if content is not None:
                file.seek(begin + place)
                file.write(content)
    return path.stat().st_size


def half(*values):
    return np.array(values, np.float16).tobytes()


def large(size):
    """For each byte part of each method, a file in which it is the large one."""
    rows, kept = size, 8 * size
    lplr = {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None),
            "1.codes": ("U8", [1, 1], None), "1.scales": ("F32", [1, 1], None),
            "0.bits": ("U8", [1, 2], bytes([1, 8]))}  # fmt: skip
    pq = {"0.codes": ("U8", [rows, 2], None), "0.extra": ("U8", [1, 1], None),
          "0.hot": ("U8", [rows // 8, 1], b"\x80"), "0.rates": ("U8", [2, 2], bytes([2, 2, 16, 2])),
          "0.codebooks": ("F16", [1, 4 + 516], None), "0.scales": ("F32", [2, 2], None),
          "0.zeros": ("I32", [rows // 4, 1], None),
          "1.codes": ("U8", [2, 2], None), "1.scales": ("F32", [2, 1], None)}  # fmt: skip
    side = math.isqrt(size)
    wide = {"0.codes": ("U8", [side, side], None), "0.scales": ("F16", [side, 1], None),
            "1.codes": ("U8", [side, side // 2], None), "1.scales": ("F32", [side, 1], None),
            "0.bits": ("U8", [1, 2], bytes([8, 4]))}  # fmt: skip
    return {
        "screen": ((kept, 1), None, {"0.kept": ("U8", [size, 1], None), "0.weight": ("F32", [1, 1], None)}),
        "screen+int8": (
            (kept, 1),
            None,
            {"0.kept": ("U8", [size, 1], None), "0.codes": ("U8", [1, 1], None),
             "0.scales": ("F16", [1, 1], half(1))},
        ),
        "int8": ((rows, 1), None, {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None)}),
        "int3": ((rows, 2), None, {"0.codes": ("U8", [rows, 1], None), "0.scales": ("F16", [rows, 1], None)}),
        "lplr": ((rows, 1), 1, lplr),
        "lplr, right": ((side, side), side, wide),
        "pq": ((rows, 2), 2, pq),
        "svd": ((rows, 1), 1, {"0.weight": ("F32", [rows, 1], None), "1.weight": ("F32", [1, 1], None)}),
    }  # fmt: skip


@needs_proc
@pytest.mark.parametrize("size", [2 * MB, pytest.param(16 * MB, marks=pytest.mark.slow)])
def test_row_67_memory_of_claims_of_bits(tmp_path, size):
    """A hole of bits unfolds to no more than 32 bytes per byte; nor does any other part of bytes."""
    cases = large(size)
    if size == 2 * MB:
        cases = {name: cases[name] for name in ("screen", "pq", "lplr, right")}
    for name, (shape, rank, parts) in cases.items():
        path = tmp_path / "sparse.safetensors"
        stored = sparse(path, name.partition(",")[0], shape, rank, parts)
        room = ROOM + 32 * stored
        for end in commands(tmp_path, room, [("report", path), ("verify", path)]):
            assert end.code in (0, 1), (name, end)  # verify finds that no digest fits
            assert end.taken <= room


@pytest.mark.parametrize("name", ["screen", "screen+int8", "int8", "lplr", "pq"])
def test_row_67_the_bound_is_no_refusal_of_good_parts(tmp_path, name):
    """The sparse files decode to the zeros that they hold."""
    shape, rank, parts = large(1 << 10)[name]
    path = tmp_path / "sparse.safetensors"
    sparse(path, name, shape, rank, parts)
    embcompress.expand(path, output=tmp_path / "dense.safetensors")
    net = embcompress.load(torch.nn.ModuleDict({"embedding": torch.nn.Embedding(*shape)}), path)
    dense = parts_of(tmp_path / "dense.safetensors")["weight"]
    ids = torch.tensor([0, 1, 7, 8, shape[0] - 1])
    torch.testing.assert_close(net["embedding"](ids), dense[ids])
