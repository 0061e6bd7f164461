"""Rounding with compensation: some rows at a time, so that a row of A serves them all."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange, round_half_away

__all__ = ["round_rows"]

#: Rows of weights that are rounded together.
_ROWS = 16


@jit
def _round_block(w, scales, upper, half, table, first, q):
    """Round up to 16 rows of one group: float64 (O, K) to int8 (O, K), from row `first` on."""
    count, size = min(_ROWS, w.shape[0] - first), w.shape[1]
    errors, left = np.zeros((size, _ROWS)), np.empty(_ROWS)
    for j in range(size - 1, -1, -1):
        left[:] = 0.0
        for k in range(j + 1, size):
            factor = upper[j, k]
            for r in range(_ROWS):
                left[r] += factor * errors[k, r]
        for r in range(count):
            value = w[first + r, j]
            steps = round_half_away((value + left[r] / upper[j, j]) / scales[first + r])
            level = table[np.int64(min(max(steps, -half), half - 1.0)) + 128]
            q[first + r, j] = level
            errors[j, r] = value - scales[first + r] * level


@parallel_jit
def _round_groups(w, scales, upper, half, table, q):
    """Round every block of every group: float64 (G, O, K) to int8 (G, O, K)."""
    blocks = (w.shape[1] + _ROWS - 1) // _ROWS
    for job in prange(w.shape[0] * blocks):
        g, first = job // blocks, job % blocks * _ROWS
        _round_block(w[g], scales[g], upper[g], half, table, np.int64(first), q[g])


def round_rows(
    w: np.ndarray, scales: np.ndarray, upper: np.ndarray, half: int, table: np.ndarray
) -> np.ndarray:
    """Return int8 (G, O, K) of float64 weights; see `kernels.compensation` for the formula.

    `table`, int8 (256,), has the level that each integer from -128 on is replaced by.
    """
    q = np.empty(w.shape, np.int8)
    with parallel_entry():
        _round_groups(w, scales, upper, float(half), table, q)
    return q
