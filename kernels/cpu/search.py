"""The losses that searches compare: candidates in parallel over bins, chunks over data."""

from __future__ import annotations

import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange, round_half_away

__all__ = ["bin_errors", "hfmg_errors", "squared_errors"]

_CHUNK = 1 << 11


@parallel_jit
def _squared_errors(x, lows, highs, scales, losses):
    chunks = losses.shape[0]
    for c in prange(chunks):
        first, last = c * _CHUNK, min(x.size, (c + 1) * _CHUNK)
        errors = np.empty(last - first)
        for r in range(scales.size):
            low, high, scale = lows[r], highs[r], scales[r]
            for i in range(first, last):
                v = x[i]
                d = round_half_away(min(max(v, low), high) / scale) * scale - v
                errors[i - first] = np.float64(d) * np.float64(d)
            s0 = s1 = s2 = s3 = 0.0
            whole = errors.size - errors.size % 4
            for i in range(0, whole, 4):
                s0 += errors[i]
                s1 += errors[i + 1]
                s2 += errors[i + 2]
                s3 += errors[i + 3]
            for i in range(whole, errors.size):
                s0 += errors[i]
            losses[c, r] = (s0 + s1) + (s2 + s3)


def squared_errors(
    x: np.ndarray, lows: np.ndarray, highs: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """See `kernels.reference.search.squared_errors`; sums agree to rounding of float64."""
    losses = np.zeros((-(-x.size // _CHUNK), scales.size))
    with parallel_entry():
        _squared_errors(x, lows, highs, scales, losses)
    return losses.sum(axis=0)


@jit
def _integral(t, low, high, s):
    inner = min(max(t, low), high)
    m = np.float64(round_half_away(inner / s))
    d = inner / s - m
    edge = m * s
    inside = s * s * s * (m / 12 + d * d * d / 3)
    return inside + ((t - edge) ** 3 - (inner - edge) ** 3) / 3


@parallel_jit
def _bin_errors(left, right, counts, lows, highs, scales, losses):
    for r in prange(scales.size):
        low, high, s = lows[r], highs[r], scales[r]
        total = 0.0
        edge, at_edge = np.nan, 0.0
        for b in range(counts.size):
            if right[b] > left[b]:
                # most bins begin where the one before ends
                begin = at_edge if left[b] == edge else _integral(left[b], low, high, s)
                edge, at_edge = right[b], _integral(right[b], low, high, s)
                total += counts[b] / (right[b] - left[b]) * (at_edge - begin)
            else:
                value, step = np.float32(left[b]), np.float32(s)
                clipped = min(max(value, np.float32(low)), np.float32(high))
                d = round_half_away(clipped / step) * step - value
                total += counts[b] * np.float64(d) ** 2
        losses[r] = total


def bin_errors(
    left: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """See `kernels.reference.search.bin_errors`; sums agree to rounding of float64."""
    losses = np.empty(scales.size)
    with parallel_entry():
        _bin_errors(left, right, counts, lows, highs, scales, losses)
    return losses


@parallel_jit
def _hfmg_errors(counts, candidates, width, levels, losses):
    for r in prange(losses.size):
        left = candidates[r, 0]
        part = width * (candidates[r, 1] - left + 1) / levels
        whole = part * part * part / 12
        total = 0.0
        for b in range(counts.size):
            if counts[b] == 0:
                continue
            begin = (b - left) * width
            end = begin + width
            first = min(max(np.floor(begin / part), 0.0), levels - 1.0)
            last = min(max(np.floor(end / part), 0.0), levels - 1.0)
            d_begin = begin - (first + 0.5) * part
            d_end = end - (last + 0.5) * part
            cubes = (d_end * d_end * d_end - d_begin * d_begin * d_begin) / 3
            total += counts[b] / width * (cubes + (last - first) * whole)
        losses[r] = total


def hfmg_errors(
    counts: np.ndarray, candidates: np.ndarray, width: float, levels: int
) -> np.ndarray:
    """See `kernels.reference.search.hfmg_errors`; sums agree to rounding of float64."""
    losses = np.empty(len(candidates))
    with parallel_entry():
        _hfmg_errors(counts, candidates, width, levels, losses)
    return losses
