"""Floating-point operations (FLOPs) per token, by one stated convention.

A multiply-add counts 2, a lookup (a gather of a row) 0. A head tied to the table is counted once
for each of its uses: dense 2·V·d, through factors 2·r·d + 2·V·r. Not counted: softmax, biases,
memory traffic, and every layer other than the embedding and its head. A factored lookup costs
2·r·d where a dense one costs nothing, and the numbers show it.
"""

from __future__ import annotations

from embcompress.methods.base import Method


def dense_flops(shape: tuple[int, int], heads: int) -> int:
    """FLOPs per token of a dense (V, d) table that ``heads`` output heads share."""
    return heads * 2 * shape[0] * shape[1]


def factored_flops(method: Method, shape: tuple[int, int], rank: int | None, heads: int) -> int:
    """FLOPs per token of a compressed (V, d) table that ``heads`` output heads share."""
    head = dense_flops(shape, 1) if rank is None else 2 * rank * (shape[0] + shape[1])
    return method.flops(shape, rank) + heads * head
