"""Moments of two arrays: each plane in one loop, planes spread over all cores."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["channel_sums"]


@jit
def _plane(x, y, out):
    """Fill in the five sums, float64 (5,), of float32 arrays (P,): four partial sums each."""
    part = np.zeros((5, 4), np.float64)
    whole = x.size - x.size % 4
    for i in range(0, whole, 4):
        for k in range(4):
            a, b = np.float64(x[i + k]), np.float64(y[i + k])
            part[0, k] += a
            part[1, k] += b
            part[2, k] += a * a
            part[3, k] += b * b
            part[4, k] += a * b
    for i in range(whole, x.size):
        a, b = np.float64(x[i]), np.float64(y[i])
        part[0, 0] += a
        part[1, 0] += b
        part[2, 0] += a * a
        part[3, 0] += b * b
        part[4, 0] += a * b
    for s in range(5):
        out[s] = (part[s, 0] + part[s, 1]) + (part[s, 2] + part[s, 3])


@parallel_jit
def _planes(x, y, out):
    """Fill in the sums, float64 (N, C, 5), of every plane of float32 arrays (N, C, P)."""
    channels = x.shape[1]
    for p in prange(x.shape[0] * channels):
        n, c = p // channels, p % channels
        _plane(x[n, c], y[n, c], out[n, c])


def channel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the sums of x, y, x², y² and x·y of arrays (N, C, P), float64 (5, C)."""
    sums = np.empty((*x.shape[:2], 5))
    with parallel_entry():
        _planes(x, y, sums)
    return np.ascontiguousarray(sums.sum(axis=0).T)
