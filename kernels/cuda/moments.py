"""Moments of two arrays: a block a plane, whose threads' sums are added in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, on_device
from kernels.cuda.block import sum_block
from kernels.cuda.jit import THREADS, cuda, grid, kernel, launch

__all__ = ["channel_sums"]


@kernel
def _planes(x, y, out):
    """Fill in the five sums, float64 (R, 5), of every plane of float32 arrays (R, P)."""
    shared = cuda.shared.array(THREADS, np.float64)
    t = cuda.threadIdx.x
    for plane in range(cuda.blockIdx.x, x.shape[0], cuda.gridDim.x):
        sx = sy = sxx = syy = sxy = np.float64(0)
        for i in range(t, x.shape[1], THREADS):
            a, b = np.float64(x[plane, i]), np.float64(y[plane, i])
            sx += a
            sy += b
            sxx += a * a
            syy += b * b
            sxy += a * b
        for s in range(5):
            square = sxx if s == 2 else syy if s == 3 else sxy
            shared[t] = sx if s == 0 else sy if s == 1 else square
            sum_block(shared, t, THREADS)
            if t == 0:
                out[plane, s] = shared[0]
            cuda.syncthreads()


def channel_sums(x: Any, y: Any) -> np.ndarray:
    """Return the sums of x, y, x², y² and x·y of arrays (N, C, P), float64 (5, C)."""
    n, channels, size = x.shape
    rows = n * channels
    sums = empty((rows, 5), np.float64)
    planes = (on_device(v).reshape(rows, size) for v in (x, y))
    launch(_planes, grid(rows, 1), THREADS, *planes, sums)
    by_plane = sums.copy_to_host().reshape(n, channels, 5)
    return np.ascontiguousarray(by_plane.sum(axis=0).T)
