"""Weights row by row: one vectorized pass for the ranges, one for the values, all cores."""

from __future__ import annotations

import numpy as np

from kernels.cpu.affine import steps
from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["fake_quantize_rows", "row_ranges"]


@jit
def _range(row):
    """Return the least and the largest value; NaN for both if the row holds one."""
    low = high = row[0]
    nans = 0
    for i in range(row.size):
        v = row[i]
        low = v if v < low else low
        high = v if v > high else high
        nans += v != v
    return (np.float32(np.nan), np.float32(np.nan)) if nans else (low, high)


@jit
def _fake_quantize(row, scale, low, high, out):
    """Fill in ``clip(round(w / scale), low, high) * scale`` of one row."""
    for i in range(row.size):
        out[i] = steps(row[i], scale, np.float32(0), low, high) * scale


@parallel_jit
def _row_ranges(rows, low, high):
    """Fill in the least and the greatest weight of each row, float32 (rows,)."""
    for r in prange(rows.shape[0]):
        low[r], high[r] = _range(rows[r])


@parallel_jit
def _fake_quantize_rows(rows, scales, low, high, out):
    """Fill in the fake-quantized rows, float32 (rows, n); each has its scale."""
    for r in prange(rows.shape[0]):
        _fake_quantize(rows[r], scales[r], low, high, out[r])


def row_ranges(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest value of each row; NaN where it holds one."""
    low, high = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    with parallel_entry():
        _row_ranges(rows, low, high)
    return low, high


def fake_quantize_rows(rows: np.ndarray, scales: np.ndarray, half: int) -> np.ndarray:
    """Return ``clip(round(w / scale), -half, half - 1) * scale`` for each row."""
    out = np.empty(rows.shape, np.float32)
    with parallel_entry():
        _fake_quantize_rows(rows, scales, np.float32(-half), np.float32(half - 1), out)
    return out
