"""SearchN: a block a plane and shift, whose threads' integers are added."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.cuda.arrays import empty, on_device
from kernels.cuda.block import sum_block
from kernels.cuda.jit import THREADS, cuda, grid, kernel, launch

__all__ = ["shift_errors"]


@kernel
def _planes(sums, truncate, out):
    """Fill in the sums, int64 (R, 16, 2), of every plane of int32 sums (R, P)."""
    shared = cuda.shared.array(THREADS, np.int64)
    t = cuda.threadIdx.x
    for job in range(cuda.blockIdx.x, sums.shape[0] * 16, cuda.gridDim.x):
        plane, n = job // 16, job % 16 + 1
        low, high = np.int64(0), np.int64(0)
        for i in range(t, sums.shape[1], THREADS):
            v = np.int64(sums[plane, i])
            shifted = v >> n
            if truncate and v < 0:
                shifted = -((-v) >> n)
            kept = min(max(shifted, np.int64(-32768)), np.int64(32767))
            error = (kept << n) - v
            square = error * error
            low += square & np.int64(0xFFFFFFFF)
            high += square >> np.int64(32)
        for half in range(2):
            shared[t] = low if half == 0 else high
            sum_block(shared, t, THREADS)
            if t == 0:
                out[plane, n - 1, half] = shared[0]
            cuda.syncthreads()


def shift_errors(sums: Any, truncate: bool) -> np.ndarray:
    """Return the summed squares of each shift's errors, int64 (2, C, 16), of int32 (N, C, P)."""
    n, channels, size = sums.shape
    rows = n * channels
    out = empty((rows, 16, 2), np.int64)
    planes = on_device(sums).reshape(rows, size)
    launch(_planes, grid(rows * 16, 1), THREADS, planes, bool(truncate), out)
    by_plane = out.copy_to_host().reshape(n, channels, 16, 2)
    return np.ascontiguousarray(by_plane.sum(axis=0).transpose(2, 0, 1))
