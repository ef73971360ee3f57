"""Coded tables made and decoded with NumPy, straight from the layouts: oracles for the torch side."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embcompress.checkpoint.description import Description, TableRecord, part_name
from embcompress.linalg.integers import dequantize, quantize
from embcompress.linalg.packing import pack
from embcompress.linalg.trellis import TrellisCode, decode, encode, initial_codebooks

PLAIN = (8, 2, 2, 0, 1, 4, 1, 0, 6)
"""Twice the bits of each component: neither sorted nor all coded, with a pair of half bits."""
HOT = (16, 10, 12, 1, 4, 8, 2, 1, 6)
WARM = (10, 6, 4, 1, 2, 4, 1, 0, 6)


@dataclass(frozen=True)
class Coded:
    """A coded table.

    Attributes:
        method: registry name.
        parts: what is stored.
        table: what it decodes to (V×d, float32).
    """

    method: str
    parts: Mapping[str, NDArray]
    table: NDArray

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {suffix: torch.from_numpy(part.copy()) for suffix, part in self.parts.items()}

    @property
    def rank(self) -> int | None:
        """Rows of the right factor."""
        if "1.weight" in self.parts:
            return self.parts["1.weight"].shape[1]
        return len(self.parts["1.codes"]) if "1.codes" in self.parts else None

    def record(self, name: str, ties: Sequence[str] = ()) -> TableRecord:
        dtype = "F32" if "0.weight" in self.parts else "F16"
        return TableRecord(name, self.table.shape, "F32", self.method, self.rank, dtype, 4, 0.5, 0.1,
                           tuple(self.parts), tuple(ties))  # fmt: skip


def rows(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def integers(table: NDArray, bits: int, scale_type=np.float16) -> tuple[NDArray, NDArray, NDArray]:
    """Packed codes, scales and what they decode to."""
    found = quantize(table, bits, scale_type)
    decoded = dequantize(found.codes, found.scales, bits)
    return pack(found.codes, bits), found.scales[:, None], decoded


def svd(count: int, width: int, rank: int = 5) -> Coded:
    return svd_of(rows(count, rank) @ rows(width, rank, 1).T, rank)


def svd_of(table: NDArray, rank: int) -> Coded:
    u, s, vt = np.linalg.svd(table, full_matrices=False)
    left, right = (np.ascontiguousarray(x, np.float32) for x in (u[:, :rank] * s[:rank], vt[:rank].T))
    return Coded("svd", {"0.weight": left, "1.weight": right}, left @ right.T)


def dense(table: NDArray) -> Coded:
    """What only a screen stores."""
    return Coded("", {"0.weight": table}, table)


def integer(count: int, width: int, bits: int) -> Coded:
    table = rows(count, width)
    table[0] = 0
    return integer_of(table, bits)


def integer_of(table: NDArray, bits: int) -> Coded:
    codes, scales, decoded = integers(table, bits)
    return Coded(f"int{bits}", {"0.codes": codes, "0.scales": scales}, decoded)


def lplr(count: int, width: int, rank: int = 5, bits: tuple[int, int] = (3, 6)) -> Coded:
    left = rows(count, rank)
    left[0] = 0
    codes, scales, left = integers(left, bits[0])
    right_codes, right_scales, right = integers(rows(rank, width, 1), bits[1], np.float32)
    parts = {"0.codes": codes, "0.scales": scales, "1.codes": right_codes, "1.scales": right_scales,
             "0.bits": np.array([bits], np.uint8)}  # fmt: skip
    return Coded("lplr", parts, left @ right)


def pq(count: int, width: int, rates: Sequence[Sequence[int]] = (PLAIN, HOT), zeros: bool = True) -> Coded:
    """Random rows of one class or of several."""
    rank, rng = len(rates[0]), np.random.default_rng(2)
    scales = rng.uniform(0.5, 2, (len(rates), rank)).astype(np.float32)
    no_rows = [0, count - 1] if zeros else []
    return trellis(rows(count, rank), scales, rows(rank, width, 3) / 3, rates, no_rows)


def pq_of(table: NDArray, rates: Sequence[Sequence[int]] = ((8, 8, 4, 2), (16, 8, 6, 4))) -> Coded:
    """An approximation of a table, in the basis of its spectrum."""
    coefficients = table @ np.linalg.svd(table, full_matrices=False)[2][: len(rates[0])].T
    right = np.linalg.lstsq(coefficients, table, rcond=None)[0].astype(np.float32)
    scales = np.tile(coefficients.std(axis=0), (len(rates), 1))
    return trellis(coefficients / scales[0], scales, right, rates, np.flatnonzero(~table.any(axis=1)))


def trellis(
    coefficients: NDArray,
    scales: NDArray,
    right: NDArray,
    rates: Sequence[Sequence[int]],
    zeros: Sequence[int],
) -> Coded:
    """Rows of a random class each, of those whose rates are given.

    Each of two classes has codebooks of its own, as in older files; more than two share them.

    Args:
        coefficients: of unit variance (V×r).
        scales: what they are multiplied by (c×r).
        right: r×d.
        rates: twice the bits of each component (c×r).
        zeros: rows that decode to zeros.
    """
    rng = np.random.default_rng(4)
    kind = rng.integers(0, len(rates), len(coefficients))
    decoded = np.zeros_like(coefficients)
    codes, books, shared = [], [], {}
    for each, wanted in enumerate(rates):
        order = sorted((j for j in range(len(wanted)) if wanted[j]), key=lambda j: -wanted[j])
        code = TrellisCode(8, tuple(wanted[j] / 2 for j in order))
        book = (initial_codebooks(code) * rng.uniform(0.9, 1.1)).astype(np.float16).astype(np.float32)
        if len(rates) > 2:
            new = {rate: book[place] for rate, place in code.books.items() if rate not in shared}
            shared |= new
            book = np.concatenate([shared[rate] for rate in code.books])
        codes.append(encode(coefficients[:, order], code, book))
        decoded[np.ix_(kind == each, order)] = decode(codes[-1], code, book)[kind == each]
        books += [*new.values()] if len(rates) > 2 else [book]
    decoded *= scales[kind]
    parts = {"0.codes": codes[0]}
    if len(rates) > 1:
        width = codes[0].shape[1]
        parts["0.codes"] = np.stack([codes[of][i, :width] for i, of in enumerate(kind)])
        extra = [codes[of][kind == of, width:] for of in range(1, len(rates))]
        parts["0.extra"] = extra[0] if len(rates) == 2 else np.concatenate([*map(np.ravel, extra)])[:, None]
        planes = [kind >> bit & 1 for bit in range((len(rates) - 1).bit_length())]
        parts["0.hot"] = np.concatenate([*map(np.packbits, planes)])[:, None]
    parts["0.rates"] = np.array(rates, np.uint8)
    parts["0.codebooks"] = np.concatenate(books).astype(np.float16)[None]
    parts["0.scales"] = scales
    if len(zeros):
        parts["0.zeros"] = np.array(zeros, np.int32)[:, None]
        decoded[zeros] = 0
    parts["1.codes"], parts["1.scales"], right = integers(right, 5, np.float32)
    return Coded("pq", parts, decoded @ right)


def screened(count: int, make: Callable[[int], Coded]) -> Coded:
    """A table of ``count`` tokens, a third of which share the first row of another, ``make(rows)``."""
    kept = np.arange(count) % 3 > 0
    inner = make(1 + int(kept.sum()))
    parts = {"0.kept": np.packbits(np.append(kept, np.ones(-count % 8, bool)))[:, None], **inner.parts}
    method = f"screen+{inner.method}" if inner.method else "screen"
    return Coded(method, parts, inner.table[np.where(kept, np.cumsum(kept), 0)])


def screened_of(table: NDArray, make: Callable[[NDArray], Coded]) -> Coded:
    """The same of a table of which ``make`` codes the rows that are left."""
    kept = np.arange(len(table)) % 3 > 0
    rest = np.concatenate([table[~kept].mean(axis=0, keepdims=True), table[kept]])
    return screened(len(table), lambda _: make(rest))


@functools.cache
def samples(count: int, width: int) -> dict[str, Coded]:
    """A table of each kind that has a module, and of the kinds within them; not to be written to."""
    kinds: dict[str, Callable[[int], Coded]] = {
        **{f"int{bits}": lambda n, bits=bits: integer(n, width, bits) for bits in (8, 4, 3)},
        **{f"lplr-{b}": lambda n, b=b: lplr(n, width, bits=(b, 6)) for b in (1, 2, 5, 6, 7)},
        "pq": lambda n: pq(n, width),
        "pq-three-classes": lambda n: pq(n, width, [PLAIN, WARM, HOT]),
        "pq-one-class": lambda n: pq(n, width, [PLAIN], zeros=False),
        "pq-sorted": lambda n: pq(n, width, [sorted(PLAIN, reverse=True), sorted(HOT, reverse=True)]),
    }
    found = {name: make(count) for name, make in kinds.items()}
    inner = {"": lambda n: dense(rows(n, width)), "+svd": lambda n: svd(n, width), "+pq": kinds["pq"],
             "+int4": kinds["int4"], "+lplr": kinds["lplr-2"]}  # fmt: skip
    return found | {f"screen{name}": screened(count, make) for name, make in inner.items()}


def compressed(model: nn.Module, tables: Mapping[str, Coded]) -> tuple[dict[str, Tensor], Description]:
    """The tensors of a checkpoint of ``model`` in which tables are coded, and the record."""
    state = model.state_dict(keep_vars=True)
    weights: dict[str, Tensor] = {}
    records = []
    for name, coded in tables.items():
        ties = [other for other, value in state.items() if value is state[name] and other != name]
        records.append(coded.record(name, ties))
        weights |= {part_name(name, suffix): part for suffix, part in coded.tensors.items()}
    seen = {id(state[name]) for name in tables}
    weights |= {name: value.detach().clone() for name, value in state.items() if id(value) not in seen}
    return weights, Description("0", {"source": "0" * 64}, tuple(records))


def decoded(model: nn.Module, tables: Mapping[str, Coded]) -> nn.Module:
    """A copy of ``model`` whose dense tables are what coded ones decode to."""
    model = copy.deepcopy(model)
    for name, coded in tables.items():
        model.get_parameter(name).data.copy_(torch.from_numpy(coded.table))
    return model
