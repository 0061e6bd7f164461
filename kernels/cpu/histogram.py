"""Observing on all cores: every thread counts privately, then the counts are added."""

from __future__ import annotations

import numba
import numpy as np

from kernels.cpu.jit import parallel_entry, parallel_jit, prange

__all__ = ["collect", "count", "extremes"]

_CHUNK = 1 << 15


@parallel_jit
def _extremes(x, lows, highs, nans, infinities):
    chunks = lows.size
    for c in prange(chunks):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        bad = endless = 0
        for i in range(c * _CHUNK, min(x.size, (c + 1) * _CHUNK)):
            v = x[i]
            low, high = min(low, v), max(high, v)
            bad += v != v
            endless += abs(v) == np.inf
        lows[c], highs[c], nans[c], infinities[c] = low, high, bad, endless


def extremes(x: np.ndarray) -> tuple[float, float, int, int]:
    """See `kernels.reference.histogram.extremes`."""
    chunks = -(-x.size // _CHUNK)
    lows, highs = np.empty((2, chunks), np.float32)
    nans, infinities = np.empty((2, chunks), np.int64)
    with parallel_entry():
        _extremes(x, lows, highs, nans, infinities)
    return float(lows.min()), float(highs.max()), int(nans.sum()), int(infinities.sum())


@parallel_jit
def _count(x, factor, half, counts, zeros):
    threads = counts.shape[0]
    share = (x.size + threads - 1) // threads
    for t in prange(threads):
        mine = counts[t]
        none = 0
        for i in range(t * share, min(x.size, (t + 1) * share)):
            v = x[i]
            index = np.int64(np.float64(abs(v)) * factor)
            none += v == 0
            mine[half - 1 - index if v < 0 else half + index] += 1
        zeros[t] = none


def count(x: np.ndarray, exponent: int, half: int) -> tuple[np.ndarray, int]:
    """See `kernels.reference.histogram.count`."""
    threads = numba.get_num_threads()
    counts = np.zeros((threads, 2 * half), np.int64)
    zeros = np.zeros(threads, np.int64)
    with parallel_entry():
        _count(x, 2.0**-exponent, half, counts, zeros)
    return counts.sum(axis=0), int(zeros.sum())


def collect(x: np.ndarray, sign: np.float32, threshold: np.float32) -> np.ndarray:
    """See `kernels.reference.histogram.collect`: comparing is a vector loop in NumPy too."""
    if sign > 0:
        return x[x >= threshold]
    return -x[x <= -threshold]
