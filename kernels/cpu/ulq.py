"""ULQ's forward and backward: one vectorized pass each, all cores."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange, round_half_away
from kernels.ulq import UlqGrid

__all__ = ["backward", "forward"]

_CHUNK = 1 << 14


@jit
def _clip(v, low, high):
    """Return `v` within the range; NaN stays NaN."""
    v = low if v < low else v
    return high if v > high else v


@jit
def _forward_run(x, scale, low, high, out):
    """Fill in ``rint(clip(x, low, high) / scale) * scale``, float32 (n,)."""
    for i in range(x.size):
        out[i] = np.rint(_clip(x[i], low, high) / scale) * scale


@jit
def _backward_run(x, gradient, scale, low, high, edge, steps, out, by_max, by_min):
    """Write dx, and what each value adds to the gradients of the range."""
    for i in range(x.size):
        v, g = x[i], gradient[i]
        w = v / scale
        above = np.float32(v > high)
        below = np.float32(v < low)
        inside = above + below == np.float32(0)
        d = (round_half_away(w) - w) / steps if inside else edge
        by_max[i] = g * (d + above)
        by_min[i] = g * (below - d)
        out[i] = g if inside else np.float32(0)


@jit
def _sum(x):
    """Return the sum in float64: four partial sums, or each addition would wait for the last."""
    a = b = c = d = 0.0
    ragged = x.size % 4
    for i in range(0, x.size - ragged, 4):
        a += np.float64(x[i])
        b += np.float64(x[i + 1])
        c += np.float64(x[i + 2])
        d += np.float64(x[i + 3])
    for i in range(x.size - ragged, x.size):
        a += np.float64(x[i])
    return (a + b) + (c + d)


@parallel_jit
def _forward(x, scale, low, high, out):
    """Fill in the fake-quantized values of x, float32 (n,)."""
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        a = np.int64(chunk) * _CHUNK
        b = min(a + _CHUNK, x.size)
        _forward_run(x[a:b], scale, low, high, out[a:b])


@parallel_jit
def _backward(x, gradient, scale, low, high, edge, steps, out, sums):
    """Fill in dx, float32 (n,), and what each chunk adds to the ends, float64 (chunks, 2)."""
    for chunk in prange((x.size + _CHUNK - 1) // _CHUNK):
        a = np.int64(chunk) * _CHUNK
        b = min(a + _CHUNK, x.size)
        terms = np.empty((2, _CHUNK), np.float32)
        by_max, by_min = terms[0, : b - a], terms[1, : b - a]
        _backward_run(
            x[a:b], gradient[a:b], scale, low, high, edge, steps, out[a:b], by_max, by_min
        )
        sums[chunk, 0] = _sum(by_max)
        sums[chunk, 1] = _sum(by_min)


def forward(x: np.ndarray, grid: UlqGrid) -> np.ndarray:
    """See `kernels.ulq_forward`."""
    out = np.empty(x.shape, np.float32)
    with parallel_entry():
        _forward(x.reshape(-1), np.float32(grid.scale), grid.low, grid.high, out.reshape(-1))
    return out


def backward(x: np.ndarray, gradient: np.ndarray, grid: UlqGrid) -> tuple[np.ndarray, float, float]:
    """See `kernels.ulq_backward`."""
    out = np.empty(x.shape, np.float32)
    # a sum for each chunk, added in order: the same on any number of threads
    sums = np.zeros((-(-x.size // _CHUNK), 2))
    with parallel_entry():
        _backward(
            x.reshape(-1),
            gradient.reshape(-1),
            np.float32(grid.scale),
            grid.low,
            grid.high,
            np.float32(grid.edge),
            np.float32(grid.steps),
            out.reshape(-1),
            sums,
        )
    by_max, by_min = sums.sum(axis=0)
    return out, float(by_max), float(by_min)
