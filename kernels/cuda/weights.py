"""Weights row by row: a block a row for the ranges, one pass for the values."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.affine import lanes
from kernels.cuda.arrays import empty, flat, on_device, shaped
from kernels.cuda.block import fold
from kernels.cuda.jit import (
    THREADS,
    cuda,
    device_jit,
    grid,
    kernel,
    launch,
    mul,
    round_half_away,
)

__all__ = ["fake_quantize_rows", "row_ranges", "swapped"]


@device_jit
def _fake(v, scale, low, high):
    """Fake-quantize a weight. No offset is added: it would turn a negative zero positive."""
    q = round_half_away(v / scale)
    q = q if q > low else low
    return mul(q if q < high else high, scale)


@device_jit
def _less(a, b):
    """Return the lesser of two values; NaN if either is."""
    return b if b < a or b != b else a


@device_jit
def _more(a, b):
    """Return the greater of two values; NaN if either is."""
    return b if b > a or b != b else a


_LEAST, _MOST = fold(_less), fold(_more)


@kernel
def _row_ranges(rows, low, high):
    """Fill in the least and the greatest weight of each row, float32 (rows,); NaN if it has one."""
    lows = cuda.shared.array(THREADS, np.float32)
    highs = cuda.shared.array(THREADS, np.float32)
    t = cuda.threadIdx.x
    for row in range(cuda.blockIdx.x, rows.shape[0], cuda.gridDim.x):
        least = most = rows[row, 0]
        for i in range(t, rows.shape[1], THREADS):
            v = rows[row, i]
            least, most = _less(least, v), _more(most, v)
        lows[t], highs[t] = least, most
        _LEAST(lows, t, THREADS)
        _MOST(highs, t, THREADS)
        if t == 0:
            low[row], high[row] = lows[0], highs[0]
        cuda.syncthreads()


@kernel
def _fake_quantize_rows(rows, inner, lanes, scales, low, high, out):
    """Fake-quantize rows of `inner` weights, each by so many threads of a block."""
    a_block = cuda.blockDim.x // lanes
    row = cuda.blockIdx.x * a_block + cuda.threadIdx.x // lanes
    while row < scales.size:
        scale = scales[row]
        for i in range(row * inner + cuda.threadIdx.x % lanes, (row + 1) * inner, lanes):
            out[i] = _fake(rows[i], scale, low, high)
        row += cuda.gridDim.x * a_block


@kernel
def _swapped(x, out):
    """Write x (A, B, n) as (B, A, n)."""
    first, inner = x.shape[0], x.shape[2]
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):  # in the order of the result
        pair, k = i // inner, i % inner
        out[i] = x[pair % first, pair // first, k]


def row_ranges(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest value of each row; NaN where it holds one."""
    low, high = empty(rows.shape[0], np.float32), empty(rows.shape[0], np.float32)
    launch(_row_ranges, grid(rows.shape[0], 1), THREADS, on_device(rows), low, high)
    return low.copy_to_host(), high.copy_to_host()


def fake_quantize_rows(rows: Any, scales: np.ndarray, half: int) -> Any:
    """Return ``clip(round(w / scale), -half, half - 1) * scale`` for each row."""
    count, inner = rows.shape
    out, each = empty(count * inner, np.float32), lanes(inner)
    ends = np.float32(-half), np.float32(half - 1)
    parameters = flat(rows), inner, each, on_device(scales)
    launch(_fake_quantize_rows, grid(count * each), THREADS, *parameters, *ends, out)
    return shaped(out, rows)


def swapped(x: Any) -> Any:
    """Return a device array (A, B, n) as (B, A, n)."""
    a, b, n = x.shape
    if 1 in (a, b):  # the values lie in the same order
        return x.reshape(b, a, n)
    out = empty(a * b * n, np.float32)
    launch(_swapped, grid(out.size), THREADS, on_device(x), out)
    return out.reshape(b, a, n)
