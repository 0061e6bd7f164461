"""Where the steps of IFMR's candidates begin, in bins of magnitudes: see `kernels.cpu.cells`."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit

__all__ = ["BINS", "UNITS", "edge_tables", "find_edges", "sort_edges"]

#: Bins on each side of zero, and the parts of a bin that a value may fall on.
BINS, UNITS = 1 << 15, 1 << 23


@jit
def find_edges(steps, scales, factor, bins, parts):
    """Fill in the bin of every edge, -1 if beyond all, and where in the bin it lies.

    Edge n of a scale is the least float32 whose quotient rounds to n, half away from zero.
    """
    e = 0
    for r in range(scales.size):
        scale, longest = scales[r], max(steps[r, 0], steps[r, 1])
        halves = np.arange(longest).astype(np.float32) + np.float32(0.5)
        bits = (halves * scale).view(np.int32)
        least = bits + np.int32(2)
        for back in range(-1, 3):  # the product is not further than that from the edge
            lower = bits - np.int32(back)
            quotients = lower.view(np.float32) / scale
            for n in range(longest):
                if quotients[n] >= halves[n]:
                    least[n] = lower[n]
        edges = least.view(np.float32)
        for side in range(2):
            for n in range(steps[r, side]):
                y = edges[n] * factor
                beyond = y >= np.float32(BINS)
                b = 0 if beyond else np.int32(y)
                bins[e] = -1 if beyond else side * BINS + b
                parts[e] = np.int32((y - np.float32(b)) * np.float32(UNITS)) if not beyond else 0
                e += 1


@jit
def sort_edges(bins, parts, first, ranks, sorted_parts):
    """Sort edges by bin and part; `first` (2 * BINS + 1) becomes where each bin's begin."""
    first[:] = 0
    for b in bins:
        if b >= 0:
            first[b + 1] += 1
    for b in range(2 * BINS):
        first[b + 1] += first[b]
    owner = np.empty(first[2 * BINS], np.int32)
    filled = np.zeros(2 * BINS, np.int32)
    for e in range(bins.size):
        b = bins[e]
        if b < 0:
            continue
        at = first[b] + filled[b]
        filled[b] += 1
        while at > first[b] and sorted_parts[at - 1] > parts[e]:
            sorted_parts[at], owner[at] = sorted_parts[at - 1], owner[at - 1]
            at -= 1
        sorted_parts[at], owner[at] = parts[e], e
    for at in range(owner.size):
        ranks[owner[at]] = at


@jit
def edge_tables(first, sorted_parts, table):
    """Fill in, for every bin, its first cell, inverted if it has more than four, and its edges."""
    for b in range(2 * BINS):
        at, count = first[b], first[b + 1] - first[b]
        table[b, 0] = b + at if count <= 3 else -1 - (b + at)
        for e in range(3):
            table[b, 1 + e] = sorted_parts[at + e] if e < count else UNITS
