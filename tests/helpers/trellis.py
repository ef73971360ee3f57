"""Stored parts of a trellis-coded table, decoded bit by bit from their description alone."""

from __future__ import annotations

import numpy as np


def number(bits, start, count):
    """The number that so many bits from ``start`` on make."""
    return int("".join(map(str, bits[start : start + count])) or "0", 2)


def slowly(parts, shape):
    """The table that parts stand for, bit by bit, from the layout as it is written down."""
    whole = {suffix: part.read(0, part.shape[0]) for suffix, part in parts.items()}
    rows, columns = shape
    rank = whole["0.rates"].shape[1]
    kinds = [0] * rows
    if "0.hot" in whole:
        planes = whole["0.hot"][:, 0].reshape(-1, -(-rows // 8))
        kinds = [
            sum((int(p[i // 8]) >> (7 - i % 8) & 1) << n for n, p in enumerate(planes)) for i in range(rows)
        ]
    books, at = [{} for _ in whole["0.rates"]], 0
    sizes = {1: 2 << 9} | {2 * bits: 2 << bits for bits in range(1, 9)}
    met = [sorted({*rates.tolist()} - {0}, reverse=True) for rates in whole["0.rates"]]
    own = whole["0.codebooks"].size == sum(sizes[twice] for each in met for twice in each)
    for n, each in enumerate(met):
        for twice in each:
            earlier = [b[twice] for b in books[:n] if twice in b and not own]
            books[n][twice] = earlier[0] if earlier else whole["0.codebooks"][0, at : at + sizes[twice]]
            at += 0 if earlier else sizes[twice]
    width = whole["1.codes"].shape[1]
    bits_each = max(b for b in range(1, 9) if -(-columns * b // 8) == width)
    right = np.zeros((rank, columns))
    for j in range(rank):
        bits = np.unpackbits(whole["1.codes"][j])
        for c in range(columns):
            level = number(bits, c * bits_each, bits_each) - (2**bits_each - 1) / 2
            right[j, c] = level * whole["1.scales"][j, 0]
    taps = (0o515, 0o362)
    decoded = np.zeros((rows, rank))
    lengths = [-(-(8 + each.sum(dtype=int) // 2) // 8) for each in whole["0.rates"]]
    more = [int(length) - whole["0.codes"].shape[1] for length in lengths]
    extra, seen = whole.get("0.extra", np.empty(0, np.uint8)).ravel(), {}
    for i in range(rows):
        code, kind = whole["0.codes"][i], kinds[i]
        before = sum(more[k] * kinds.count(k) for k in range(kind)) + more[kind] * seen.get(kind, 0)
        code = np.concatenate([code, extra[before : before + more[kind]]])
        seen[kind] = seen.get(kind, 0) + 1
        bits = np.unpackbits(code)
        rates = whole["0.rates"][kind].astype(int)
        order = [j for twice in range(16, 0, -1) for j in range(rank) if rates[j] == twice]
        singles = sum(rates[j] > 1 for j in order)
        steps = singles + (len(order) - singles) // 2
        at = 8 + steps
        for n, j in enumerate(order):
            step = n if rates[j] > 1 else singles + (n - singles) // 2
            window = number(bits, step, 9)
            book = books[kind][rates[j]]
            if rates[j] == 1:
                value = book[2 * window + (n - singles) % 2]
            else:
                subset = 2 * ((window & taps[0]).bit_count() % 2) + (window & taps[1]).bit_count() % 2
                uncoded = rates[j] // 2 - 1
                value = book[4 * number(bits, at, uncoded) + subset]
                at += uncoded
            decoded[i, j] = value * whole["0.scales"][kind, j]
    found = decoded @ right
    for i in whole.get("0.zeros", np.zeros((0, 1), int))[:, 0]:
        found[i] = 0
    return found
