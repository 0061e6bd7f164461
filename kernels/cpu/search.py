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


@jit
def _integrals(t, low, high, s, out):
    """Integrate up to each edge. Alone in a function, the loop vectorizes."""
    for i in range(t.size):
        out[i] = _integral(t[i], low, high, s)


@jit
def _weighted(weights, begin, end):
    """Return ``sum(weights * (end - begin))`` in four sums that do not wait for each other."""
    s0 = s1 = s2 = s3 = 0.0
    whole = weights.size - weights.size % 4
    for i in range(0, whole, 4):
        s0 += weights[i] * (end[i] - begin[i])
        s1 += weights[i + 1] * (end[i + 1] - begin[i + 1])
        s2 += weights[i + 2] * (end[i + 2] - begin[i + 2])
        s3 += weights[i + 3] * (end[i + 3] - begin[i + 3])
    for i in range(whole, weights.size):
        s0 += weights[i] * (end[i] - begin[i])
    return (s0 + s1) + (s2 + s3)


@jit
def _point_errors(points, counts, low, high, s):
    """Return the summed squared error of single values, in float32 as on data."""
    low32, high32, step, total = np.float32(low), np.float32(high), np.float32(s), 0.0
    for i in range(points.size):
        value = np.float32(points[i])
        d = round_half_away(min(max(value, low32), high32) / step) * step - value
        total += counts[i] * np.float64(d) ** 2
    return total


@parallel_jit
def _bin_errors(left, right, weights, points, counts, lows, highs, scales, losses):
    for candidate in prange(scales.size):
        r = np.int64(candidate)
        low, high, s = lows[r], highs[r], scales[r]
        begin, end = np.empty(left.size), np.empty(left.size)
        _integrals(left, low, high, s, begin)
        _integrals(right, low, high, s, end)
        losses[r] = _weighted(weights, begin, end) + _point_errors(points, counts, low, high, s)


def bin_errors(
    left: np.ndarray,
    right: np.ndarray,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """See `kernels.reference.search.bin_errors`; sums agree to rounding of float64."""
    wide = right > left
    begin, end = left[wide], right[wide]
    losses = np.empty(scales.size)
    with parallel_entry():
        _bin_errors(
            begin, end, counts[wide] / (end - begin), left[~wide], counts[~wide], lows, highs,
            scales, losses,
        )  # fmt: skip
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
