"""The integer matrix product under convolution, deconvolution and inner product.

Data stays where it lies, as int16 (an 8-bit value less its offset needs 9 bits); the tile is
told where each of its rows begins and how its runs of values lie from there, so a
convolution needs no copy of its windows. Weights are packed once in the order in which the
tile reads them. `kernels.cpu.microkernel` has the tile, and says what it reads.
"""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit
from kernels.cpu.microkernel import COLUMNS, ROWS, tile

__all__ = ["COLUMNS", "multiply", "pack_weights"]


def pack_weights(w: np.ndarray) -> np.ndarray:
    """Pack weights for the tile.

    Parameters
    ----------
    w : int8 array (G, N, T, K)
        For each group and output, T runs of K values.

    Returns
    -------
    int16 array (G, ceil(N / COLUMNS), T, ceil(K / 2), COLUMNS, 2)
        Zero where there is no output or value.
    """
    groups, outs, runs, values = w.shape
    blocks, pairs = -(-outs // COLUMNS), -(-values // 2)
    packed = np.zeros((groups, blocks, runs, pairs, COLUMNS, 2), np.int16)
    _pack(w, packed)
    return packed


@jit
def _pack(w, packed):
    groups, blocks, runs, pairs = packed.shape[:4]
    outs, values = w.shape[1], w.shape[3]
    for g in range(groups):
        for block in range(blocks):
            first = block * COLUMNS
            count = min(COLUMNS, outs - first)
            for t in range(runs):
                for k in range(pairs):
                    target = packed[g, block, t, k]
                    odd = 2 * k + 1 == values
                    for o in range(count):
                        source = w[g, first + o, t]
                        target[o, 0] = source[2 * k]
                        target[o, 1] = 0 if odd else source[2 * k + 1]


@jit
def multiply(data, bases, taps, weights, acc):
    """Fill ``acc[n, p]``: the sums of one block of outputs for a strip of positions.

    Parameters
    ----------
    data : int16 array (any,)
    bases : int64 array (P,)
        Where each position begins in `data`.
    taps : int64 array (T,)
        Where each run begins from there.
    weights : int16 array (T, pairs, COLUMNS, 2)
        One block of `pack_weights`.
    acc : int32 array (COLUMNS, P)
    """
    count = bases.size
    tiles = (count + ROWS - 1) // ROWS
    sums = np.empty((tiles * ROWS, COLUMNS), np.int32)
    last = np.empty(ROWS, np.int64)
    for first in range(0, count - ROWS + 1, ROWS):
        tile(sums[first : first + ROWS], data, bases[first : first + ROWS], taps, weights)
    if count % ROWS:
        # the last tile is filled up with its last position
        first = (tiles - 1) * ROWS
        for m in range(ROWS):
            last[m] = bases[min(first + m, count - 1)]
        tile(sums[first:], data, last, taps, weights)
    for n in range(COLUMNS):
        for p in range(count):
            acc[n, p] = sums[p, n]
