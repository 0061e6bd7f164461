"""Rounding with compensation: a thread a row of weights, rows of a group together."""

from __future__ import annotations

import math

import numpy as np

from kernels.cuda.arrays import empty, on_device
from kernels.cuda.jit import SIMULATED, cuda, device_jit, grid, kernel, launch

__all__ = ["round_rows"]

#: Rows of a block: layers have a few hundred, which should be spread over the device.
_ROWS = 4 if SIMULATED else 32


@device_jit
def _nearest(v):
    """Return the nearest integer of a float64, halves away from zero."""
    size = math.fabs(v)
    below = np.float64(math.floor(size))
    whole = below + 1.0 if size - below >= 0.5 else below
    return whole if v >= 0.0 else -whole


@kernel
def _round_rows(w, scales, upper, half, table, errors, q):
    """Round rows, float64 (G, O, K) to int8 (G, O, K); `errors`, (G, K, O), is scratch memory.

    Threads of neighbouring rows read neighbouring errors, and the same factor.
    """
    groups, outs, size = w.shape
    for row in range(cuda.grid(1), groups * outs, cuda.gridsize(1)):
        g, o = row // outs, row % outs
        for step in range(size):
            j = size - 1 - step
            left = np.float64(0)
            for k in range(j + 1, size):
                left += upper[g, j, k] * errors[g, k, o]
            value = w[g, o, j]
            steps = (value + left / upper[g, j, j]) / scales[g, o]
            level = table[np.int64(min(max(_nearest(steps), -half), half - 1.0)) + 128]
            q[g, o, j] = level
            errors[g, j, o] = value - scales[g, o] * np.float64(level)


def round_rows(
    w: np.ndarray, scales: np.ndarray, upper: np.ndarray, half: int, table: np.ndarray
) -> np.ndarray:
    """Return int8 (G, O, K) of float64 weights; see `kernels.compensation` for the formula.

    `table`, int8 (256,), has the level that each integer from -128 on is replaced by.
    """
    groups, outs, size = w.shape
    q, errors = empty(w.shape, np.int8), empty((groups, size, outs), np.float64)
    arrays = (on_device(v) for v in (w, scales, upper))
    numbers = float(half), on_device(table)
    launch(_round_rows, grid(groups * outs, _ROWS), _ROWS, *arrays, *numbers, errors, q)
    return q.copy_to_host()
