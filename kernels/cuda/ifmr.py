"""The squared errors of IFMR's candidates on data.

A row of blocks takes four candidates: each value is read once for all four, and sums in
float64 are taken in an order that depends on the device alone.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, flat, on_device
from kernels.cuda.block import sum_block
from kernels.cuda.jit import (
    THREADS,
    cuda,
    device_jit,
    grid,
    kernel,
    launch,
    mul,
    round_half_away,
    sub,
)

__all__ = ["distance", "squared_errors"]

#: Candidates of a row of blocks.
_GROUP = 4
#: Blocks of a multiprocessor, at most: of many waves the last leaves few multiprocessors idle.
_BLOCKS = 32


@device_jit
def distance(v, low, high, scale):
    """Return ``round_half_away(clip(v, low, high) / scale) * scale - v`` of a float32."""
    inner = v if v > low else low
    inner = inner if inner < high else high
    return sub(mul(round_half_away(inner / scale), scale), v)


@device_jit
def _squared(v, low, high, scale):
    """Return the square of `distance`, float64."""
    d = np.float64(distance(v, low, high, scale))
    return d * d


@kernel
def _squared_errors(x, lows, highs, scales, sums):
    """Fill in each block's sums of four candidates; `sums` is (blocks, R)."""
    partial_sums = cuda.shared.array((_GROUP, THREADS), np.float64)
    t, r = cuda.threadIdx.x, cuda.blockIdx.y * _GROUP
    low_a, low_b, low_c, low_d = lows[r], lows[r + 1], lows[r + 2], lows[r + 3]
    high_a, high_b, high_c, high_d = highs[r], highs[r + 1], highs[r + 2], highs[r + 3]
    scale_a, scale_b, scale_c, scale_d = scales[r], scales[r + 1], scales[r + 2], scales[r + 3]
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    first, step = cuda.blockIdx.x * THREADS + t, cuda.gridDim.x * THREADS
    for i in range(np.uint64(first), np.uint64(x.size), np.uint64(step)):
        v = x[i]
        a += _squared(v, low_a, high_a, scale_a)
        b += _squared(v, low_b, high_b, scale_b)
        c += _squared(v, low_c, high_c, scale_c)
        d += _squared(v, low_d, high_d, scale_d)
    partial_sums[0, t], partial_sums[1, t], partial_sums[2, t], partial_sums[3, t] = a, b, c, d
    for k in range(_GROUP):
        sum_block(partial_sums[k], t, THREADS)
    if t < _GROUP:
        sums[cuda.blockIdx.x, r + t] = partial_sums[t, 0]


def _padded(values: np.ndarray) -> Any:
    """Return candidates on the device, the last repeated to fill a group."""
    return on_device(np.pad(values, (0, -values.size % _GROUP), mode="edge"))


def squared_errors(x: Any, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """See `kernels.reference.ifmr.squared_errors`; sums agree to rounding of float64."""
    number = prod(x.shape)
    if not number or not scales.size:
        return np.zeros(scales.size)
    groups = -(-scales.size // _GROUP)
    blocks = max(grid(number, THREADS, _BLOCKS) // groups, 1)
    sums = empty((blocks, groups * _GROUP), np.float64)
    ranges = _padded(lows), _padded(highs), _padded(scales)
    launch(_squared_errors, (blocks, groups), THREADS, flat(x), *ranges, sums)
    return sums.copy_to_host().sum(axis=0)[: scales.size]
