"""Rounding with compensation in NumPy: a column of all rows at a time."""

from __future__ import annotations

import numpy as np

from kernels.rounding import round_half_away

__all__ = ["round_rows"]


def round_rows(
    w: np.ndarray, scales: np.ndarray, upper: np.ndarray, half: int, table: np.ndarray
) -> np.ndarray:
    """Return int8 (G, O, K) of float64 weights; see `kernels.compensation` for the formula.

    `table`, int8 (256,), has the level that each integer from -128 on is replaced by.
    """
    q = np.zeros(w.shape, np.int8)
    errors = np.zeros(w.shape)
    for j in range(w.shape[2] - 1, -1, -1):
        row = upper[:, None, j, :] / upper[:, j, j, None, None]
        left = (row[:, :, j + 1 :] * errors[:, :, j + 1 :]).sum(axis=2)
        steps = round_half_away((w[:, :, j] + left) / scales)
        q[:, :, j] = table[np.clip(steps, -half, half - 1).astype(np.int64) + 128]
        errors[:, :, j] = w[:, :, j] - scales * q[:, :, j]
    return q
